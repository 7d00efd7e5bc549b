"""An upstream whose every byte is the test's: both ends of a tunnel are in one hand, and so is what is said when.

`request` gives what has arrived for a target; what comes after its head is on the `Wire` that it brings.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.system.installation import Gateway, Workload
from tests.system.wire import ANSWER_TIMEOUT_S, Wire, request, wire

ROUTES = """
[[route]]
name = "tunnels"
path = "/tunnel/"
upstream = ["http://127.0.0.1:{port}"]
hold = "0.5"
price.request = "0.01"
price.kib_in = "0.001"
price.kib_out = "0.0001"

[[route]]
name = "impatient"
path = "/impatient/"
upstream = ["http://127.0.0.1:{port}"]
timeouts = {{ tunnel_idle_s = {idle_s} }}

[[route]]
name = "plain"
path = "/plain/"
upstream = ["http://127.0.0.1:{port}"]
price.request = "0.01"
upgrade = false
"""
IDLE_S = 1.0

UPGRADE = ("Connection: Upgrade", "Upgrade: echo")
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request that has arrived: its first line, its fields (names in lower case), and the connection to answer on."""

    wire: Wire
    line: str
    fields: list[tuple[str, str]]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def all(self, name: str) -> list[str]:
        return [value for given, value in self.fields if given == name]


class ScriptedUpstream:
    """Made by `scripted`."""

    def __init__(self) -> None:
        self._arrived: defaultdict[str, asyncio.Queue[Arrived]] = defaultdict(asyncio.Queue)
        self._all: list[Wire] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._all.append(Wire(reader, writer))
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            arrived = await next_request(self._all[-1])
            self._arrived[arrived.target].put_nowait(arrived)

    async def request(self, target: str) -> Arrived:
        """A request for this, the first on its connection."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await self._arrived[target].get()

    @property
    def connections(self) -> int:
        """How many there ever were."""
        return len(self._all)

    async def let_go(self) -> None:
        """End every connection, and wait until the other side has noticed: it lends none of them out again."""
        for one in self._all:
            with suppress(OSError, TimeoutError, RuntimeError):
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    one.writer.write_eof()
                    while await one.reader.read(1 << 20):
                        pass
            one.close()


async def next_request(upstream: Wire) -> Arrived:
    """The next request on a connection."""
    head = await upstream.reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1")[:-4].split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return Arrived(upstream, first, [(name.lower(), value.strip()) for name, _, value in pairs])


def routes_to(listener: socket.socket) -> str:
    """A route table that leads there."""
    return ROUTES.format(port=listener.getsockname()[1], idle_s=IDLE_S)


@asynccontextmanager
async def scripted(
    listener: socket.socket, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedUpstream]:
    """Serve for one test on a socket that stays for many; with a context for it, over TLS."""
    upstream = ScriptedUpstream()
    async with await asyncio.start_server(upstream.take, sock=listener.dup(), ssl=tls) as server:
        try:
            yield upstream
        finally:
            server.close()
            await upstream.let_go()


@asynccontextmanager
async def tunnel(
    gateway: Gateway,
    upstream: ScriptedUpstream,
    workload: Workload,
    target: str,
    *,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Wire, Wire]]:
    """An open tunnel: the client's end and the upstream's. The target is one that no other request asks for meanwhile."""
    async with wire(gateway.port, tls=tls) as near:
        near.send(request(workload, target, *UPGRADE))
        far = (await upstream.request(target)).wire
        far.send(SWITCHING)
        assert (await near.answer(skip_interim=False)).status == 101
        yield near, far


def reset(end: Wire) -> None:
    """End a connection as a process that dies with unread bytes does."""
    end.writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    end.close()
