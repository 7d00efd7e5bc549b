"""The pool of connections to one upstream. Acts.

It lends a connection to one borrower at a time, opens new ones up to a bound, lets borrowers wait up to another, and never
lends a connection that has bytes nobody asked for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import cast

from gateway.http1.upstream import Answering, ConnectionFailed, UpstreamConnection
from gateway.routing import Timeouts, Upstream


class UpstreamPool:
    """Connections to one upstream.

    At most `connections_max` are open; up to `waiting_max` borrowers wait for one; one that is unused for `idle_s` is closed.
    """

    def __init__(
        self, upstream: Upstream, timeouts: Timeouts, *, connections_max: int, waiting_max: int, idle_s: float
    ) -> None:
        self._upstream = upstream
        self._timeouts = timeouts
        self._connections_max = connections_max
        self._waiting_max = waiting_max
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._tls = ssl.create_default_context() if upstream.scheme == "https" else None
        self._idle: list[UpstreamConnection] = []
        self._open: set[UpstreamConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._waiting: deque[Answering] = deque()
        self._is_closed = False

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def borrow(self, borrower: Answering, *, fresh: bool = False) -> UpstreamConnection | None:
        """An unused connection, the last one used first; or None, and the borrower is called when there is one.

        `fresh` asks for a new connection: for a request that a kept one has just failed.
        """
        while self._idle and not fresh:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        if self._has_room:
            task = self._loop.create_task(self._connect(borrower), name=f"connect {self._upstream.host}")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        elif len(self._waiting) < self._waiting_max:
            self._waiting.append(borrower)
        else:
            borrower.on_no_connection(ConnectionFailed("full", "too many requests wait for this upstream"))
        return None

    def stop_waiting(self, borrower: Answering) -> None:
        """The borrower no longer needs a connection. (One that is being opened for it is kept for others.)"""
        if borrower in self._waiting:
            self._waiting.remove(borrower)

    def give_back(self, connection: UpstreamConnection) -> None:
        if self._is_closed:
            connection.abort()
        elif self._waiting:
            self._waiting.popleft().on_connection(connection)
        else:
            connection.idle_since = self._loop.time()
            self._idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection is gone: its place is free for somebody who waits."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_waiting()

    def close_idle(self, now: float) -> None:
        """Close what has been unused for too long. The oldest are at the front, because the last used is lent first."""
        stale = 0
        for connection in self._idle:
            if now - connection.idle_since < self._idle_s:
                break
            stale += 1
        expired, self._idle = self._idle[:stale], self._idle[stale:]
        for connection in expired:
            connection.abort()

    async def close(self) -> None:
        """Close everything; for the end of the process."""
        self._is_closed = True
        for task in self._opening:
            task.cancel()
        for connection in list(self._open):
            connection.abort()

    @property
    def _has_room(self) -> bool:
        return len(self._open) + len(self._opening) < self._connections_max

    async def _connect(self, borrower: Answering) -> None:
        """Open a connection for a borrower. What it counted for while it was opening is free again before anybody hears how
        that went, so that a failure makes room for the next who waits."""
        try:
            connection = await self._opened()
        except ConnectionFailed as error:
            self._opening.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            borrower.on_no_connection(error)
            self._serve_waiting()
        else:
            self._opening.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._open.add(connection)
            borrower.on_connection(connection)

    async def _opened(self) -> UpstreamConnection:
        """A new connection. Raises ConnectionFailed."""
        upstream, connect_s = self._upstream, self._timeouts.connect_s
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self),
                    upstream.host,
                    upstream.port,
                    ssl=self._tls,
                    server_hostname=upstream.host if self._tls else None,
                )
        except TimeoutError:
            raise ConnectionFailed("timeout", f"no connection within {connect_s:g} s") from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that can be nobody's
            words = getattr(error, "strerror", None) or type(error).__name__
            raise ConnectionFailed("unreachable", words) from error
        if not connection.is_usable:  # lost again before we were told of it
            raise ConnectionFailed("unreachable", "the connection was closed at once")
        return connection

    def _serve_waiting(self) -> None:
        """Something has become free: for whoever has waited longest."""
        if self._waiting and not self._is_closed and (self._idle or self._has_room):
            borrower = self._waiting.popleft()
            connection = self.borrow(borrower)
            if connection is not None:
                borrower.on_connection(connection)
