"""Who may import whom (the design's layout). A late import or one for types only counts like any other.

The planes meet in `gateway.contract` alone. Commands of control that run a whole installation (`tollkeeper
demo`, `up`) start gateways as processes of their own, `python -m gateway`, and so need no exception here.
"""

import ast
from fnmatch import fnmatch

import pytest

from tests.architecture.source import Module, imported_by, is_within, modules

PURE = (
    "gateway.routing",
    "gateway.pricing",
    "gateway.counts",
    "gateway.metering",
    "gateway.event_stream",
    "gateway.decoding",
    "gateway.json_document",
    "gateway.json_scan",
    "gateway.json_grammar",
    "gateway.json_pointer",
    "gateway.pointer_tree",
    "gateway.refusals",
    "gateway.reasons",
    "gateway.quota_fields",
    "gateway.key_report",
    "gateway.balancing",
    "gateway.channel",
    "gateway.networks",
    "gateway.patience",
    "gateway.http1.forwarding",
    "gateway.http1.proxy_protocol",
    "gateway.http1.upgrade",
    "gateway.http1.event_borders",
    "gateway.http1.websocket",
    "gateway.http1.head",
    "gateway.http1.target",
    "gateway.http1.fields",
    "gateway.http1.chunked",
    "gateway.http1.body",
    "gateway.http1.reading",
    "gateway.http1.own_answer",
    "gateway.credentials",
    "gateway.recording",
    "control.domain.quota",
)
# What acts on the world, waits, or knows the time: arguments bring these into a pure module, imports never.
EFFECTS = (
    "aiohttp", "asyncio", "asyncpg", "concurrent", "httptools", "multiprocessing", "os", "pathlib", "random", "redis",
    "requests", "secrets", "select", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uvloop",
)  # fmt: skip
# The contract reads its own scripts, and makes tokens: files and randomness, but no client and no event loop.
CLIENTS = ("aiohttp", "asyncio", "asyncpg", "httptools", "redis", "socket", "ssl", "time", "uvloop")

# Files of control that may import redis, and why. Postgres is the truth: everything else goes through what is
# published.
MAY_USE_REDIS = {
    "control/jobs/*": "the jobs publish to Redis and drain it",
    "control/publishing*": "what the jobs and the key-creating call have in common: how a rule reaches Redis",
    "control/domain/keys.py": "a new key works at once, not after the next publish",
    "control/counters.py": "reads the live counters, which are only there",
    "control/embedded/valkey.py": "asks the server it has started whether it answers",
    "control/app.py": "the composition root opens the client",
    "control/cli/*": "composition: opens the client that it hands to the jobs",
    "control/demo/*": "composition: the whole installation in one command",
}

# Composition roots: module → who may import it. Everything else gets what it needs handed in.
COMPOSITION_ROOTS = {
    "gateway.server": ("gateway.__main__", "gateway.supervisor"),
    "gateway.supervisor": ("gateway.__main__",),
    "control.app": ("control.__main__", "control.cli", "control.demo"),
}


def every(plane: str) -> list[Module]:
    return [module for name, module in modules().items() if is_within(name, plane)]


def offences(among: list[Module], forbidden: "tuple[str, ...]") -> list[str]:
    return [
        f"{module.shown} imports {name}"
        for module in among
        for name in sorted(imported_by(module))
        if any(is_within(name, package) for package in forbidden)
    ]


def test_the_gateway_never_imports_the_control_plane() -> None:
    assert offences(every("gateway"), ("control",)) == []


def test_control_imports_nothing_of_the_gateway_but_the_contract() -> None:
    found = [
        f"{module.shown} imports {name}"
        for module in every("control")
        for name in sorted(imported_by(module))
        if is_within(name, "gateway") and not is_within(name, "gateway.contract")
    ]
    assert found == []


def test_the_contract_depends_on_neither_plane_and_opens_nothing() -> None:
    found = [
        f"{module.shown} imports {name}"
        for module in every("gateway.contract")
        for name in sorted(imported_by(module))
        if is_within(name, "control")
        or (is_within(name, "gateway") and not is_within(name, "gateway.contract"))
    ]
    assert found + offences(every("gateway.contract"), CLIENTS) == []


def test_nothing_of_the_product_imports_its_tests() -> None:
    assert offences(list(modules().values()), ("tests",)) == []


@pytest.mark.parametrize("name", [name for name in PURE if name in modules()])
def test_a_pure_module_decides_without_acting(name: str) -> None:
    module = modules()[name]
    ours = [
        imported
        for imported in imported_by(module)
        if is_within(imported, "gateway")
        and imported not in PURE
        and not is_within(imported, "gateway.contract")
    ]
    waits = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    clocks = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
    ]
    assert offences([module], EFFECTS) == []
    assert ours == [], f"{module.shown} imports modules that act"
    assert waits == [], f"{module.shown} waits"
    assert clocks == [], f"{module.shown} reads a clock"


def test_the_api_and_the_console_never_import_each_other() -> None:
    assert offences(every("control.api"), ("control.console",)) == []
    assert offences(every("control.console"), ("control.api",)) == []


def test_the_domain_knows_neither_http_nor_commands() -> None:
    forbidden = (
        "aiohttp",
        "typer",
        "rich",
        "control.api",
        "control.console",
        "control.cli",
        "control.jobs",
        "control.app",
    )
    assert offences(every("control.domain"), forbidden) == []


def test_only_the_listed_files_of_control_touch_redis() -> None:
    found = [
        module.shown
        for module in every("control")
        if any(is_within(name, "redis") for name in imported_by(module))
        and not any(fnmatch(module.shown, pattern) for pattern in MAY_USE_REDIS)
    ]
    assert found == []


def test_nobody_imports_a_composition_root() -> None:
    found = [
        f"{module.shown} imports {root}"
        for root, allowed in COMPOSITION_ROOTS.items()
        for module in modules().values()
        if root in imported_by(module) and not any(is_within(module.name, package) for package in allowed)
    ]
    assert found == []
