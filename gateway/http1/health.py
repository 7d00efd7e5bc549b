"""Health checks: one target is asked, again and again, whether it is well. Acts.

A check is a GET on a connection of its own, so that it finds out what a new request would. An answer of 200 to 399 within
the time is a good one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.http1.chunked import Data
from gateway.http1.head import ResponseHead
from gateway.http1.pool import UpstreamPool
from gateway.http1.upstream import ConnectionFailed, UpstreamConnection
from gateway.routing import HealthCheck


class Probe:
    """The checks of one target: an `Answering`, for one question at a time. `on_change` is told when its standing changes."""

    def __init__(
        self, pool: UpstreamPool, check: HealthCheck, on_change: Callable[[UpstreamPool, bool, str], None]
    ) -> None:
        self._pool = pool
        self._check = check
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._asked_at = 0.0
        self._is_asking = False
        self._is_stopped = False
        self._status = 0
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None

    def on_tick(self, now: float) -> None:
        """Ask when it is time; give up when the answer takes too long."""
        if self._is_asking:
            if now - self._asked_at > self._check.timeout_s:
                self._end(False, "no answer in time")
        elif now >= self._due and not self._is_stopped:
            self._due = now + self._check.every_s
            self._is_asking, self._asked_at, self._status = True, now, 0
            self._connecting = self._pool.connect_apart(self)

    def stop(self) -> None:
        self._is_stopped = True
        if self._is_asking:
            self._is_asking = False
            self._drop()

    def on_connection(self, connection: UpstreamConnection) -> None:
        self._connection, self._connecting = connection, None
        upstream = self._pool.upstream
        request = b"GET %b%b HTTP/1.1\r\nHost: %b\r\nUser-Agent: tollkeeper-health\r\nConnection: close\r\n\r\n" % (
            upstream.path, self._check.path, self._pool.authority,
        )  # fmt: skip
        connection.begin(self, request, is_head_request=False)

    def on_no_connection(self, error: ConnectionFailed) -> None:
        self._connecting = None
        self._end(False, error.kind)

    def on_interim(self, head: ResponseHead) -> None:
        """Not the answer yet."""

    def on_answer_head(self, head: ResponseHead, has_body: bool, first: Data) -> None:
        self._status = head.status

    def on_answer_body(self, data: Data) -> None:
        """Of no interest."""

    def on_switched(self, head: ResponseHead, first: bytes) -> bool:
        return False

    def on_answer_end(self, trailers: bytes) -> None:
        self._end(200 <= self._status < 400, f"status {self._status}")

    def on_upstream_lost(self) -> None:
        self._end(False, "the connection was lost")

    def on_upstream_full(self) -> None:
        """A request of a few lines fills nothing."""

    def on_upstream_drained(self) -> None:
        """Nothing waits."""

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        connecting, self._connecting = self._connecting, None
        if connection is not None:
            connection.abort()
        elif connecting is not None:
            connecting.cancel()  # it would come too late for its question

    def _end(self, is_well: bool, why: str) -> None:
        if not self._is_asking:
            return
        self._is_asking = False
        self._drop()
        if self._pool.standing.note_check(self._loop.time(), is_well, self._check):
            self._on_change(self._pool, is_well, why)
