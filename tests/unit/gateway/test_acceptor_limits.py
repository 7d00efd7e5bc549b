"""How many connections are taken, what happens when one cannot be, and that the end leaves nobody behind."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from control.embedded import wait_until
from gateway.acceptor import ACCEPTED_AT_ONCE_MAX
from gateway.supervisor import open_listeners
from gateway.tls import ListenerTls, listener_context
from tests.certificates import Authority, Pair, client_context, make_authority, write_pair
from tests.unit.gateway.accepting import LONG_S, REQUEST, V1, accepting, on_uvloop, says, silent


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("authority")


@pytest.fixture
def pair(tmp_path: Path, authority: Authority) -> Pair:
    return write_pair(tmp_path, "server", authority)


@pytest.fixture
def tls(pair: Pair) -> ssl.SSLContext:
    return listener_context(ListenerTls(pair.certificate, pair.key))


# -- limits


@pytest.mark.parametrize("kind", ["handshake", "header"])
@on_uvloop
async def test_those_who_have_not_got_as_far_as_http_count_towards_the_limit(
    authority: Authority, tls: ssl.SSLContext, kind: str
) -> None:
    networks: dict[str, Any] = {"proxy_protocol_networks": "127.0.0.1"} if kind == "header" else {}
    async with accepting(tls if kind == "handshake" else None, connections_max=3, **networks) as here:
        connections = [silent(here) for _ in range(5)]
        await here.has_counted("connections_refused", 2)
        assert len(here.proxy.arriving) == 3
        for connection in connections:
            connection.close()
        await here.is_left()
        context, header = (client_context(authority), b"") if kind == "handshake" else (None, V1)
        assert (await says(here, header + REQUEST, tls=context)).startswith(b"HTTP/1.1 404 ")
        assert here.count("connections_refused") == 2


@on_uvloop
async def test_one_address_cannot_take_all_places_with_handshakes_that_do_not_come(
    authority: Authority, tls: ssl.SSLContext
) -> None:
    async with accepting(tls, connections_max=10, connections_per_address_max=4) as here:
        connections = [silent(here) for _ in range(20)]
        await wait_until(
            lambda: here.count("connections_refused") + here.count("address_connections_refused") >= 10, LONG_S, "refusals"
        )  # fmt: skip
        answer = await says(here, REQUEST, tls=client_context(authority), host="127.0.0.2")
        assert answer.startswith(b"HTTP/1.1 404 ")
        for connection in connections:
            connection.close()


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@on_uvloop
async def test_without_file_descriptors_connections_wait_until_there_are_some() -> None:
    async with accepting() as here:
        with silent(here) as first:
            await wait_until(lambda: bool(here.proxy.clients), LONG_S, "the connection")
            waiting = silent(here)
            with no_descriptor_left():
                await here.has_counted("accept_failed")
                await asyncio.sleep(0.15)
            assert here.count("accept_failed") <= 10, "it does not spin"
            waiting.sendall(REQUEST)
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(waiting, 100)).startswith(b"HTTP/1.1 404 ")
            waiting.close()
            first.sendall(REQUEST)
            assert (await loop.sock_recv(first, 100)).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("kind", ["plain", "handshake", "header"])
@on_uvloop
async def test_whoever_is_gone_before_being_taken_leaves_no_trace(tls: ssl.SSLContext, kind: str) -> None:
    networks: dict[str, Any] = {"proxy_protocol_networks": "127.0.0.1"} if kind == "header" else {}
    async with accepting(tls if kind == "handshake" else None, starts=False, **networks) as here:
        for number in range(30):
            with silent(here) as connection:
                if number % 3:
                    connection.sendall(REQUEST)
                if number % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        here.acceptor.start()
        with silent(here):
            await wait_until(lambda: bool(here.proxy.clients or here.proxy.arriving), LONG_S, "the last one")
        await here.is_left()


class Aborting(socket.socket):
    """A listener of which some connections are gone before they are taken."""

    aborts = 3

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        if self.aborts:
            self.aborts -= 1
            connection.close()
            raise ConnectionAbortedError
        return connection, address


@on_uvloop
async def test_one_that_is_gone_does_not_keep_the_next_waiting() -> None:
    (listener,) = open_listeners("127.0.0.1:0", 1)
    async with accepting(listener=Aborting(fileno=listener.detach())) as here:
        connections = [silent(here) for _ in range(3)]
        assert (await says(here, REQUEST)).startswith(b"HTTP/1.1 404 ")
        assert here.count("accept_failed") == 0
        for connection in connections:
            connection.close()


@on_uvloop
async def test_a_connection_without_addresses_is_served_too(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    async with accepting(listener=listener) as here:
        reader, writer = await asyncio.open_unix_connection(here.address)
        await wait_until(lambda: here.peers() == ["-"], LONG_S, "the connection")
        writer.write(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()


# -- the end


@on_uvloop
async def test_the_end_takes_what_waits_and_no_more() -> None:
    """Nobody else may accept from the socket: whoever has connected by then is served."""
    count = 2 * ACCEPTED_AT_ONCE_MAX + 50
    async with accepting(starts=False) as here:
        connections = [silent(here) for _ in range(count)]
        for connection in connections:
            connection.sendall(REQUEST)
        here.acceptor.start()
        here.acceptor.finish()
        here.acceptor.finish()
        with pytest.raises(OSError):
            silent(here)
        loop = asyncio.get_running_loop()
        for connection in connections:
            assert (await loop.sock_recv(connection, 100)).startswith(b"HTTP/1.1 404 ")
            connection.close()
        await here.is_left()


@on_uvloop
async def test_the_end_while_there_are_no_descriptors_is_an_end() -> None:
    async with accepting() as here:
        waiting = silent(here)
        with no_descriptor_left():
            await here.has_counted("accept_failed")
            here.acceptor.finish()
        await asyncio.sleep(0.15)
        assert here.proxy.clients == set()
        waiting.close()


@on_uvloop
async def test_a_handshake_under_way_at_the_end_is_finished(
    authority: Authority, tls: ssl.SSLContext
) -> None:
    async with accepting(tls) as here:
        connection = silent(here)
        await wait_until(lambda: bool(here.proxy.arriving), LONG_S, "the connection")
        here.acceptor.finish()
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=client_context(authority), server_hostname="localhost"
        )
        writer.write(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()
