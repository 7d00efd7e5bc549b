"""An upstream that remembers everything it was sent, byte for byte, and can be slow, silent, broken or endless.

It reads heads with a plain split and no grammar of the gateway's, so that it sees what is really on the wire. What it
answers is asked for in the target's second segment (`/<route>/<play>/<argument>…`); see `_PLAYS` at the end. One instance
serves a whole run of tests: a test finds its own requests by the key they came with.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.system.loop_thread import LoopThread

PIECE = b"0123456789abcdef" * 16_384
"""256 KiB."""

_HEAD_LIMIT = 1 << 20


@dataclass(slots=True, eq=False)
class Seen:
    """One request as it arrived. Times are of the monotonic clock."""

    connection: int
    method: str
    target: str
    fields: list[tuple[str, str]]
    arrived: float
    body_bytes: int = 0
    body_is_whole: bool = False
    trailers: list[tuple[str, str]] = field(default_factory=list)
    closed_at: float | None = None
    """When its connection ended, if it did while the request was being answered."""
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def all(self, name: str) -> list[str]:
        """Values of every field whose name folds to this one: case aside, and underscores as hyphens."""
        wanted = fold(name)
        return [value for given, value in self.fields if fold(given) == wanted]

    def one(self, name: str) -> str:
        """The only value of a field; fails if there is none, or more than one under any spelling."""
        values = self.all(name)
        assert len(values) == 1, f"{name} came {len(values)} times: {values}"
        return values[0]

    @property
    def key(self) -> str | None:
        values = self.all("x-principal-key-id")
        return values[0] if values else None

    @property
    def request_id(self) -> str:
        return self.one("x-request-id")


def fold(name: str) -> str:
    return name.strip().lower().replace("_", "-")


class RecordingUpstream:
    """Listens in a loop thread of the caller's, with a context for it over TLS."""

    def __init__(
        self, thread: LoopThread, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._thread = thread
        self.seen: list[Seen] = []
        self.errors: list[str] = []
        """What reached it that is not a request."""
        self._connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = thread.run(self._listen(host, port, tls))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"

    async def _listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
        return await asyncio.start_server(self._serve, host, port, limit=_HEAD_LIMIT, backlog=4096, ssl=tls)

    def close(self) -> None:
        self._thread.run(self._close())

    async def _close(self) -> None:
        self._server.close()
        await self._hang_up()

    def hang_up(self) -> None:
        """Close every connection, as a restarted service would."""
        self._thread.run(self._hang_up())

    async def _hang_up(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def of(self, key: str) -> list[Seen]:
        """What came with this key, in the order of arrival."""
        return [seen for seen in list(self.seen) if seen.key == key]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        number = self._connections
        self._writers.add(writer)
        seen: Seen | None = None
        try:
            while True:
                seen = None
                head = await reader.readuntil(b"\r\n\r\n")
                seen = self._record(number, head)
                if seen is None or not await self._answer(seen, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            if seen is not None:
                seen.closed_at = time.monotonic()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _record(self, number: int, head: bytes) -> Seen | None:
        try:
            first, *lines = head.decode("latin-1")[:-4].split("\r\n")
            method, target, _ = first.split(" ")
            fields = [(line.split(":", 1)[0], line.split(":", 1)[1].strip()) for line in lines]
        except (ValueError, IndexError):
            self.errors.append(repr(head[:200]))
            return None
        seen = Seen(number, method, target, fields, time.monotonic())
        self.seen.append(seen)
        return seen

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Play what the target asks for; False if the connection is to end."""
        segments = seen.target.partition("?")[0].split("/")
        play = _PLAYS.get(segments[2] if len(segments) > 2 else "", _echo)
        return await play(Stage(seen, segments[3:], reader, writer))


@dataclass(slots=True, eq=False)
class Stage:
    """One request with what is needed to answer it."""

    seen: Seen
    arguments: list[str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_body(self, after_bytes: Callable[[int], Awaitable[None]] | None = None) -> None:
        """Read the whole body; `after_bytes` is awaited after each piece, to be slow in."""
        seen = self.seen
        if seen.all("expect"):
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if seen.all("transfer-encoding"):
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await self._read_exactly(size, after_bytes)
                assert await self.reader.readexactly(2) == b"\r\n"
            while line := (await self.reader.readuntil(b"\r\n"))[:-2].decode("latin-1"):
                seen.trailers.append((line.split(":", 1)[0], line.split(":", 1)[1].strip()))
        else:
            await self._read_exactly(int((seen.all("content-length") or ["0"])[0]), after_bytes)
        seen.body_is_whole = True

    async def _read_exactly(self, left: int, after_bytes: Callable[[int], Awaitable[None]] | None) -> None:
        seen = self.seen
        while left:
            data = await self.reader.read(min(left, len(PIECE)))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(data)
            seen.body_bytes += len(data)
            seen._digest.update(data)
            if after_bytes is not None:
                await after_bytes(seen.body_bytes)

    async def until_gone(self) -> None:
        """Wait until the other side ends the connection."""
        await self.reader.read()
        self.seen.closed_at = time.monotonic()

    def send(self, status: str, fields: str = "", body: bytes = b"") -> None:
        length = f"Content-Length: {len(body)}\r\n"
        self.writer.write(f"HTTP/1.1 {status}\r\n{fields}{length}\r\n".encode())
        if self.seen.method != "HEAD":
            self.writer.write(body)


async def _echo(stage: Stage) -> bool:
    """200 and what was received, as JSON."""
    await stage.read_body()
    seen = stage.seen
    body = {
        "method": seen.method, "target": seen.target, "fields": seen.fields, "body_bytes": seen.body_bytes,
        "sha256": seen.sha256, "connection": seen.connection,
    }  # fmt: skip
    stage.send("200 OK", "Content-Type: application/json\r\n", json.dumps(body).encode())
    await stage.writer.drain()
    return True


async def _sleep(stage: Stage) -> bool:
    """/sleep/<seconds>: the same, later."""
    await asyncio.sleep(float(stage.arguments[0]))
    return await _echo(stage)


async def _status(stage: Stage) -> bool:
    """/status/<code>: an empty answer (204 and 304 without a length)."""
    await stage.read_body()
    code = stage.arguments[0]
    if code in ("204", "304"):
        stage.writer.write(f'HTTP/1.1 {code} X\r\nETag: "1"\r\n\r\n'.encode())
    else:
        stage.send(f"{code} X")
    return True


async def _bytes(stage: Stage) -> bool:
    """/bytes/<n>: that many, with a length, as fast as they are taken."""
    await stage.read_body()
    left = int(stage.arguments[0])
    stage.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
    while left and stage.seen.method != "HEAD":
        stage.writer.write(PIECE[:left])
        left -= min(left, len(PIECE))
        await stage.writer.drain()
    return True


async def _chunked(stage: Stage) -> bool:
    """/chunked/<n>/<size>: n chunks of that size."""
    await stage.read_body()
    count, size = int(stage.arguments[0]), int(stage.arguments[1])
    stage.writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(count):
        stage.writer.write(b"%x;ext=1\r\n%b\r\n" % (size, PIECE[:size]))
        await stage.writer.drain()
    stage.writer.write(b"0\r\nX-Trailer: kept\r\n\r\n")
    return True


async def _stream(stage: Stage) -> bool:
    """/stream/<n>/<interval>: n events, that many seconds apart, chunked."""
    await stage.read_body()
    count, interval_s = int(stage.arguments[0]), float(stage.arguments[1])
    stage.writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    gone = asyncio.ensure_future(stage.until_gone())
    try:
        for number in range(count):
            event = b"data: %d\n\n" % number
            stage.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.wait((gone,), timeout=interval_s)
            if gone.done():
                return False
    finally:
        gone.cancel()
    stage.writer.write(b"0\r\n\r\n")
    return False


async def _until_close(stage: Stage) -> bool:
    """/until-close/<n>: n bytes whose end is the connection's."""
    await stage.read_body()
    stage.writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PIECE[: int(stage.arguments[0])])
    await stage.writer.drain()
    stage.writer.close()
    await stage.writer.wait_closed()
    return False


async def _never(stage: Stage) -> bool:
    """/never: reads the request and says nothing."""
    await stage.read_body()
    await stage.until_gone()
    return False


async def _die(stage: Stage) -> bool:
    """/die/<bytes>: promises 1000 bytes, sends that many of them and hangs up; -1: not even a head."""
    await stage.read_body()
    count = int(stage.arguments[0])
    if count >= 0:
        stage.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + PIECE[:count])
        await stage.writer.drain()
    stage.writer.close()
    return False


async def _stall(stage: Stage) -> bool:
    """/stall: half an answer, and then nothing."""
    await stage.read_body()
    stage.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + PIECE[:500])
    await stage.until_gone()
    return False


