"""The PROXY protocol: connections from a balancer's network are their header's, all others are their peer's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from control.embedded import wait_until
from tests.certificates import Authority, client_context, make_authority, write_pair
from tests.system.installation import Addresses, Gateway, Installation, another_gateway
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import Wire, event_count, request, wire

BALANCER = "127.0.1.1"
HEAD_TIMEOUT_S = 2.0
LINE = b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 443\r\n"
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def block(source: str, *, tlvs: bytes = b"", local: bool = False) -> bytes:
    """A header of version 2, of a TCP connection from port 51000 to port 443 of the same address."""
    address = ip_address(source)
    family = 0x11 if address.version == 4 else 0x21
    content = address.packed * 2 + pack("!HH", 51_000, 443) + tlvs
    return _SIGNATURE + pack("!BBH", 0x20 if local else 0x21, family, len(content)) + content


@pytest.fixture(scope="module")
def log(data_dir: Path) -> Path:
    return data_dir / "proxy-protocol.log"


@pytest.fixture(scope="module")
def gateway(addresses: Addresses, data_dir: Path, routes: Path, log: Path) -> Iterator[Gateway]:
    with another_gateway(
        addresses.redis, data_dir / "pepper", log, routes, proxy_protocol_networks="127.0.1.0/24, 192.0.2.0/24",
        head_timeout_s=str(HEAD_TIMEOUT_S), connections_per_address_max="4",
    ) as started:  # fmt: skip
        yield started


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("behind the balancer")


@pytest.fixture(scope="module")
def tls_gateway(
    addresses: Addresses, data_dir: Path, routes: Path, log: Path, authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:  # fmt: skip
    pair = write_pair(tmp_path_factory.mktemp("tls"), "gateway", authority)
    with another_gateway(
        addresses.redis, data_dir / "pepper", log, routes, proxy_protocol_networks=BALANCER,
        tls_certificate=str(pair.certificate), tls_key=str(pair.key),
    ) as started:  # fmt: skip
        yield started


def access_lines(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_bytes().splitlines():
        if line.startswith(b'{"log":"access"'):
            yield json.loads(line)


async def logged_client(log: Path, request_id: str) -> str:
    """Who the access log says has made a request; waits for the line."""

    def found() -> list[str]:
        return [line["client"] for line in access_lines(log) if line["request_id"] == request_id]

    await wait_until(lambda: bool(found()), 10, "the access log's line")
    (client,) = found()
    return client


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (LINE, "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 51000 443\r\n", "2001:db8::7"),
        (block("203.0.113.8"), "203.0.113.8"),
        (block("2001:db8::8"), "2001:db8::8"),
        (block("203.0.113.9", tlvs=b"\x02\x00\x0bexample.org" + b"\x04\x01\x00" + b"\0" * 256), "203.0.113.9"),
        (b"PROXY UNKNOWN\r\n", BALANCER),
        (b"PROXY UNKNOWN 203.0.113.7 198.51.100.1 51000 443\r\n", BALANCER),
        (_SIGNATURE + b"\x20\x00\x00\x00", BALANCER),
        (block("203.0.113.10", local=True), BALANCER),
    ],
    ids=["v1-tcp4", "v1-tcp6", "v2-tcp4", "v2-tcp6", "v2-tlvs", "v1-unknown", "v1-unknown-more", "v2-local", "v2-local-more"],
)  # fmt: skip
async def test_the_client_is_who_the_header_names_to_the_upstream_and_in_the_access_log(
    installation: Installation,
    upstream: RecordingUpstream,
    gateway: Gateway,
    log: Path,
    header: bytes,
    client: str,
) -> None:
    workload = await installation.workload()
    async with wire(gateway.port, source=BALANCER) as connection:
        connection.send(header + request(workload, "/free/", "X-Forwarded-For: 192.0.2.66"))
        assert (await connection.answer()).status == 200
        connection.send(request(workload, "/free/again"))
        assert (await connection.answer()).status == 200
    quoted = f'"[{client}]"' if ":" in client else client
    seen = upstream.of(workload.key)
    assert len(seen) == 2
    for each in seen:
        assert each.one("x-forwarded-for") == client
        assert each.one("forwarded").startswith(f"for={quoted};")
        assert await logged_client(log, each.request_id) == client


@pytest.mark.parametrize("header", [LINE, block("203.0.113.7", tlvs=b"\x04\x00\x02ab")], ids=["v1", "v2"])
async def test_a_header_in_pieces_of_one_byte_is_read_as_one(
    installation: Installation, upstream: RecordingUpstream, gateway: Gateway, header: bytes
) -> None:
    workload = await installation.workload()
    data = header + request(workload, "/free/", method="POST", body=b"abc")
    async with wire(gateway.port, source=BALANCER) as connection:
        for position in range(len(data)):
            connection.send(data[position : position + 1])
            await connection.writer.drain()
            await asyncio.sleep(0)
        assert (await connection.answer()).status == 200
    (seen,) = upstream.of(workload.key)
    assert (seen.one("x-forwarded-for"), seen.body_bytes) == ("203.0.113.7", 3)


@pytest.mark.parametrize("header", [LINE, block("2001:db8::7")], ids=["v1", "v2"])
async def test_a_handshake_may_follow_the_header(
    installation: Installation, upstream: RecordingUpstream, tls_gateway: Gateway, authority: Authority, log: Path,
    header: bytes,
) -> None:  # fmt: skip
    workload = await installation.workload()
    async with wire(tls_gateway.port, source=BALANCER) as connection:
        connection.send(header)
        await connection.writer.start_tls(client_context(authority), server_hostname="localhost")
        connection.send(request(workload, "/free/"))
        assert (await connection.answer()).status == 200
    (seen,) = upstream.of(workload.key)
    assert seen.one("x-forwarded-proto") == "https"
    assert seen.one("x-forwarded-for") in ("203.0.113.7", "2001:db8::7")
    assert await logged_client(log, seen.request_id) == seen.one("x-forwarded-for")


async def test_without_its_header_no_handshake_is_begun_for_the_balancer_and_one_is_for_everybody_else(
    installation: Installation, tls_gateway: Gateway, authority: Authority
) -> None:
    before = await event_count(tls_gateway.management_port, "bad_proxy_header")
    with pytest.raises(OSError):
        await Wire.open(tls_gateway.port, tls=client_context(authority), source=BALANCER)
    assert await event_count(tls_gateway.management_port, "bad_proxy_header") == before + 1
    workload = await installation.workload()
    async with wire(tls_gateway.port, tls=client_context(authority)) as connection:
        connection.send(request(workload, "/free/"))
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    "junk",
    [
        b"GET /free/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY TCP4 203.0.113.300 198.51.100.1 51000 443\r\n",
        b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 443\n" + b"x" * 100,
        b"PROXY UNKNOWN " + b"x" * 107,
        _SIGNATURE + b"\x11\x11\x00\x0c" + b"\0" * 12,
        _SIGNATURE + b"\x21\x11\x00\x04" + b"\0" * 4,
        _SIGNATURE + b"\x21\x11\xff\xff" + b"\0" * 100,
        b"\x16\x03\x01\x02\x00\x01",
        b"\0" * 64,
    ],
    ids=["http", "address", "lf", "long", "version", "short", "huge", "tls", "zeros"],
)
async def test_the_balancer_is_hung_up_on_when_it_sends_no_header(
    gateway: Gateway, upstream: RecordingUpstream, junk: bytes
) -> None:
    before = await event_count(gateway.management_port, "bad_proxy_header")
    began = time.monotonic()
    async with wire(gateway.port, source=BALANCER) as connection:
        connection.send(junk)
        assert await connection.is_closed()
    assert time.monotonic() - began < HEAD_TIMEOUT_S, (
        "it was waited for something that could make it a header"
    )
    assert await event_count(gateway.management_port, "bad_proxy_header") == before + 1


@pytest.mark.parametrize("header", [LINE, block("203.0.113.7")], ids=["v1", "v2"])
async def test_a_header_from_anybody_else_is_a_malformed_request(
    installation: Installation, upstream: RecordingUpstream, gateway: Gateway, header: bytes
) -> None:
    workload = await installation.workload()
    before = await event_count(gateway.management_port, "bad_proxy_header")
    async with wire(gateway.port) as connection:
        connection.send(header + request(workload, "/free/"))
        assert (await connection.answer()).status == 400
        assert await connection.is_closed()
    async with wire(gateway.port) as connection:
        connection.send(request(workload, "/free/"))
        assert (await connection.answer()).status == 200
    (seen,) = upstream.of(workload.key)
    assert seen.one("x-forwarded-for") == "127.0.0.1"
    assert await event_count(gateway.management_port, "bad_proxy_header") == before


async def test_a_second_header_is_a_malformed_request(installation: Installation, gateway: Gateway) -> None:
    workload = await installation.workload()
    async with wire(gateway.port, source=BALANCER) as connection:
        connection.send(LINE + LINE + request(workload, "/free/"))
        assert (await connection.answer()).status == 400


async def test_a_header_that_is_never_whole_is_not_waited_for(gateway: Gateway) -> None:
    before = await event_count(gateway.management_port, "bad_proxy_header")

    async def wait_for_the_end(beginning: bytes) -> float:
        began = time.monotonic()
        async with wire(gateway.port, source=BALANCER) as connection:
            connection.send(beginning)
            assert await connection.is_closed()
            return time.monotonic() - began

    beginnings = [b"", LINE[:-1], block("203.0.113.7")[:-1]]
    waited_s = await asyncio.gather(*map(wait_for_the_end, beginnings))
    assert min(waited_s) > HEAD_TIMEOUT_S * 0.9
    assert await event_count(gateway.management_port, "bad_proxy_header") == before + len(beginnings)


async def test_connections_are_limited_by_the_address_in_the_header(
    installation: Installation, gateway: Gateway
) -> None:
    workload = await installation.workload()
    crowd = [await Wire.open(gateway.port, source=BALANCER) for _ in range(4)]
    try:
        for connection in crowd:
            connection.send(block("203.0.113.20") + request(workload, "/free/"))
            assert (await connection.answer()).status == 200
        async with wire(gateway.port, source=BALANCER) as connection:
            connection.send(block("203.0.113.20") + request(workload, "/free/"))
            answer = await connection.answer()
            assert (answer.status, json.loads(answer.body)["code"]) == (503, "too_many_connections")
        async with wire(gateway.port, source=BALANCER) as connection:
            connection.send(block("203.0.113.21") + request(workload, "/free/"))
            assert (await connection.answer()).status == 200
    finally:
        for connection in crowd:
            connection.close()
