"""An upstream that answers everything with as many bytes as the target's last segment says, as fast as they are taken.

In a process of its own (`python -m tests.faults.plenty PORT`), so that thousands of answers at once cost nobody else his turn.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import cast

import uvloop

PIECE = b"0123456789abcdef" * 4096


class Plenty(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.left = 0
        self.is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's do not derive from asyncio's
        self.transport.set_write_buffer_limits(high=len(PIECE))

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.left = int(data.split(b" ", 2)[1].rpartition(b"/")[2])
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.left)
        self.pour()

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self.pour()

    def pour(self) -> None:
        assert self.transport is not None
        while self.left and not self.is_paused:
            self.transport.write(PIECE[: self.left])
            self.left -= min(self.left, len(PIECE))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Plenty, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