async def _nonsense(stage: Stage) -> bool:
    """/nonsense: an answer that is not HTTP."""
    await stage.read_body()
    stage.writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
    await stage.writer.drain()
    return False


async def _sink(stage: Stage) -> bool:
    """/sink/<seconds>: stops reading for that long, first at once and again in the middle of the body."""
    pause_s = float(stage.arguments[0])
    middle = int((stage.seen.all("content-length") or ["0"])[0]) // 2
    paused = False

    async def be_slow(received: int) -> None:
        nonlocal paused
        if not paused and received >= middle:
            paused = True
            await asyncio.sleep(pause_s)

    await asyncio.sleep(pause_s)
    await stage.read_body(be_slow)
    stage.send("200 OK", "", str(stage.seen.body_bytes).encode())
    return True


async def _early(stage: Stage) -> bool:
    """/early: answers 403 before it has read the body, and closes."""
    stage.send("403 Forbidden", "Connection: close\r\n", b"no")
    await stage.writer.drain()
    return False


_PLAYS: dict[str, Callable[[Stage], Awaitable[bool]]] = {
    "sleep": _sleep, "status": _status, "bytes": _bytes, "chunked": _chunked, "stream": _stream,
    "until-close": _until_close, "never": _never, "die": _die, "stall": _stall, "nonsense": _nonsense,
    "sink": _sink, "early": _early,
}  # fmt: skip
