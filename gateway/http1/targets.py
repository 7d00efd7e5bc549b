"""The targets of one route: picks one for each request, leaves out those that fail, asks how they are. Acts.

`balancing` decides; each target has a pool of connections. A request whose target cannot be connected to is offered another
one (`borrow` with what was tried): nothing of it has been sent anywhere yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, MutableMapping
from functools import partial

import structlog

from gateway.balancing import choose
from gateway.http1.health import Probe
from gateway.http1.pool import PoolLimits, UpstreamPool
from gateway.http1.resolver import Resolver
from gateway.http1.upstream import Answering, ConnectionFailed, UpstreamConnection
from gateway.routing import Route
from gateway.tls import upstream_context

log = structlog.get_logger("gateway.targets")

TargetRow = tuple[str, str, int, int, int]
"""Route, target, 1 if it takes requests, connections, pending."""


class TargetGroup:
    """See the module's docstring. `events` are the worker's counts."""

    def __init__(
        self, route: Route, limits: PoolLimits, resolver: Resolver, events: MutableMapping[str, int]
    ) -> None:
        self.route = route
        self._events = events
        self._loop = asyncio.get_running_loop()
        tls = upstream_context(route.tls) if any(to.scheme == "https" for to in route.upstreams) else None
        self.pools = tuple(
            UpstreamPool(
                upstream, position, limits, resolver,
                tls if upstream.scheme == "https" else None, route.tls.server_name,
            )
            for position, upstream in enumerate(route.upstreams)
        )  # fmt: skip
        self._standings = tuple(pool.standing for pool in self.pools)
        self._next = 0
        self._probes = (
            [Probe(pool, route.health, self._on_health) for pool in self.pools] if route.health else []
        )
        self._only = self.pools[0] if len(self.pools) == 1 and not self._probes else None
        if len(self.pools) > 1:
            for pool in self.pools:
                pool.ejection = route.ejection
                pool.on_ejected = partial(self._on_ejected, pool)

    @property
    def size(self) -> int:
        return len(self.pools)

    def has_others(self, tried: Collection[int]) -> bool:
        """Whether a request that could not be sent to these targets can be tried at another one."""
        return any(
            standing.is_well and position not in tried for position, standing in enumerate(self._standings)
        )

    def borrow(
        self, borrower: Answering, *, tried: Collection[int] = (), fresh: bool = False
    ) -> UpstreamConnection | None:
        """A connection to the target that is least busy, or None, and the borrower is called. `tried` are positions of targets
        that could not be connected to: there must be others."""
        if self._only is not None:
            return self._only.borrow(borrower, fresh=fresh)
        for pool in self.pools:
            pool.standing.pending = pool.pending
        self._next += 1
        position = choose(
            self._standings,
            self._loop.time(),
            self.route.ejection,
            first=self._next % self.size,
            avoided=tried,
        )
        if position is None:
            borrower.on_no_connection(ConnectionFailed("unhealthy", "no target is well"))
            return None
        return self.pools[position].borrow(borrower, fresh=fresh)

    def stop_waiting(self, borrower: object) -> None:
        for pool in self.pools:
            pool.stop_waiting(borrower)

    def on_tick(self, now: float) -> None:
        for pool in self.pools:
            pool.close_idle(now)
        for probe in self._probes:
            probe.on_tick(now)

    def rows(self) -> list[TargetRow]:
        """How each target stands, for the metrics."""
        now = self._loop.time()
        return [
            (
                self.route.name, pool.upstream.address,
                int(pool.standing.is_well and not pool.standing.is_ejected(now)), pool.connections, pool.pending,
            )
            for pool in self.pools
        ]  # fmt: skip

    def retire(self) -> None:
        """The route is no longer in the table, or is another by now."""
        for probe in self._probes:
            probe.stop()
        for pool in self.pools:
            pool.retire()

    def close(self) -> None:
        for probe in self._probes:
            probe.stop()
        for pool in self.pools:
            pool.close()

    def _on_ejected(self, pool: UpstreamPool, why: str, seconds: float) -> None:
        self._events["target_ejected"] += 1
        log.warning(
            "target_ejected",
            route=self.route.name,
            target=pool.upstream.address,
            why=why,
            for_s=round(seconds, 3),
        )

    def _on_health(self, pool: UpstreamPool, is_well: bool, why: str) -> None:
        if is_well:
            log.info("target_well", route=self.route.name, target=pool.upstream.address)
        else:
            self._events["target_unhealthy"] += 1
            log.warning("target_unhealthy", route=self.route.name, target=pool.upstream.address, why=why)
