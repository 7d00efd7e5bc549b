"""One pipelined connection to one Redis node: the only Redis I/O of the hot path. Acts.

All commands of one loop tick leave in one write (a transport would send the first at once), and replies are matched
by order, so a command costs an append and a callback instead of a future and a system call. Redis answers in order on a
connection; therefore a connection on which a wait ran out, or whose bytes are not RESP, is closed and never used again:
nobody can be handed somebody else's reply.

Every command has an end: its reply, or `PipeLost` when the connection is gone or `timeout_s` passed without it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import hiredis
import structlog

Reply = Any
"""bytes, int, None, list of these, hiredis.ReplyError, or PipeLost."""

OnReply = Callable[[Reply], None]

RECONNECT_DELAY_MAX_S: Final = 1.0
_CONNECT_TIMEOUT_S: Final = 2.0
_COMPANY_WAIT_S: Final = 0.001

log = structlog.get_logger("gateway.redis")


class PipeLost(Exception):
    """The connection ended before the reply came: the command may or may not have run."""


class NodeRefused(Exception):
    """The node answered the handshake with an error (authentication, wrong database)."""


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a node is, out of redis://user:password@host:port/database, rediss:// or unix:///path."""

    host: str
    port: int
    username: str | None
    password: str | None
    database: int
    tls: bool
    path: str | None = None

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Raises ValueError with words that do not repeat the password."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # its words repeat what they could not read, which may be a part of the password
            raise ValueError("the Redis URL has an invalid host or port") from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("a Redis URL begins with redis://, rediss:// or unix://")
        database = parts.path.strip("/") if parts.scheme != "unix" else ""
        if database and not database.isdigit():
            raise ValueError("what follows the host in a Redis URL is the database's number")
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port or 6379,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            database=int(database or 0),
            tls=parts.scheme == "rediss",
            path=parts.path if parts.scheme == "unix" else None,
        )

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}/{self.database}"


def encode_command(*parts: bytes | str | int) -> bytes:
    """A command in RESP."""
    pieces = [b"*%d\r\n" % len(parts)]
    pieces.extend(bulk(part) for part in parts)
    return b"".join(pieces)


def bulk(part: bytes | str | int) -> bytes:
    """One argument in RESP."""
    data = part if isinstance(part, bytes) else str(part).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


