"""New connections: taken from the listening socket, unwrapped, and handed to `http1.client`. Acts.

What may come before HTTP is dealt with here: a PROXY protocol header from networks whose connections begin with one, and the
TLS handshake. The context is the newest at each handshake, so changed certificates need no new listener. The socket itself
belongs to the supervisor, as long as that lives; a worker that stops leaves nobody's connection behind in it unless another
process accepts from it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from functools import partial
from typing import Final

from gateway.http1.client import ClientConnection
from gateway.http1.proxy_protocol import ProxyHeader, ProxyHeaderError, ProxyHeaderReader
from gateway.networks import Networks
from gateway.proxy import Proxy

ACCEPTED_AT_ONCE_MAX: Final = 100
UNSENT_IN_KERNEL_MAX: Final = 262_144
"""Bytes that the kernel takes for a client beyond what is on the wire: else megabytes for each client that does not read."""

_BREATH_S: Final = 0.1
"""How long nothing is accepted when there are no file descriptors left."""


class Acceptor:
    """Accepts from one listening socket until `finish`."""

    def __init__(self, listener: socket.socket, proxy: Proxy, tls: ssl.SSLContext | None) -> None:
        self.tls = tls
        """The context of the next handshake; None speaks plain HTTP."""
        self._listener = listener
        self._proxy = proxy
        self._loop = proxy.loop
        self._with_header = Networks(proxy.settings.proxy_protocol_networks)
        self._arriving_from: Counter[str] = Counter()
        self._is_finished = False
        listener.setblocking(False)

    def start(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def finish(self) -> None:
        """Take what waits in the socket, and no more: nobody else may come for it."""
        if self._is_finished:
            return
        self._is_finished = True
        self._loop.remove_reader(self._listener.fileno())
        while self._accept():
            pass
        self._listener.close()

    def _accept(self) -> bool:
        """Accept what waits, up to a bound; False if nothing is left."""
        for _ in range(ACCEPTED_AT_ONCE_MAX):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionError:  # gone before it was taken
                continue
            except OSError:  # no descriptors or no memory: they come back as connections end
                self._proxy.metrics.events["accept_failed"] += 1
                if not self._is_finished:
                    self._loop.remove_reader(self._listener.fileno())
                    self._loop.call_later(_BREATH_S, self._resume)
                return False
            self._welcome(connection, str(address[0]) if address else "-")
        return True

    def _resume(self) -> None:
        if not self._is_finished:
            self.start()

    def _welcome(self, connection: socket.socket, peer: str) -> None:
        if self._with_header.holds(peer) or self.tls is not None:
            why = self._why_full(peer)
            if why is not None:
                self._proxy.metrics.events[why] += 1
                connection.close()
                return
        task = self._loop.create_task(self._unwrap(connection, peer), name="welcome")
        self._proxy.arriving.add(task)
        self._arriving_from[peer] += 1
        task.add_done_callback(partial(self._on_welcomed, peer))

    def _why_full(self, peer: str) -> str | None:
        """Why nothing is awaited of a connection that has to begin with a header or a handshake, which may never come."""
        proxy, settings = self._proxy, self._proxy.settings
        if len(proxy.clients) + len(proxy.arriving) >= settings.connections_max:
            return "connections_refused"
        here = proxy.clients_from(peer) + self._arriving_from[peer]
        is_bounded = not (proxy.trusted.holds(peer) or self._with_header.holds(peer))
        if here >= settings.connections_per_address_max and is_bounded:
            return "address_connections_refused"
        return None

    def _on_welcomed(self, peer: str, task: asyncio.Task[None]) -> None:
        self._proxy.arriving.discard(task)
        self._leave(peer)

    def _leave(self, peer: str) -> None:
        self._arriving_from[peer] -= 1
        if not self._arriving_from[peer]:
            del self._arriving_from[peer]

    async def _unwrap(self, connection: socket.socket, peer: str) -> None:
        """Header, handshake, hand over. Whoever does not get that far is counted, and hung up on."""
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_IN_KERNEL_MAX)
        events, timeout_s = self._proxy.metrics.events, self._proxy.settings.head_timeout_s
        source: str | None = None
        if self._with_header.holds(peer):
            try:
                async with asyncio.timeout(timeout_s):
                    header = await self._read_header(connection)
            except (ProxyHeaderError, OSError):  # TimeoutError is one
                events["bad_proxy_header"] += 1
                connection.close()
                return
            source = header.source[0] if header.source else None
            why = self._why_full(source) if source is not None and self.tls is not None else None
            if why is not None:
                events[why] += 1
                connection.close()
                return
        tls = self.tls
        if source is not None:
            self._arriving_from[source] += 1
        try:
            await self._loop.connect_accepted_socket(
                lambda: ClientConnection(self._proxy, source),
                connection,
                ssl=tls,
                ssl_handshake_timeout=timeout_s if tls is not None else None,
            )
        except OSError:  # ssl.SSLError is one, and so is TimeoutError
            events["tls_handshake_failed" if tls is not None else "accept_failed"] += 1
            connection.close()
        finally:
            if source is not None:
                self._leave(source)

    async def _read_header(self, connection: socket.socket) -> ProxyHeader:
        """Raises ProxyHeaderError, OSError. No byte behind the header is taken."""
        reader = ProxyHeaderReader()
        while True:
            data = await self._loop.sock_recv(connection, reader.wanted)
            if not data:
                raise ProxyHeaderError("the connection ended within the header")
            header = reader.feed(data)
            if header is not None:
                return header
