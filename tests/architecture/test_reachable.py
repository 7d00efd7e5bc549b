"""No dead module: everything is imported, step by step, from something that is started."""

import pytest

from tests.architecture.source import PLANES, imported_by, is_within, modules

# What is started, by a command or as a process; a plane without its first one is not built yet.
ENTRY_POINTS = {
    "gateway": ("gateway.__main__",),
    "control": ("control.cli", "control.cli.__main__", "control.embedded.guard"),
}
# Modules that nothing imports, on purpose: name → why.
STANDS_ALONE: dict[str, str] = {}


def with_parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)} & modules().keys()


def reachable(entry_points: tuple[str, ...]) -> set[str]:
    seen: set[str] = set()
    waiting = {name for entry in entry_points for name in with_parents(entry)}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= {found for target in imported_by(modules()[name]) for found in with_parents(target)} - seen
    return seen


@pytest.mark.parametrize("plane", PLANES)
def test_every_module_is_used_by_something_that_is_started(plane: str) -> None:
    assert ENTRY_POINTS[plane][0] in modules()
    every_entry = tuple(entry for entries in ENTRY_POINTS.values() for entry in entries)
    found = reachable(every_entry)
    dead = {name for name in modules() if is_within(name, plane)} - found - STANDS_ALONE.keys()
    assert sorted(dead) == []


def test_no_exception_is_kept_for_a_module_that_is_gone() -> None:
    assert set(STANDS_ALONE) <= modules().keys()
