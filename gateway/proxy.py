"""What all exchanges of a worker share: routes, callers, ledger, pools, counts. Acts, once a tick.

Made by `server`, handed to connections and exchanges; holds no state of a single request.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from gateway.contract.layout import Layout
from gateway.directory import Directory
from gateway.estimating import Ahead
from gateway.http1.head import RequestHead
from gateway.http1.pool import PoolLimits
from gateway.http1.resolver import Resolver
from gateway.http1.target import Target
from gateway.http1.targets import TargetGroup
from gateway.ledger import Ledger
from gateway.logs import AccessLog
from gateway.metering import MeterPlan
from gateway.metrics import Metrics, Snapshot
from gateway.networks import Networks
from gateway.patience import least_patience_s
from gateway.pricing import NO_RATES, Rates
from gateway.redis_pipe import RedisAddress, bulk
from gateway.refusals import Reason, Refusal
from gateway.refused import RefusalCounts
from gateway.routing import Route, RouteTable
from gateway.settings import GatewaySettings
from gateway.tls import stamp, upstream_files

if TYPE_CHECKING:
    from gateway.contract.token import Pepper
    from gateway.http1.client_end import ClientEnd

TICK_S: Final = 0.1
CLIENTS_A_SLICE: Final = 200
SLICES_MAX: Final = 16
SLICE_S: Final = 0.005
TURNED_AWAY_MAX: Final = 4_096
"""Connections beyond a limit that are told so at one time; more are closed without a word."""

REPEATED_HEAD_MAX: Final = 2_048
"""The longest head that is remembered for comparison with the next on its connection, in bytes."""

log = structlog.get_logger("gateway")


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """A route with what is prepared for it: its targets, and its arguments to admit."""

    route: Route
    routes: RouteTable
    """The table that the route is from: another one since means that targets are to be matched again."""
    name: bytes
    targets: TargetGroup
    amount: bytes | None
    """What is held for a request, as an argument to admit; None where that depends on the request."""
    ahead: Ahead | None
    """What of a request's body the amount or the rates depend on."""
    rates: Rates
    """What units cost, as long as no field says otherwise."""
    is_fixed: bool
    """Whether what a request costs is known before it is forwarded."""
    meters: MeterPlan | None
    patience_s: float
    """What may stand still for less than this may do so whoever is waited for."""


@dataclass(frozen=True, slots=True)
class LastHead:
    """What the last head on a connection was found to say. Workloads that poll, and many that post, send the same head again
    and again: the same bytes have the same reading, and comparing them costs 0.05 µs where reading and recognising cost 7.

    `digest` is of the token in it; whoever that stands for is looked up, and admitted or refused, each time.
    """

    raw: bytes
    head: RequestHead
    target: Target
    lane: Lane
    digest: bytes


GroupKey = tuple[object, ...]


def pseudonym(pepper: Pepper) -> bytes:
    """What an installation calls itself in Via: the same for all its gateways, and no other's. Says nothing of the pepper."""
    return b"tollkeeper-" + hashlib.blake2b(b"via", key=pepper, digest_size=5).hexdigest().encode()


def group_key(route: Route) -> GroupKey:
    """What makes a route's targets the same as before, files and all: then their connections are kept at a reload."""
    stamps = tuple(stamp(path) for path in upstream_files(route.tls))
    return (
        route.name, route.upstreams, route.tls, route.ejection, route.health, route.timeouts.connect_s, stamps,
    )  # fmt: skip


