"""An acceptor on a real socket and on the loop that workers run on, and clients to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

import uvloop

from control.embedded import wait_until
from gateway.acceptor import Acceptor
from gateway.contract.token import Pepper
from gateway.logs import AccessLog
from gateway.proxy import Proxy
from gateway.routing import RouteTable
from gateway.settings import GatewaySettings
from gateway.supervisor import open_listeners

P = ParamSpec("P")

LONG_S = 20.0
"""More than anything here takes on a busy machine; waited for only where something is broken."""
REQUEST = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
"""Answered 404 without anybody being asked: there is no route."""
V1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 4321 443\r\n"
V2 = (
    b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"
    + bytes((192, 0, 2, 8, 10, 0, 0, 1))
    + struct.pack("!HH", 4321, 443)
)
V2_LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"


@dataclass(slots=True)
class Accepting:
    """A worker that accepts, and has no route: every good request is answered 404."""

    acceptor: Acceptor
    proxy: Proxy
    listener: socket.socket
    address: Any
    failures: list[dict[str, Any]]

    def count(self, event: str) -> int:
        return self.proxy.metrics.events[event]

    def peers(self) -> list[str]:
        return sorted(client.hop.peer for client in self.proxy.clients)

    async def has_counted(self, event: str, count: int = 1) -> None:
        await wait_until(lambda: self.count(event) >= count, LONG_S, f"{count} of {event}")

    async def is_left(self) -> None:
        """Until nobody is connected, and nobody arrives."""
        await wait_until(
            lambda: not self.proxy.clients and not self.proxy.arriving, LONG_S, "everybody to be gone"
        )


@asynccontextmanager
async def accepting(
    tls: ssl.SSLContext | None = None,
    *,
    starts: bool = True,
    listener: socket.socket | None = None,
    **settings: Any,
) -> AsyncIterator[Accepting]:
    loop = asyncio.get_running_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    listener = listener or open_listeners("127.0.0.1:0", 1)[0]
    proxy = Proxy(
        GatewaySettings(redis_url="redis://127.0.0.1:1", **settings), RouteTable(()), Pepper(b"a" * 32), AccessLog(0)
    )  # fmt: skip
    acceptor = Acceptor(listener, proxy, tls)
    if starts:
        acceptor.start()
    here = Accepting(acceptor, proxy, listener, listener.getsockname(), failures)
    try:
        async with asyncio.timeout(3 * LONG_S):
            yield here
            acceptor.finish()
            for client in list(proxy.clients):
                client.abort()
            await here.is_left()
            assert failures == []
    finally:
        acceptor.finish()
        await proxy.close(settle_s=0.0)


def on_uvloop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test on the loop that workers run on."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(test(*args, **kwargs))

    return run


async def says(
    here: Accepting, *data: bytes, tls: ssl.SSLContext | None = None, host: str | None = None
) -> bytes:
    """What a client hears that connects (from `host`), says this piece by piece, and listens to the end."""
    reader, writer = await asyncio.open_connection(
        *here.address,
        ssl=tls,
        server_hostname="localhost" if tls else None,
        local_addr=(host, 0) if host else None,
    )
    try:
        for piece in data:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def silent(here: Accepting, host: str = "127.0.0.1") -> socket.socket:
    """A client that connects and says nothing."""
    connection = socket.create_connection(here.address, timeout=LONG_S, source_address=(host, 0))
    connection.setblocking(False)
    return connection
