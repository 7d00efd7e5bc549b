"""Tunnels whose one end or both ends speak TLS, which has no half-closed connections: last words arrive all the same."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import client_context, make_authority, server_context, write_file, write_pair
from tests.system.conftest import StartGateway
from tests.system.installation import Gateway, Installation
from tests.system.scripted_upstream import ScriptedUpstream, scripted, tunnel

ROUTE = """
[[route]]
name = "tunnels"
path = "/tunnel/"
upstream = ["{scheme}://127.0.0.1:{port}"]
tls = {{ ca = "authority.pem" }}
"""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Ends:
    """A gateway between ends of which at least one speaks TLS."""

    gateway: Gateway
    far_end: ScriptedUpstream
    tls: ssl.SSLContext | None
    """For the client, if the listener speaks it."""


@pytest.fixture(params=["client", "upstream", "both"])
async def ends(
    request: pytest.FixtureRequest, gateway_with: StartGateway, tmp_path: Path
) -> AsyncIterator[Ends]:
    authority = make_authority("tunnels")
    write_file(tmp_path / "authority.pem", authority.pem)
    pair = write_pair(tmp_path, "server", authority)
    of_client, of_upstream = request.param != "upstream", request.param != "client"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = tmp_path / "routes.toml"
        scheme = "https" if of_upstream else "http"
        config.write_text(ROUTE.format(scheme=scheme, port=listener.getsockname()[1]))
        settings = {"config": str(config)}
        if of_client:
            settings |= {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
        async with scripted(listener, tls=server_context(pair) if of_upstream else None) as far_end:
            yield Ends(gateway_with(**settings), far_end, client_context(authority) if of_client else None)


async def test_a_tunnel_over_tls_carries_everything_and_ends_as_a_whole(
    installation: Installation, ends: Ends
) -> None:
    workload = await installation.workload()
    there, back = random.Random(1).randbytes(4 * MIB), random.Random(2).randbytes(4 * MIB)
    for last in ("client", "upstream"):
        async with (
            asyncio.timeout(20),
            tunnel(ends.gateway, ends.far_end, workload, "/tunnel/", tls=ends.tls) as (near, far),
        ):
            near.send(there)
            far.send(back)
            arriving = asyncio.create_task(near.reader.readexactly(len(back)))
            assert await far.reader.readexactly(len(there)) == there
            assert await arriving == back
            ended, other = (near, far) if last == "client" else (far, near)
            ended.send(b"last words" * 10_000)
            await ended.writer.drain()
            ended.writer.close()
            assert await other.reader.read(-1) == b"last words" * 10_000
            other.writer.close()
    rows = await installation.settled(workload.tag)
    assert [(row["outcome"], row["status"]) for row in rows] == [("completed", 101)] * 2
    words = len(b"last words" * 10_000)
    moved = [(row["bytes_in"], row["bytes_out"]) for row in rows]
    assert moved == [(4 * MIB + words, 4 * MIB), (4 * MIB, 4 * MIB + words)]
