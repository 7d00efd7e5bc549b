"""An upstream that answers as its requests' targets say, well or not, and remembers every request that reached it:

    python -m tests.faults.fickle

A target is /<route>/<play>/<wait in ms>/<amount>/<what tells it from the others>:

    plain    as many bytes, in two halves; none, and it is answered in one piece
    usage    JSON that says that so many output tokens were used
    events   a stream of events that say the same, more with each
    error    500
    unheard  the connection ends before anything was said
    midway   it ends in the middle of as many bytes

It prints `ready PORT`. Nothing is answered until a line comes on its standard input; on the end of that it prints a line of
JSON: [request id, target] of each request, in the order of arrival. In a process of its own, so that thousands of answers at
once cost nobody else his turn.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import sys
from typing import cast

import uvloop

EVENTS = 5
PAUSE_S = 0.02
"""Between two pieces of one answer."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r]+)", re.IGNORECASE)


class Stage:
    """What all connections share."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.seen: list[tuple[str, str]] = []
        self.playing: set[asyncio.Task[None]] = set()


class Fickle(asyncio.Protocol):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.transport: asyncio.Transport | None = None
        self.unread = b""
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's do not derive from asyncio's

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.unread += data
        head, end, body = self.unread.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if not end or len(body) < size:
            return
        self.unread = body[size:]
        request_id = _REQUEST_ID.search(head)
        assert request_id is not None
        target = head.split(b" ", 2)[1].decode()
        self.stage.seen.append((request_id[1].decode(), target))
        self.task = asyncio.create_task(self.play(target))
        self.stage.playing.add(self.task)
        self.task.add_done_callback(self.stage.playing.discard)

    async def play(self, target: str) -> None:
        await self.stage.opened.wait()
        _, _, play, wait_ms, amount, *_ = target.split("/")
        await asyncio.sleep(int(wait_ms) / 1000)
        pieces = answer(play, int(amount))
        for piece in pieces:
            if self.transport is None:
                return
            self.transport.write(piece)
            if piece is not pieces[-1]:
                await asyncio.sleep(PAUSE_S)
        if play in ("unheard", "midway") and self.transport is not None:
            self.transport.close()


def answer(play: str, amount: int) -> list[bytes]:
    """The pieces of it."""
    if play in ("plain", "midway"):
        size = amount + 1 if play == "midway" else amount  # there is always a byte that does not come
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        half = amount // 2
        if play == "midway" or not amount:
            return [head + b"x" * half]
        return [head + b"x" * half, b"x" * (amount - half)]
    if play == "usage":
        body = json.dumps({"said": "x" * 200, "usage": {"output_tokens": amount}}).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        return [head + body[:100], body[100:]]
    if play == "events":
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        return [head, *(event(amount * number // EVENTS) for number in range(1, EVENTS + 1)), b"0\r\n\r\n"]
    if play == "error":
        return [b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"]
    return []


def event(tokens: int) -> bytes:
    data = b"data: %b\n\n" % json.dumps({"usage": {"output_tokens": tokens}}).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    stage = Stage()
    server = await loop.create_server(lambda: Fickle(stage), "127.0.0.1", 0, backlog=4096)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    if await loop.run_in_executor(None, sys.stdin.readline):
        stage.opened.set()
        await loop.run_in_executor(None, sys.stdin.read)
    print(json.dumps(stage.seen), flush=True)


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
