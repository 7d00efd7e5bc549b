"""Plays conversations that are written down beforehand: straight with an upstream of its own, and through a gateway.

One director plays both ends, so the order of everything that happens is known without a clock, and the same conversation can be
had in both ways. What is waited for is always something that comes; how long, is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence

from tests.system.conversations import (
    CASE,
    PROBE,
    TOKEN,
    Answers,
    Arrival,
    Arrives,
    Conversation,
    HangsUp,
    Heard,
    Hears,
    HearsAll,
    Message,
    SaysNoMore,
    Sends,
    Step,
    Streams,
)
from tests.system.loop_thread import LoopThread

LEG_TIMEOUT_S = 30.0
ALL_TIMEOUT_S = 110.0
AT_ONCE_MAX = 8
HEAD_LIMIT = 1 << 20


class Director:
    """The upstream, and the players. Listens on 127.0.0.1 in a loop thread of the caller's."""

    def __init__(self, thread: LoopThread) -> None:
        self._thread = thread
        self._arrived: dict[bytes, list[Arrival]] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = thread.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_LIMIT)

    def close(self) -> None:
        self._thread.run(self._close())

    async def _close(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    # -- something has happened

    def happened(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    # -- the upstream

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        mine: list[Arrival] = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                start, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
                arrival = Arrival(start, lines, writer=writer)
                arrival.read_framing("none")
                if (case := arrival.all("x-case")[0]) == b"probe":
                    writer.write(b"HTTP/1.1 204 Still here\r\n\r\n")
                    continue
                mine.append(arrival)
                self.arrivals(case).append(arrival)
                await read_body(reader, arrival, self.happened)
        await self.until(lambda: all(arrival.is_over for arrival in mine))
        self._writers.discard(writer)
        writer.transport.abort()

    def arrivals(self, case: bytes) -> list[Arrival]:
        return self._arrived.setdefault(case, [])

    # -- the players

    def play(
        self, conversations: Sequence[Conversation], port: int, token: str
    ) -> list[tuple[Conversation, Heard, Heard]]:
        """Have each conversation straight, and then at this port with this token; several conversations at once."""

        async def play_all() -> list[tuple[Conversation, Heard, Heard]]:
            places = asyncio.Semaphore(AT_ONCE_MAX)

            async def play_one(conversation: Conversation) -> tuple[Conversation, Heard, Heard]:
                async with places:
                    straight = await Leg(self, conversation, self.port, token).play()
                    return conversation, straight, await Leg(self, conversation, port, token).play()

            return await asyncio.gather(*map(play_one, conversations))

        return asyncio.run_coroutine_threadsafe(play_all(), self._thread.loop).result(ALL_TIMEOUT_S)


async def read_body(reader: asyncio.StreamReader, message: Message, happened: Callable[[], None]) -> None:
    """Read the rest of a message, and say each time that there is more of it. Raises what the end of a connection raises."""

    async def take(left: int) -> None:
        while left:
            data = await reader.read(min(left, 1 << 18))
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            message.body += data
            left -= len(data)
            happened()

    happened()
    try:
        kind, length = message.framing
        if kind == "chunked":
            while True:
                size, _, extension = (await reader.readuntil(b"\r\n"))[:-2].partition(b";")
                message.extensions += [extension] if extension else []
                if not int(size, 16):
                    break
                await take(int(size, 16))
                assert await reader.readexactly(2) == b"\r\n"
            while line := (await reader.readuntil(b"\r\n"))[:-2]:
                message.trailers.append(line)
        elif kind == "until close":
            while data := await reader.read(1 << 18):
                message.body += data
        else:
            await take(length)
        message.is_whole = True
    finally:
        message.has_ended = True
        happened()


class Leg:
    """One conversation, had once."""

    def __init__(self, director: Director, conversation: Conversation, port: int, token: str) -> None:
        self._director = director
        self._conversation = conversation
        self._port = port
        self._token = token.encode()
        self._case = conversation.name.encode()
        self._raw = bytearray()
        self._is_answered = self._has_ended = False
        self._heard = Heard()

    async def play(self) -> Heard:
        heard, step = self._heard, None
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        told = asyncio.StreamReader(limit=HEAD_LIMIT)
        tasks = [asyncio.create_task(self._receive(reader, told)), asyncio.create_task(self._read(told))]
        try:
            async with asyncio.timeout(LEG_TIMEOUT_S):
                for step in self._conversation.steps:
                    with contextlib.suppress(ConnectionError):  # what the other side does not want any more
                        await self._take(step, writer)
                    if heard.failure:
                        break
                else:
                    await self._director.until(lambda: self._is_answered)
                    self._gather()
                    heard.is_closed = await self._ends(writer, told)
        except TimeoutError:
            heard.failure = f"stands still at {str(step)[:200]}, after the answer {bytes(self._raw[-300:])!r}"
        finally:
            writer.transport.abort()
            await asyncio.wait(tasks, timeout=LEG_TIMEOUT_S)
            self._gather()
        return heard

    def _name(self, number: int) -> bytes:
        return b"%b/%d" % (self._case, number)

    def _gather(self) -> None:
        """Take what arrived to the protocol: what arrives from here on belongs to nobody."""
        for number in range(len(self._conversation.methods)):
            arrivals = self._director.arrivals(self._name(number))
            self._heard.arrived += arrivals
            for arrival in arrivals:
                arrival.is_over = True
            arrivals.clear()
        self._director.happened()

    # -- the client

    async def _receive(self, reader: asyncio.StreamReader, told: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(1 << 18):
                self._raw += data
                told.feed_data(data)
                self._director.happened()
            told.feed_eof()
        except ConnectionError as error:
            told.set_exception(error)
        self._has_ended = True
        self._director.happened()

    async def _read(self, told: asyncio.StreamReader) -> None:
        """Read the answers to all requests, or up to the connection's end."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for method in self._conversation.methods:
                answers: list[Message] = []
                self._heard.came.append(answers)
                while not answers or answers[-1].status < 200:
                    start, *lines = (await told.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
                    answer = Message(start, lines)
                    answers.append(answer)
                    has_body = answer.status >= 200 and answer.status not in (204, 304) and method != b"HEAD"
                    answer.read_framing("until close" if has_body else "none")
                    if not has_body:
                        answer.is_whole = answer.has_ended = True
                    else:
                        await read_body(told, answer, self._director.happened)
        self._is_answered = True
        self._director.happened()

    async def _ends(self, writer: asyncio.StreamWriter, told: asyncio.StreamReader) -> bool:
        """Whether the connection ends behind the last answer; else one more request on it is answered."""
        last = self._heard.came[-1][-1]
        is_last = b"close" in last.options or last.framing[0] == "until close" or not last.is_whole
        if self._conversation.says_no_more or is_last:
            await self._director.until(lambda: self._has_ended)
            with contextlib.suppress(ConnectionError):
                if rest := await told.read():
                    self._heard.failure = f"behind the last answer there is {rest[:200]!r}"
            return True
        writer.write(PROBE.replace(TOKEN, self._token))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await told.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 204 Still here\r\n"):
                self._heard.failure = f"behind the last answer there is {head[:200]!r}"
            return False
        return True

    # -- one step

    async def _take(self, step: Step, writer: asyncio.StreamWriter) -> None:
        match step:
            case Sends(data, cuts):
                named = data.replace(TOKEN, self._token).replace(CASE, self._case)
                await write(writer, named, cuts)
            case Hears(data):
                await self._director.until(lambda: data in self._raw or self._has_ended)
            case HearsAll(number):
                await self._director.until(lambda: self._has_answer(number) or self._has_ended)
            case SaysNoMore():
                writer.write_eof()
            case Arrives(number, body_bytes):
                await self._arrives(number, body_bytes)
            case Answers(data, number, cuts):
                await write(self._upstream(number), data, cuts)
            case Streams(head, pieces, number):
                await self._stream(number, head, pieces)
            case HangsUp(number, reset):
                hang_up(self._upstream(number), reset=reset)

    def _has_answer(self, number: int) -> bool:
        came = self._heard.came
        return (
            len(came) > number
            and bool(came[number])
            and came[number][-1].status >= 200
            and came[number][-1].has_ended
        )

    def _upstream(self, number: int) -> asyncio.StreamWriter:
        writer = self._director.arrivals(self._name(number))[-1].writer
        assert writer is not None
        return writer

    async def _arrives(self, number: int, body_bytes: int | None) -> None:
        arrivals = self._director.arrivals(self._name(number))

        def is_there() -> bool:
            return bool(arrivals) or len(self._heard.came) > number + 1 or self._is_answered

        def is_enough() -> bool:
            arrival = arrivals[-1]
            return arrival.has_ended or (body_bytes is not None and len(arrival.body) >= body_bytes)

        await self._director.until(is_there)
        if arrivals:
            await self._director.until(is_enough)
        else:
            self._heard.failure = f"nothing arrived, and the answer is {bytes(self._raw[-600:])!r}"

    async def _stream(self, number: int, head: bytes, pieces: tuple[bytes, ...]) -> None:
        """Answer in chunks, or up to the connection's end to a request of HTTP/1.0."""
        (arrival,) = self._director.arrivals(self._name(number))
        writer = self._upstream(number)
        if arrival.start.endswith(b"HTTP/1.0"):
            await write(writer, head + b"\r\n" + b"".join(pieces))
            hang_up(writer)
        else:
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
            await write(writer, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")


async def write(writer: asyncio.StreamWriter, data: bytes, cuts: tuple[int, ...] = ()) -> None:
    """Write in pieces that end at `cuts`, each a packet of its own as far as the kernel pleases."""
    start = 0
    for end in (*cuts, len(data)):
        writer.write(data[start:end])
        await writer.drain()
        await asyncio.sleep(0)
        start = end


def hang_up(writer: asyncio.StreamWriter, *, reset: bool = False) -> None:
    if not reset:
        writer.close()
        return
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
