"""A small upstream: 500 bytes to every request, on kept connections. Run as a program where nginx is not installed.

python -m tests.benchmark.upstream PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

_BEGINNING = b'{"id":"b","object":"benchmark","text":"'
_END = b'","usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":13}}\n'
BODY = _BEGINNING + b"x" * (500 - len(_BEGINNING) - len(_END)) + _END
"""An answer as a model gives it, with what it used."""

_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
)


class _Answers(asyncio.Protocol):
    """Counts ends of heads: the load of the benchmark has no bodies."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not descend from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        if heads:
            self._transport.write(_ANSWER * len(heads))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Answers, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