class Proxy:
    """The worker's shared parts, and its heartbeat."""

    def __init__(
        self, settings: GatewaySettings, routes: RouteTable, pepper: Pepper, access_log: AccessLog
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.access_log = access_log
        self.loop = asyncio.get_running_loop()
        names = Layout(settings.shards)
        self._worker_id = secrets.token_hex(7)
        self._worker_id_bytes = self._worker_id.encode()
        self._requests_made = 0
        self.pseudonym = pseudonym(pepper)
        self.trusted = Networks(settings.trusted_networks)
        self.hold_ttl_s = settings.hold_ttl_s
        self.ledger = Ledger(
            RedisAddress.parse(settings.redis_url), names, timeout_s=settings.redis_timeout_s,
            depth_max=settings.redis_depth_max, hold_ttl_ms=int(settings.hold_ttl_s * 1000),
            client_name=f"tollkeeper-gateway-{self._worker_id}",
        )  # fmt: skip
        self.directory = Directory(self.ledger, names, pepper, lookups_max=settings.lookups_max)
        self._resolver = Resolver(settings.dns_ttl_s)
        self._groups: dict[GroupKey, TargetGroup] = {}
        self.routes = routes
        self.lanes: Mapping[str, Lane] = {}
        self.use_routes(routes)
        self.clients: set[ClientEnd] = set()
        self.turned_away: set[ClientEnd] = set()
        """Connections that are told that they cannot stay."""
        self.arriving: set[asyncio.Task[None]] = set()
        """Connections whose header or handshake is under way."""
        self._clients_from: defaultdict[str, int] = defaultdict(int)
        self.in_flight = 0
        self.is_draining = False
        self.refused = RefusalCounts(self.ledger, self._worker_id)
        self._ticker: asyncio.TimerHandle | None = None
        self.ticked_at = self.loop.time()
        """When the last tick was: the time, to a tenth of a second."""
        self._round: list[ClientEnd] = []
        self._slice = 0

    def start(self) -> None:
        self.ledger.start()
        self._tick()

    def use_routes(self, routes: RouteTable) -> None:
        """Serve by this route table from the next request on. Connections to targets that are in both are kept; what is under
        way at others finishes. Raises TlsFilesError, and then the old table stays."""
        lanes: dict[str, Lane] = {}
        groups: dict[GroupKey, TargetGroup] = {}
        for route in routes.routes:
            key = group_key(route)
            groups[key] = self._groups.get(key) or self._target_group(route)
            lanes[route.name] = self._lane(route, routes, groups[key])
        for key in self._groups.keys() - groups.keys():
            self._groups[key].retire()
        self.routes, self.lanes, self._groups = routes, lanes, groups

    def _lane(self, route: Route, routes: RouteTable, targets: TargetGroup) -> Lane:
        estimate, table = route.estimate, route.price.table
        pointers = dict.fromkeys((*(estimate.json if estimate else ()), *(table.request if table else ())))
        rates = route.price.units if table is None else table.otherwise or NO_RATES
        return Lane(
            route, routes, route.name.encode(), targets,
            amount=None if route.reads_ahead or estimate else bulk(route.hold),
            ahead=Ahead(tuple(pointers)) if pointers else None, rates=rates,
            is_fixed=route.price.is_fixed, meters=route.meters,
            patience_s=least_patience_s(route.timeouts, self.settings.body_timeout_s),
        )  # fmt: skip

    def take_in(self, client: ClientEnd) -> Refusal | None:
        """Count a new connection; or say why it cannot stay. One that cannot takes nobody's place while it is told so."""
        peer = client.hop.peer
        refusal = self._why_full(client)
        if refusal is None:
            self.clients.add(client)
            self._clients_from[peer] += 1
        elif len(self.turned_away) < TURNED_AWAY_MAX:
            self.turned_away.add(client)
        else:
            client.abort()
        return refusal

    def _why_full(self, client: ClientEnd) -> Refusal | None:
        settings = self.settings
        if len(self.clients) >= settings.connections_max:
            self.metrics.events["connections_refused"] += 1
            return Refusal(Reason.OVERLOADED, detail="Too many connections are open.")
        here = self.clients_from(client.hop.peer)
        if here >= settings.connections_per_address_max and not client.hop.is_trusted:
            self.metrics.events["address_connections_refused"] += 1
            return Refusal(
                Reason.TOO_MANY_CONNECTIONS,
                detail="Too many connections are open from this address. Close or reuse some.",
            )
        return None

    def clients_from(self, peer: str) -> int:
        """How many connections are open from an address."""
        return self._clients_from.get(peer, 0)

    def let_go(self, client: ClientEnd) -> None:
        """A connection is gone."""
        self.turned_away.discard(client)
        if client in self.clients:
            self.clients.discard(client)
            peer = client.hop.peer
            self._clients_from[peer] -= 1
            if not self._clients_from[peer]:
                del self._clients_from[peer]

    async def close(self, *, settle_s: float = 3.0) -> None:
        """The end: everything settled if Redis lets us within `settle_s`, then every connection closed."""
        deadline = self.loop.time() + settle_s
        self.refused.flush()
        ledger = self.ledger
        while self.loop.time() < deadline and (ledger.unsettled or ledger.depth or ledger.pipe.depth):  # noqa: ASYNC110 - the end of the process; an event for it would be paid by every request
            await asyncio.sleep(0.01)
        if self.ledger.unsettled:
            log.error("settlements_left_to_expire", count=self.ledger.unsettled)
        if self._ticker is not None:
            self._ticker.cancel()
        for group in self._groups.values():
            group.close()
        self._resolver.close()
        self.directory.close()
        await self.ledger.close()
        self.access_log.close()

    def next_request_id(self) -> bytes:
        """24 hex digits: 14 of this worker, 10 that count. Unique for as long as rows are kept."""
        self._requests_made += 1
        return b"%b%010x" % (self._worker_id_bytes, self._requests_made)

    def snapshot(self) -> Snapshot:
        """This worker's counts and states, for the supervisor."""
        targets = [row for group in self._groups.values() for row in group.rows()]
        pipe = self.ledger.pipe
        self.metrics.gauges = {
            "in_flight": self.in_flight,
            "client_connections": len(self.clients),
            "upstream_connections": sum(
                pool.connections for group in self._groups.values() for pool in group.pools
            ),
            "upstream_waiting": sum(pool.waiting for group in self._groups.values() for pool in group.pools),
            "redis_pipe_depth": self.ledger.depth,
            "cold_lookups": self.directory.lookups,
            "known_callers": self.directory.known_count,
            "unsettled": self.ledger.unsettled,
            "ready": int(self.is_ready),
            "workers": int(not self.is_draining),
        }
        self.metrics.targets = targets
        events = self.metrics.events
        events["redis_lost"] = pipe.losses
        events["redis_timeout"] = pipe.timeouts
        events["script_failed"] = self.ledger.script_errors
        events["settled_elsewhere"] = self.ledger.settled_elsewhere
        events["settlement_dropped"] = self.ledger.settlements_dropped
        events["access_line_dropped"] = self.access_log.dropped
        events["token_verified_by_hash"] = self.directory.verifications
        return self.metrics.snapshot()

    @property
    def is_ready(self) -> bool:
        return self.ledger.is_ready and not self.is_draining

    def _target_group(self, route: Route) -> TargetGroup:
        settings = self.settings
        limits = PoolLimits(
            settings.upstream_connections_max, settings.upstream_waiting_max, settings.upstream_idle_s, route.timeouts.connect_s
        )  # fmt: skip
        return TargetGroup(route, limits, self._resolver, self.metrics.events)

    def _tick(self) -> None:
        self.ticked_at = now = self.loop.time()
        self._ticker = self.loop.call_at(now + TICK_S, self._tick)
        self.ledger.on_tick(now)
        for group in self._groups.values():
            group.on_tick(now)
        self.refused.on_tick(now)
        if not self._round:
            self._round = [*self.clients, *self.turned_away]
            self._slice = max(CLIENTS_A_SLICE, len(self._round) // SLICES_MAX + 1)
            self._look_at_slice()

    def _look_at_slice(self) -> None:
        """Look at some of the connections, and at the others in a moment: thousands of them at once would make every request
        that arrives meanwhile wait."""
        now, clients = self.loop.time(), self._round
        looked_at = clients[-self._slice :]
        del clients[-self._slice :]
        if clients:
            self.loop.call_later(SLICE_S, self._look_at_slice)
        for client in looked_at:
            try:
                client.on_tick(now)
            except Exception as error:  # noqa: BLE001 - a defect: told to the loop's handler, and the others are looked at
                client.abort()
                self.loop.call_exception_handler(
                    {"message": "a connection's tick failed", "exception": error}
                )
