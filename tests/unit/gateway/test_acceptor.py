"""New connections, on real sockets: what may come before HTTP is taken off, whoever does not get that far is hung up on."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from control.embedded import wait_until
from gateway.tls import ListenerTls, listener_context
from tests.certificates import Authority, Pair, client_context, make_authority, write_pair
from tests.unit.gateway.accepting import LONG_S, REQUEST, V1, V2, V2_LOCAL, accepting, on_uvloop, says, silent


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("authority")


@pytest.fixture
def pair(tmp_path: Path, authority: Authority) -> Pair:
    return write_pair(tmp_path, "server", authority)


@pytest.fixture
def tls(pair: Pair) -> ssl.SSLContext:
    return listener_context(ListenerTls(pair.certificate, pair.key))


# -- plain and TLS


@on_uvloop
async def test_a_connection_without_anything_before_http_is_served() -> None:
    async with accepting() as here:
        assert (await says(here, REQUEST)).startswith(b"HTTP/1.1 404 ")
        with silent(here):
            await wait_until(lambda: here.peers() == ["127.0.0.1"], LONG_S, "the connection")


@on_uvloop
async def test_a_connection_over_tls_is_served_as_https(authority: Authority, tls: ssl.SSLContext) -> None:
    async with accepting(tls) as here:
        assert (await says(here, REQUEST, tls=client_context(authority))).startswith(b"HTTP/1.1 404 ")
        _, writer = await asyncio.open_connection(
            *here.address, ssl=client_context(authority), server_hostname="localhost"
        )
        await wait_until(lambda: bool(here.proxy.clients), LONG_S, "the connection")
        (client,) = here.proxy.clients
        assert (client.hop.peer, client.hop.scheme, client.has_certificate) == ("127.0.0.1", b"https", False)
        assert here.proxy.arriving == set()
        writer.close()


@on_uvloop
async def test_a_certificate_that_a_client_shows_is_seen(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.pem)
    own = write_pair(tmp_path, "workload", authority, ["workload"], client=True)
    async with accepting(listener_context(ListenerTls(pair.certificate, pair.key, ca))) as here:
        for shown in (own, None):
            _, writer = await asyncio.open_connection(
                *here.address, ssl=client_context(authority, shown), server_hostname="localhost"
            )
            await wait_until(lambda: bool(here.proxy.clients), LONG_S, "the connection")
            (client,) = here.proxy.clients
            assert client.has_certificate is (shown is own)
            writer.close()
            await here.is_left()


@on_uvloop
async def test_handshakes_use_the_certificate_of_the_moment_and_open_connections_go_on(
    tmp_path: Path, authority: Authority, pair: Pair, tls: ssl.SSLContext
) -> None:
    async with accepting(tls) as here:
        context = client_context(authority)
        reader, writer = await asyncio.open_connection(
            *here.address, ssl=context, server_hostname="localhost"
        )
        newer = write_pair(tmp_path, "newer", authority)
        here.acceptor.tls = listener_context(ListenerTls(newer.certificate, newer.key))
        _, second = await asyncio.open_connection(*here.address, ssl=context, server_hostname="localhost")
        shown = [end.get_extra_info("ssl_object").getpeercert(binary_form=True) for end in (writer, second)]
        assert shown == [pair.issued.der, newer.issued.der]
        writer.write(REQUEST)
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
        writer.close()
        second.close()


@on_uvloop
async def test_who_speaks_no_tls_to_a_tls_listener_is_hung_up_on(tls: ssl.SSLContext) -> None:
    async with accepting(tls) as here:
        assert b"HTTP/1.1" not in await says(here, REQUEST)
        await here.has_counted("tls_handshake_failed")
        await here.is_left()


@on_uvloop
async def test_a_handshake_that_does_not_come_is_not_waited_for(tls: ssl.SSLContext) -> None:
    async with accepting(tls, head_timeout_s=0.1) as here:
        assert await says(here) == b""
        await here.has_counted("tls_handshake_failed")


@on_uvloop
async def test_who_does_not_believe_our_certificate_is_no_trouble(tls: ssl.SSLContext) -> None:
    async with accepting(tls) as here:
        with pytest.raises(ssl.SSLError):
            await says(here, REQUEST, tls=client_context(make_authority("another")))
        await here.has_counted("tls_handshake_failed")
        await here.is_left()


# -- a PROXY protocol header


@pytest.mark.parametrize(
    ("header", "peer"), [(V1, "192.0.2.7"), (V2, "192.0.2.8"), (V2_LOCAL, "127.0.0.1"), (b"PROXY UNKNOWN\r\n", "127.0.0.1")]
)  # fmt: skip
@on_uvloop
async def test_a_header_says_whose_connection_it_is(header: bytes, peer: str) -> None:
    async with accepting(proxy_protocol_networks="127.0.0.0/8") as here:
        assert (await says(here, header + REQUEST)).startswith(b"HTTP/1.1 404 ")
        pieces = [(header + REQUEST)[at : at + 1] for at in range(len(header + REQUEST))]
        assert (await says(here, *pieces)).startswith(b"HTTP/1.1 404 ")
        with silent(here) as connection:
            connection.sendall(header)
            await wait_until(lambda: here.peers() == [peer], LONG_S, "the connection")
        assert here.count("bad_proxy_header") == 0


@on_uvloop
async def test_a_header_comes_before_the_handshake(authority: Authority, tls: ssl.SSLContext) -> None:
    async with accepting(tls, proxy_protocol_networks="127.0.0.1") as here:
        with silent(here) as connection:
            connection.sendall(V1)
            reader, writer = await asyncio.open_connection(
                sock=connection.dup(), ssl=client_context(authority), server_hostname="localhost"
            )
            await wait_until(lambda: here.peers() == ["192.0.2.7"], LONG_S, "the connection")
            writer.write(REQUEST)
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            writer.close()


@pytest.mark.parametrize(
    "data",
    [REQUEST, V1[:-2] + b"\n" + REQUEST, V1.replace(b"TCP4", b"TCP6"), b"\x16\x03\x01\x02\x00\x01" * 5],
)
@on_uvloop
async def test_without_a_good_header_a_connection_from_such_a_network_is_closed(data: bytes) -> None:
    async with accepting(proxy_protocol_networks="127.0.0.0/8") as here:
        assert await says(here, data) == b""
        await here.has_counted("bad_proxy_header")
        assert here.count("bad_head") == 0
        await here.is_left()


@on_uvloop
async def test_a_header_that_ends_or_does_not_come_is_not_waited_for() -> None:
    async with accepting(proxy_protocol_networks="127.0.0.0/8", head_timeout_s=0.1) as here:
        with silent(here) as connection:
            connection.sendall(V1[:10])
            connection.shutdown(socket.SHUT_WR)
            await here.has_counted("bad_proxy_header")
        assert await says(here, V1[:10]) == b""
        assert here.count("bad_proxy_header") == 2


@on_uvloop
async def test_from_anywhere_else_a_header_is_no_request() -> None:
    async with accepting(proxy_protocol_networks="127.0.0.2") as here:
        assert (await says(here, V1 + REQUEST)).startswith(b"HTTP/1.1 400 ")
        assert (await says(here, V2 + REQUEST)).startswith(b"HTTP/1.1 400 ")
        assert (await says(here, V1 + REQUEST, host="127.0.0.2")).startswith(b"HTTP/1.1 404 ")