class _Connection(asyncio.Protocol):
    """One life of the connection. Its owner makes a new one after each loss."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_flush: Callable[[], None],
        on_lost: Callable[[Exception | None], None],
    ) -> None:
        self._loop = loop
        self._on_flush = on_flush
        self._on_lost = on_lost
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._transport: asyncio.WriteTransport | None = None
        self._outbox: list[bytes] = []
        self._is_flush_due = False
        self._late_flush: asyncio.TimerHandle | None = None
        self.waiting: deque[OnReply] = deque()
        self.sent = 0
        self.replied = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's do not derive from asyncio's

    def send(self, pieces: Sequence[bytes], on_reply: OnReply, may_wait: bool) -> None:
        self._outbox.extend(pieces)
        self.waiting.append(on_reply)
        self.sent += 1
        self.flush_soon(may_wait)

    def flush_soon(self, may_wait: bool) -> None:
        if may_wait:
            if self._late_flush is None and not self._is_flush_due:
                self._late_flush = self._loop.call_later(_COMPANY_WAIT_S, self._flush_late)
        elif not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush_late(self) -> None:
        self._late_flush = None
        self._flush()

    def _flush(self) -> None:
        self._is_flush_due = True  # until it is written: what is sent meanwhile goes with it
        self._on_flush()
        self._is_flush_due = False
        if self._outbox and self._transport is not None:
            self._transport.write(b"".join(self._outbox))
            self._outbox.clear()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        waiting = self.waiting
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not Ellipsis:
                self.replied += 1
                waiting.popleft()(reply)
                reply = reader.gets()
        except hiredis.ProtocolError as error:
            log.error("redis_protocol_error", error=str(error))
            self.abort()
        except IndexError:
            log.error("redis_reply_without_command")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._outbox.clear()
        lost = PipeLost(str(exc) if exc else "the connection closed")
        while self.waiting:
            self.waiting.popleft()(lost)
        self._on_lost(exc)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RedisPipe:
    """The connection to one node, kept up: handshake, bounded waits, reconnection with a growing delay.

    `on_connected` runs after each handshake, with the pipe ready to send; `on_lost` after each loss. `on_flush` runs before
    each write that `flush_soon` or `send` has asked for: what it sends leaves with it.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        timeout_s: float,
        on_connected: Callable[[], None],
        on_lost: Callable[[], None],
        on_flush: Callable[[], None] = lambda: None,
        client_name: str,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_flush = on_flush
        self._client_name = client_name
        self._loop = asyncio.get_running_loop()
        self._connection: _Connection | None = None
        self._marks: deque[tuple[float, int]] = deque()
        self._keeper: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._is_closing = False
        self.losses = 0
        self.timeouts = 0

    def start(self) -> None:
        """Begin to connect, and stay connected until `close`."""
        self._keeper = self._loop.create_task(self._keep_connected(), name=f"redis {self._address}")

    async def close(self) -> None:
        self._is_closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._connection is not None:
            self._connection.abort()

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def depth(self) -> int:
        """Commands sent and not yet answered."""
        return len(self._connection.waiting) if self._connection else 0

    def send(self, pieces: Sequence[bytes], on_reply: OnReply, *, may_wait: bool = False) -> bool:
        """Queue one command (RESP, in any number of pieces) for this tick's write; False if there is no connection.

        A command that `may_wait` leaves with the next one that may not, or after a millisecond.
        """
        connection = self._connection
        if connection is None:
            return False
        connection.send(pieces, on_reply, may_wait)
        return True

    def flush_soon(self, *, may_wait: bool = False) -> bool:
        """Have `on_flush` called in this tick, before its write, or, if it `may_wait`, within a millisecond. False if there is
        no connection."""
        if self._connection is None:
            return False
        self._connection.flush_soon(may_wait)
        return True

    async def call(self, *parts: bytes | str | int) -> Reply:
        """One command, awaited: for the cold paths. Raises PipeLost, hiredis.ReplyError."""
        future: asyncio.Future[Reply] = self._loop.create_future()

        def resolve(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        if not self.send((encode_command(*parts),), resolve):
            raise PipeLost("Redis is not connected")
        reply = await future
        if isinstance(reply, Exception):
            raise reply
        return reply

    def reconnect(self) -> None:
        """End this connection; another is made at once."""
        if self._connection is not None:
            self._drop(self._connection)

    def check_waits(self, now: float) -> None:
        """Close the connection if a command has waited longer than the bound. Call a few times a second.

        Marks say how many commands had been sent at a moment; if the oldest mark that is `timeout_s` old is not yet
        answered, replies are overdue. That costs nothing for each command.
        """
        connection = self._connection
        if connection is None:
            return
        marks = self._marks
        while marks and connection.replied >= marks[0][1]:
            marks.popleft()
        if marks and now - marks[0][0] > self._timeout_s:
            self.timeouts += 1
            log.error(
                "redis_timeout",
                node=str(self._address),
                waited_s=round(now - marks[0][0], 3),
                depth=self.depth,
            )
            self._drop(connection)
            return
        if connection.sent > connection.replied and (not marks or marks[-1][1] < connection.sent):
            marks.append((now, connection.sent))

    def _drop(self, connection: _Connection) -> None:
        if self._connection is connection:
            self._connection = None
        connection.abort()

    async def _keep_connected(self) -> None:
        delay_s = 0.0
        announced = False
        while True:
            try:
                connection = await self._connect()
            except (OSError, TimeoutError, PipeLost, NodeRefused, ssl.SSLError) as error:
                if not announced:
                    log.error(
                        "redis_unreachable", node=str(self._address), error=str(error) or type(error).__name__
                    )
                    announced = True
                delay_s = min(delay_s * 2 + 0.05, RECONNECT_DELAY_MAX_S)
                await asyncio.sleep(delay_s)
                continue
            log.info("redis_connected", node=str(self._address))
            announced, delay_s = False, 0.0
            self._marks.clear()
            self._lost.clear()
            self._connection = connection
            self._on_connected()
            await self._lost.wait()
            await asyncio.sleep(0.01)

    async def _connect(self) -> _Connection:
        address = self._address

        def factory() -> _Connection:
            return _Connection(self._loop, self._on_flush, self._note_loss)

        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            if address.path is not None:
                _, connection = await self._loop.create_unix_connection(factory, address.path)
            else:
                context = ssl.create_default_context() if address.tls else None
                _, connection = await self._loop.create_connection(
                    factory, address.host, address.port, ssl=context
                )
            try:
                await self._shake_hands(connection)
            except BaseException:
                connection.abort()
                raise
        return connection

    async def _shake_hands(self, connection: _Connection) -> None:
        address = self._address
        commands: list[tuple[str, ...]] = []
        if address.password is not None:
            names = (address.username,) if address.username else ()
            commands.append(("AUTH", *names, address.password))
        if address.database:
            commands.append(("SELECT", str(address.database)))
        commands.append(("CLIENT", "SETNAME", self._client_name))
        for command in commands:
            future: asyncio.Future[Reply] = self._loop.create_future()

            def resolve(reply: Reply, future: asyncio.Future[Reply] = future) -> None:
                if not future.done():  # it is when the time for connecting has run out
                    future.set_result(reply)

            connection.send((encode_command(*command),), resolve, False)
            reply = await future
            if isinstance(reply, hiredis.ReplyError):
                raise NodeRefused(f"{command[0]}: {reply}")
            if isinstance(reply, Exception):
                raise reply

    def _note_loss(self, exc: Exception | None) -> None:
        if self._is_closing:
            return
        if self._connection is not None:
            log.error("redis_lost", node=str(self._address), error=str(exc) if exc else "closed")
        self._connection = None
        self.losses += 1
        self._lost.set()
        self._on_lost()
