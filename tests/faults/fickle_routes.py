"""Routes to `fickle` with prices of every kind, requests drawn by chance for them, and what each costs if it ends well."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tests.system.installation import Workload
from tests.system.wire import request

ROUTES: Final = """
[[route]]
name = "cheap"
path = "/cheap/"
upstream = "{fickle}"
price.request = "0.01"

[[route]]
name = "dear"
path = "/dear/"
upstream = "{fickle}"
price.request = "0.08"

[[route]]
name = "odd"
path = "/odd/"
upstream = "{fickle}"
price.request = "0.000777"

[[route]]
name = "charged"
path = "/charged/"
upstream = "{fickle}"
price.request = "0.05"
price.upstream_failure = "charge"

[[route]]
name = "gone"
path = "/gone/"
upstream = "{refusing}"
price.request = "0.02"

[[route]]
name = "sized"
path = "/sized/"
upstream = "{fickle}"
estimate = {{ per_kib = "0.004" }}
price.kib_in = "0.004"

[[route]]
name = "asked"
path = "/asked/"
upstream = "{fickle}"
estimate = {{ json = "/max_tokens", unit = "output_tokens", missing = 1000 }}
price.meters = [{{ unit = "output_tokens", json = "/usage/output_tokens", per_1000 = "0.05" }}]

[[route]]
name = "capped"
path = "/capped/"
upstream = "{fickle}"
hold = "0.03"
price.cap_per_request = "0.03"
price.meters = [{{ unit = "output_tokens", json = "/usage/output_tokens", per_1000 = "0.05" }}]

[[route]]
name = "tokens"
path = "/tokens/"
upstream = "{fickle}"
hold = "0.02"
price.request = "0.001"
price.meters = [{{ unit = "output_tokens", json = "/usage/output_tokens", per_1000 = "0.05" }}]

[[route]]
name = "stream"
path = "/stream/"
upstream = "{fickle}"
hold = "0.01"
price.meters = [{{ unit = "output_tokens", json = "/usage/output_tokens", per_1000 = "0.05" }}]

[[route]]
name = "bytes"
path = "/bytes/"
upstream = "{fickle}"
hold = "0.01"
hold_step = "0.005"
price.kib_out = "0.004"
"""

FIXED: Final[Mapping[str, int]] = {
    "cheap": 10_000, "dear": 80_000, "odd": 777, "charged": 50_000, "gone": 20_000,
}  # fmt: skip
KNOWN: Final = (*FIXED, "sized", "asked", "capped")
"""Routes on which a request costs at most what is held for it at once."""
OPEN: Final = ("tokens", "stream", "bytes")
"""Routes on which it may come to cost more."""
HELD_MEAN: Final = 25_000
"""About what is held for a request."""

FAILURES: Final = ("error", "unheard", "midway")

_KIB: Final = 4_000
_TOKEN: Final = 50
"""Microcredits."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One request: what is sent, and when its client leaves it, if it does."""

    route: str
    data: bytes
    cost: int
    """Microcredits, if it is answered 200 and ends well."""
    leaves: Literal["", "unheard", "midway"]
    after_s: float
    """How long a client that leaves before the head waits for it."""
    is_rude: bool
    """Whether a client that leaves resets its connection, and does not only end its side."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """What differs from route to route."""

    play: str
    amount: int
    cost: int
    body: bytes = b""


def _fixed(route: str, chance: random.Random) -> _Draft:
    return _Draft("plain", chance.randint(0, 4096), FIXED[route])


def _sized(_: str, chance: random.Random) -> _Draft:
    size = chance.randint(1, 8192)
    return _Draft("plain", 10, -(-size * _KIB // 1024), b"b" * size)


def _asked(_: str, chance: random.Random) -> _Draft:
    most = chance.randint(1, 1000)
    used = chance.choice((most, chance.randint(0, most)))
    return _Draft("usage", used, used * _TOKEN, json.dumps({"max_tokens": most}).encode())


def _capped(_: str, chance: random.Random) -> _Draft:
    used = chance.randint(0, 1200)
    return _Draft("usage", used, min(used * _TOKEN, 30_000))


def _tokens(_: str, chance: random.Random) -> _Draft:
    used = chance.randint(0, 1500)
    return _Draft("usage", used, 1_000 + used * _TOKEN)


def _stream(_: str, chance: random.Random) -> _Draft:
    used = chance.randint(0, 1500)
    return _Draft("events", used, used * _TOKEN)


def _bytes(_: str, chance: random.Random) -> _Draft:
    size = chance.randint(0, 10_240)
    return _Draft("plain", size, -(-size * _KIB // 1024))


_DRAFTS: Final[Mapping[str, Callable[[str, random.Random], _Draft]]] = {
    **dict.fromkeys(FIXED, _fixed), "sized": _sized, "asked": _asked, "capped": _capped, "tokens": _tokens,
    "stream": _stream, "bytes": _bytes,
}  # fmt: skip


def drawn(
    chance: random.Random, workload: Workload, routes: tuple[str, ...], name: str, wait_s: float
) -> Plan:
    """A request of this workload to one of these routes, answered within `wait_s` from when the upstream may; `name` tells it
    from all others."""
    route = chance.choice(routes)
    draft = _DRAFTS[route](route, chance)
    play = chance.choice(FAILURES) if chance.random() < 0.15 else draft.play
    wait_ms = int(chance.random() * wait_s * 1000)
    target = f"/{route}/{play}/{wait_ms}/{draft.amount}/{name}"
    leaves: Literal["", "unheard", "midway"] = ""
    if chance.random() < 0.2:
        leaves = chance.choice(("unheard", "midway"))
    method = "POST" if draft.body else "GET"
    data = request(workload, target, method=method, body=draft.body)
    return Plan(route, data, draft.cost, leaves, chance.random() * wait_s, chance.random() < 0.5)
