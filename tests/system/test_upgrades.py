"""How an upgraded connection begins: only where both sides agree that it does, and nothing sent early is read as a request."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random

import pytest

from tests.system.installation import Gateway, Installation, Row, Workload, with_other_secret
from tests.system.scripted_upstream import SWITCHING, UPGRADE, ScriptedUpstream, next_request
from tests.system.wire import Wire, request, wire

MIB = 1 << 20
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""Of RFC 6455 §1.3."""
WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
)
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
FURTHER = b"GET /tunnel/further HTTP/1.1\r\nHost: a\r\n\r\n"
"""What must never be read as a request."""


async def only_row(installation: Installation, workload: Workload) -> Row:
    (row,) = await installation.settled(workload.tag)
    return row


def switching(*lines: str) -> bytes:
    return "\r\n".join(("HTTP/1.1 101 Switching Protocols", *lines, "", "")).encode()


async def is_tunnel(near: Wire, far: Wire) -> bool:
    """Whether bytes pass between these two ends."""
    near.send(b"ping")
    far.send(b"pong")
    async with asyncio.timeout(15):
        return (await far.reader.readexactly(4), await near.reader.readexactly(4)) == (b"ping", b"pong")


async def test_a_handshake_is_passed_on_with_the_principal_and_so_is_its_answer(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()
    async with wire(tunnel_gateway.port) as near:
        fields = (*WEBSOCKET, "Sec-WebSocket-Protocol: a, b", "Origin: https://a.test", "Cookie: c=d")
        near.send(request(workload, "/tunnel/?q=1", *fields))
        asked = await far_end.request("/tunnel/?q=1")
        assert asked.line == "GET /tunnel/?q=1 HTTP/1.1"
        assert asked.all("x-principal") == [workload.principal]
        assert asked.all("authorization") == []
        for field in fields:
            name, _, value = field.partition(": ")
            assert asked.all(name.lower()) == [value]
        answer = (
            "Connection: upgrade",
            "Upgrade: websocket",
            f"Sec-WebSocket-Accept: {ACCEPT}",
            "Sec-WebSocket-Protocol: b",
        )
        asked.wire.send(switching(*answer, "Set-Cookie: e=f"))
        granted = await near.answer(skip_interim=False)
        assert (granted.status, granted["connection"].lower(), granted["upgrade"]) == (
            101,
            "upgrade",
            "websocket",
        )
        assert granted["sec-websocket-accept"] == ACCEPT
        assert (granted["sec-websocket-protocol"], granted["set-cookie"]) == ("b", "e=f")
        assert granted["x-request-id"] == asked.all("x-request-id")[0]
        assert await is_tunnel(near, asked.wire)


@pytest.mark.parametrize("size", [1, 4 * MIB])
async def test_what_a_client_sends_behind_its_handshake_waits_for_the_101_and_then_arrives(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream, size: int
) -> None:
    workload = await installation.workload()
    early = FURTHER + random.Random(size).randbytes(size)
    async with wire(tunnel_gateway.port) as near:
        near.send(request(workload, "/tunnel/", *UPGRADE) + early)
        far = (await far_end.request("/tunnel/")).wire
        assert await far.still_open(0.2), "it was sent before the upgrade was granted"
        far.send(SWITCHING)
        assert (await near.answer(skip_interim=False)).status == 101
        async with asyncio.timeout(15):
            there = await far.reader.readexactly(len(early))
        assert hashlib.sha256(there).digest() == hashlib.sha256(early).digest()
        assert await is_tunnel(near, far)
        far.close()
        assert await near.is_closed()
    row = await only_row(installation, workload)
    assert (row["bytes_in"], far_end.connections) == (len(early) + 4, 1)


async def test_what_an_upstream_sends_behind_its_101_arrives_behind_it_however_it_is_cut(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()
    said = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + SWITCHING + b"HTTP/1.1 200 OK\r\n\r\nfirst words"
    )
    for step in (len(said), 1):
        async with wire(tunnel_gateway.port) as near:
            near.send(request(workload, "/tunnel/", *UPGRADE))
            far = (await far_end.request("/tunnel/")).wire
            for start in range(0, len(said), step):
                far.send(said[start : start + step])
                await far.writer.drain()
                await asyncio.sleep(0)
            assert [(await near.answer(skip_interim=False)).status for _ in range(2)] == [103, 101]
            async with asyncio.timeout(15):
                assert await near.reader.readuntil(b"words") == b"HTTP/1.1 200 OK\r\n\r\nfirst words"
            assert await is_tunnel(near, far)


async def test_a_handshake_may_be_pipelined_behind_other_requests(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()
    async with wire(tunnel_gateway.port) as near:
        near.send(request(workload, "/plain/") + request(workload, "/tunnel/", *UPGRADE) + b"early")
        far = (await far_end.request("/plain/")).wire
        far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        assert (await near.answer()).body == b"hi"
        far = (await far_end.request("/tunnel/")).wire
        far.send(SWITCHING)
        assert (await near.answer(skip_interim=False)).status == 101
        async with asyncio.timeout(15):
            assert await far.reader.readexactly(5) == b"early"
        assert await is_tunnel(near, far)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        ("200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi"),
        ("403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 403, b"no"),
        ("404 Not Found\r\nConnection: close\r\n\r\nwhere?", 404, b"where?"),
        ("426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: other\r\nContent-Length: 5\r\n\r\nother", 426, b"other"),
        ("204 No Content\r\n\r\n", 204, b""),
    ],
    ids=["200", "403", "404", "426", "204"],
)  # fmt: skip
async def test_an_upgrade_that_is_not_granted_is_answered_and_what_was_sent_early_goes_nowhere(
    installation: Installation,
    tunnel_gateway: Gateway,
    far_end: ScriptedUpstream,
    answer: str,
    status: int,
    body: bytes,
) -> None:
    workload = await installation.workload()
    async with wire(tunnel_gateway.port) as near:
        near.send(request(workload, "/tunnel/", *UPGRADE) + request(workload, "/tunnel/further"))
        far = (await far_end.request("/tunnel/")).wire
        far.send(f"HTTP/1.1 {answer}".encode())
        if status == 404:
            far.writer.close()
        found = await near.answer()
        assert (found.status, found.body, found.is_whole) == (status, body, True)
        assert found.all("upgrade") == (["other"] if status == 426 else [])
        assert "close" in ", ".join(found.all("connection")).split(", ")
        near.send(request(workload, "/tunnel/further"))
        assert await near.is_closed()
    if status not in (
        404,
        426,
    ):  # its connection is lent out again: there was nothing on it but the handshake
        async with wire(tunnel_gateway.port) as another:
            another.send(request(workload, "/tunnel/next"))
            arrived = await asyncio.wait_for(next_request(far), 15)
            assert arrived.target == "/tunnel/next"
            far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            assert (await another.answer()).status == 200
    assert far_end.connections == 1
    rows = await installation.settled(workload.tag)
    assert (rows[0]["outcome"], rows[0]["status"], rows[0]["bytes_in"]) == ("completed", status, 0)


@pytest.mark.parametrize("why", ["no token", "a wrong token", "no credits"])
async def test_a_refused_upgrade_closes_and_what_was_sent_early_goes_nowhere(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream, why: str
) -> None:
    workload = await installation.workload("0.005" if why == "no credits" else None)
    handshake = request(None if why == "no token" else workload, "/tunnel/", *UPGRADE)
    if why == "a wrong token":
        handshake = handshake.replace(workload.token.encode(), with_other_secret(workload.token).encode())
    good = await installation.workload()
    async with wire(tunnel_gateway.port) as near:
        near.send(handshake + request(good, "/tunnel/further"))
        answer = await near.answer(skip_interim=False)
        assert answer.status == (402 if why == "no credits" else 401)
        assert answer["connection"] == "close"
        assert await near.is_closed()
    assert far_end.connections == 0
    assert await installation.settled(good.tag) == []
    assert await installation.settled(workload.tag) == []


def accept_for(key: str) -> str:
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return base64.b64encode(digest).decode()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        pytest.param((), SWITCHING, id="nobody asked"),
        pytest.param(("Upgrade: echo",), SWITCHING, id="Connection did not ask"),
        pytest.param(UPGRADE, switching("Connection: Upgrade", "Upgrade: other"), id="another protocol"),
        pytest.param(UPGRADE, switching("Connection: Upgrade"), id="no protocol"),
        pytest.param(UPGRADE, switching("Upgrade: echo"), id="no Connection"),
        pytest.param(UPGRADE, switching("Connection: Upgrade", "Upgrade: echo", "Content-Length: 3"), id="a body"),
        pytest.param(WEBSOCKET, switching("Connection: Upgrade", "Upgrade: websocket"), id="no Accept"),
        pytest.param(
            WEBSOCKET,
            switching("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Accept: {accept_for(KEY[::-1])}"),
            id="a wrong Accept",
        ),
    ],
)  # fmt: skip
async def test_a_101_that_nobody_asked_for_is_502_and_costs_nothing(
    installation: Installation,
    tunnel_gateway: Gateway,
    far_end: ScriptedUpstream,
    asked: tuple[str, ...],
    answer: bytes,
) -> None:
    workload = await installation.workload()
    async with wire(tunnel_gateway.port) as near:
        near.send(request(workload, "/tunnel/", *asked))
        far = (await far_end.request("/tunnel/")).wire
        far.send(answer + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")
        assert (await near.answer(skip_interim=False)).status == 502
        assert await far.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("upstream_failed", 502, 0)
    assert accept_for(KEY) == ACCEPT


@pytest.mark.parametrize(
    ("target", "method", "fields"),
    [
        pytest.param("/plain/", "GET", UPGRADE, id="a route without upgrades"),
        pytest.param("/plain/", "GET", WEBSOCKET, id="a route without WebSockets"),
        pytest.param("/tunnel/", "GET", H2C, id="h2c"),
        pytest.param("/tunnel/", "GET", ("Connection: Upgrade", "Upgrade: TLS/1.2, HTTP/2.0"), id="TLS"),
        pytest.param("/tunnel/", "POST", UPGRADE, id="a POST"),
        pytest.param("/tunnel/", "GET", WEBSOCKET[:-1], id="a WebSocket without a key"),
    ],
)  # fmt: skip
async def test_an_upgrade_that_may_not_be_is_an_ordinary_request_with_an_ordinary_answer(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream,
    target: str, method: str, fields: tuple[str, ...],
) -> None:  # fmt: skip
    workload = await installation.workload()
    async with wire(tunnel_gateway.port) as near:
        near.send(request(workload, target, *fields, method=method, body=b"abc" if method == "POST" else b""))
        asked = await far_end.request(target)
        for name in ("connection", "upgrade", "http2-settings"):
            assert asked.all(name) == []
        asked.wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        assert (await near.answer(skip_interim=False)).body == b"ok"
    assert (await only_row(installation, workload))["status"] == 200
