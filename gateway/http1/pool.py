"""The pool of connections to one target of a route. Acts.

It lends a connection to one borrower at a time, opens new ones up to a bound, lets borrowers wait up to another, and never
lends a connection that has bytes nobody asked for. It tells its target's standing what went well and what did not.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from gateway.balancing import Standing
from gateway.http1.head import ResponseHead
from gateway.http1.resolver import Resolver, is_address
from gateway.http1.upstream import Answering, ConnectionFailed, UpstreamConnection
from gateway.routing import Ejection, Upstream

REPEATED_ANSWER_MAX: Final = 2_048
"""The longest head of an answer that is remembered for comparison with the next one of its target, in bytes."""

CLOSING_S: Final = 10.0
_NAME_CHECKED_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """At most `connections_max` connections are open; up to `waiting_max` borrowers wait for one; one that is unused for
    `idle_s` is closed; opening one takes at most `connect_s`."""

    connections_max: int
    waiting_max: int
    idle_s: float
    connect_s: float


class UpstreamPool:
    """Connections to one target."""

    def __init__(
        self,
        upstream: Upstream,
        position: int,
        limits: PoolLimits,
        resolver: Resolver,
        tls: ssl.SSLContext | None,
        server_name: str | None,
    ) -> None:
        self.upstream = upstream
        self.position = position
        """Of the target in its route."""
        self.authority = upstream.authority
        self.standing = Standing()
        self.ejection = Ejection()
        self.on_ejected: Callable[[str, float], None] | None = None
        """Called with the reason and the seconds when the target is left out; None where it is the only one."""
        self._limits = limits
        self._resolver = resolver
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._server_name = (server_name or upstream.host) if tls is not None else None
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._apart: set[asyncio.Task[None]] = set()
        self._waiting: deque[Answering] = deque()
        self._opened_count = 0
        self._is_named = not is_address(upstream.host)
        self._name_check_due = 0.0
        self._last_raw = b""
        self._last_answer: ResponseHead | None = None
        self._is_retired = False
        self._looked_at = self._loop.time()
        """When `close_idle` was called last: the time, to a tenth of a second."""

    def known_answer(self, raw: bytes) -> ResponseHead | None:
        """The reading of an answer's head, if it is the last one that was read, to the byte: within one second, in which Date
        stays, many are. Comparing costs 0.05 µs, reading 2."""
        return self._last_answer if raw == self._last_raw else None

    def know_answer(self, raw: bytes, head: ResponseHead) -> None:
        if len(raw) <= REPEATED_ANSWER_MAX:
            self._last_raw, self._last_answer = raw, head

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def pending(self) -> int:
        """Connections lent, being opened, and waited for."""
        return len(self._open) - len(self._idle) + len(self._opening) + len(self._waiting)

    def borrow(self, borrower: Answering, *, fresh: bool = False) -> UpstreamConnection | None:
        """An unused connection, the last one used first; or None, and the borrower is called when there is one.

        `fresh` asks for a new connection: for a request that a kept one has just failed.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        if self._has_room:
            task = self._loop.create_task(self._connect(borrower), name=f"connect {self.upstream.host}")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        elif len(self._waiting) < self._limits.waiting_max:
            self._waiting.append(borrower)
        else:
            borrower.on_no_connection(ConnectionFailed("full", "too many requests wait for this upstream"))
        return None

    def connect_apart(self, borrower: Answering) -> asyncio.Task[None]:
        """Open a connection for a health check: it takes nobody's place, waits for none, and is lent to nobody else."""
        task = self._loop.create_task(
            self._connect(borrower, is_apart=True), name=f"check {self.upstream.host}"
        )
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)
        return task

    def stop_waiting(self, borrower: object) -> None:
        """The borrower no longer needs a connection. (One that is being opened for it is kept for others.)"""
        if borrower in self._waiting:
            self._waiting.remove(cast("Answering", borrower))

    def give_back(self, connection: UpstreamConnection) -> None:
        if self._is_retired or (self._is_named and not self._is_current(connection)):
            connection.abort()
        elif self._waiting:
            self._waiting.popleft().on_connection(connection)
        else:
            connection.idle_since = self._looked_at
            self._idle.append(connection)

    def abort_later(self, connection: UpstreamConnection) -> None:
        """An upstream that does not read must not keep what is closed."""
        self._loop.call_later(CLOSING_S, connection.abort)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone: its place is free for somebody who waits."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_waiting()

    def note_answer(self) -> None:
        """The target has answered."""
        standing = self.standing
        if standing.failures or standing.ejections:
            standing.note_answer(self._loop.time(), self.ejection)

    def note_failure(self, why: str) -> None:
        """The target could not be connected to, ended a connection, or did not answer in time."""
        if self.on_ejected is None:
            return
        seconds = self.standing.note_failure(self._loop.time(), self.ejection)
        if seconds:
            self.on_ejected(why, seconds)

    def close_idle(self, now: float) -> None:
        """Close what has been unused for too long, or leads to an address that the name has no more. The oldest are at the
        front, because the last used is lent first."""
        self._looked_at = now
        stale = 0
        for connection in self._idle:
            if now - connection.idle_since < self._limits.idle_s:
                break
            stale += 1
        expired, self._idle = self._idle[:stale], self._idle[stale:]
        if now >= self._name_check_due and self._open:
            self._name_check_due = now + _NAME_CHECKED_EVERY_S
            host = self.upstream.host
            self._resolver.refresh(host)
            expired += [idle for idle in self._idle if not self._is_current(idle)]
        for connection in expired:
            connection.abort()

    def retire(self) -> None:
        """The target is no longer in the route table: lend nothing twice. Requests under way finish."""
        self._is_retired = True
        for connection in list(self._idle):
            connection.abort()

    def close(self) -> None:
        """Close everything; for the end of the process."""
        self._is_retired = True
        self._waiting.clear()
        for task in self._opening | self._apart:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    def _is_current(self, connection: UpstreamConnection) -> bool:
        return self._resolver.is_current(self.upstream.host, connection.address)

    @property
    def _has_room(self) -> bool:
        return len(self._open) + len(self._opening) < self._limits.connections_max

    async def _connect(self, borrower: Answering, *, is_apart: bool = False) -> None:
        """Open a connection for a borrower. What it counted for while it was opening is free again before anybody hears how
        that went, so that a failure makes room for the next who waits."""
        try:
            connection = await self._opened()
        except ConnectionFailed as error:
            self._opening.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            if not is_apart:
                self.note_failure(error.kind)
            borrower.on_no_connection(error)
            self._serve_waiting()
        else:
            self._opening.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            connection.is_apart = is_apart
            if not is_apart:
                self._open.add(connection)
            borrower.on_connection(connection)

    async def _opened(self) -> UpstreamConnection:
        """A new connection. Raises ConnectionFailed."""
        connect_s = self._limits.connect_s
        try:
            async with asyncio.timeout(connect_s):
                connection = await self._opened_to_any(await self._resolver.addresses(self.upstream.host))
        except TimeoutError:
            raise ConnectionFailed(
                "timeout", f"no connection within {connect_s:g} s", self.position
            ) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that can be nobody's
            words = getattr(error, "strerror", None) or type(error).__name__
            raise ConnectionFailed("unreachable", words, self.position) from error
        if not connection.is_usable:  # lost again before we were told of it
            raise ConnectionFailed("unreachable", "the connection was closed at once", self.position)
        return connection

    async def _opened_to_any(self, addresses: tuple[str, ...]) -> UpstreamConnection:
        """Try the addresses of the name in turn, beginning with another one each time; each but the last has its part of the
        time only. Raises what the last one raised."""
        self._opened_count += 1
        start = self._opened_count % len(addresses)
        for left, address in zip(range(len(addresses), 0, -1), (addresses * 2)[start:], strict=False):
            part_s = self._limits.connect_s / len(addresses) if left > 1 else None
            try:
                async with asyncio.timeout(part_s):
                    return await self._opened_to(address)
            except OSError:  # TimeoutError is one
                if left == 1:
                    raise
        raise AssertionError("a name that was resolved has an address")

    async def _opened_to(self, address: str) -> UpstreamConnection:
        _, connection = await self._loop.create_connection(
            lambda: UpstreamConnection(self),
            address,
            self.upstream.port,
            ssl=self._tls,
            server_hostname=self._server_name,
        )
        connection.address = address
        return connection

    def _serve_waiting(self) -> None:
        """Something has become free: for whoever has waited longest."""
        if self._waiting and (self._idle or self._has_room):
            borrower = self._waiting.popleft()
            connection = self.borrow(borrower)
            if connection is not None:
                borrower.on_connection(connection)
