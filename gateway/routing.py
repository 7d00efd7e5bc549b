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
from gateway.metering import MeterPlan
from gateway.pricing import Estimate, Price

Dialect = Literal["problem", "openai", "anthropic", "plain"]
DIALECTS: Final[tuple[Dialect, ...]] = ("problem", "openai", "anthropic", "plain")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a route waits for its upstream, in seconds."""

    connect_s: float = 2.0
    first_byte_s: float = 60.0
    between_bytes_s: float = 60.0
    tunnel_idle_s: float = 300.0
    """How long an upgraded connection may be silent in both directions."""
    half_closed_s: float = 1.0
    """How long a client that sends no more is still answered: it may have gone."""


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
        return self.address.encode("ascii")

    @property
    def address(self) -> str:
        """host:port, without the port where the scheme implies it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How https targets are proved, and who we are to them: paths of PEM files."""

    ca: str | None = None
    """Authorities to trust instead of the system's."""
    certificate: str | None = None
    key: str | None = None
    server_name: str | None = None
    """The name to ask for and to verify, instead of the URL's host."""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Ejection:
    """When a target that fails is left out, and for how long: longer each time it fails again."""

    after_failures: int = 3
    for_s: float = 1.0
    for_max_s: float = 10.0
    slow_start_s: float = 5.0
    """After it is back: how long until it takes its whole share again."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How targets are asked whether they are well."""

    path: bytes
    every_s: float = 5.0
    timeout_s: float = 2.0
    healthy_after: int = 2
    unhealthy_after: int = 3


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the route table, validated."""

    name: str
    path: bytes
    upstreams: tuple[Upstream, ...]
    host: bytes | None = None
    methods: frozenset[bytes] | None = None
    strip_path: bool = False
    raw_path: bool = False
    upgrade: bool = True
    client_certificate: bool = False
    hold: Microcredits = Microcredits(0)
    """What is held at least; with an `estimate`, its fixed part."""
    hold_step: Microcredits = Microcredits(0)
    """By how much a hold grows that is outgrown, if there is room; else by what is needed."""
    estimate: Estimate | None = None
    read_ahead_bytes: int = 65_536
    """How much of a body may be read before admission, where the estimate or the rates depend on it."""
    price: Price = Price()
    meters: MeterPlan | None = None
    errors: Dialect = "problem"
    quota_status: Literal[402, 429] = 402
    timeouts: Timeouts = Timeouts()
    tls: UpstreamTls = UpstreamTls()
    ejection: Ejection = Ejection()
    health: HealthCheck | None = None

    @property
    def reads_ahead(self) -> bool:
        """Whether what is held, or at which rates, depends on the request's body."""
        estimate, table = self.estimate, self.price.table
        return bool((estimate and estimate.json) or (table and table.request))

    def upstream_target(self, target: Target, upstream: Upstream) -> bytes:
        """The request target to send: the normalised one, behind the upstream's own path."""
        if target.path == b"*":
            return b"*"
        path = target.path
        if self.strip_path:
            path = path[len(self.path.rstrip(b"/")) :]
            if not path and not upstream.path:
                path = b"/"
        return upstream.path + path + target.query


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
