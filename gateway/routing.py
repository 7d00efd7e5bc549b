"""Routes: which upstream a normalised target belongs to. Pure; compiled once, when the table is loaded.

The longest path prefix wins, on segment borders; a route that names the host is asked before one that does not; methods
narrow what is left. A target without a route is answered 404 and never forwarded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.contract.money import Microcredits
from gateway.http1.target import Target
from gateway.pricing import Price

Dialect = Literal["problem", "openai", "anthropic", "plain"]
DIALECTS: Final[tuple[Dialect, ...]] = ("problem", "openai", "anthropic", "plain")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a route waits for its upstream, in seconds."""

    connect_s: float = 2.0
    first_byte_s: float = 60.0
    between_bytes_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """One target: scheme, host and port, and the path that is put in front (no trailing slash)."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: bytes = b""

    @property
    def authority(self) -> bytes:
        """What the upstream is sent as Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the route table, validated."""

    name: str
    path: bytes
    upstream: Upstream
    host: bytes | None = None
    methods: frozenset[bytes] | None = None
    strip_path: bool = False
    hold: Microcredits = Microcredits(0)
    price: Price = Price()
    errors: Dialect = "problem"
    quota_status: Literal[402, 429] = 402
    timeouts: Timeouts = Timeouts()

    def upstream_target(self, target: Target) -> bytes:
        """The request target to send: the normalised one, behind the upstream's own path."""
        if target.path == b"*":
            return b"*"
        path = target.path
        if self.strip_path:
            path = path[len(self.path.rstrip(b"/")) :]
            if not path and not self.upstream.path:
                path = b"/"
        return self.upstream.path + path + target.query


class RouteTable:
    """All routes, in an order in which the first that fits is the right one."""

    __slots__ = ("_compiled", "routes")

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        bases = [(route.path.rstrip(b"/"), route) for route in routes]
        bases.sort(key=lambda pair: (-len(pair[0]), pair[1].host is None, pair[1].methods is None))
        self._compiled = tuple((base, base + b"/", route) for base, route in bases)

    def match(self, method: bytes, host: bytes, path: bytes) -> Route | None:
        """The route for a request, or None. `path` is a normalised target's path, or `*` (which only `/` serves)."""
        for base, prefix, route in self._compiled:
            if not path.startswith(prefix) and path != base and not (path == b"*" and not base):
                continue
            if route.host is not None and route.host != _without_port(host):
                continue
            if route.methods is not None and method not in route.methods:
                continue
            return route
        return None


def _without_port(host: bytes) -> bytes:
    if host.startswith(b"["):
        return host.partition(b"]")[0].lower() + b"]"
    return host.partition(b":")[0].lower()
