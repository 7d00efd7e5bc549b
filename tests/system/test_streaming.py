"""Nothing is buffered whole: gigabytes past slow peers, and thousands of idle connections, in a bounded memory."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable

import psutil
import pytest

from tests.system.conftest import StartGateway
from tests.system.installation import Gateway, Installation, Workload
from tests.system.recording_upstream import PIECE, RecordingUpstream
from tests.system.wire import request

GIB = 1024**3
SIZE = 2 * GIB
MIB = 1024**2
PAUSE_S = 1.0


def memory(gateway: Gateway) -> int:
    """Resident bytes of all workers."""
    return sum(worker.memory_info().rss for worker in gateway.workers())


async def growth_during(gateway: Gateway, work: Callable[[], int]) -> tuple[int, int]:
    """Run something that blocks; its result, and by how much the workers' memory grew at most meanwhile."""
    before = highest = memory(gateway)
    future = asyncio.get_running_loop().run_in_executor(None, work)
    while not future.done():
        await asyncio.wait((future,), timeout=0.05)
        highest = max(highest, memory(gateway))
    return await future, highest - before


def connect(gateway: Gateway) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
    return client


def download(gateway: Gateway, workload: Workload) -> int:
    """Ask for SIZE bytes; read nothing at first, and again for a while in the middle. How many bytes came."""
    with connect(gateway) as client:
        client.sendall(request(workload, f"/free/bytes/{SIZE}", "Connection: close"))
        time.sleep(PAUSE_S)
        received, paused, buffer = 0, False, bytearray(MIB)
        while count := client.recv_into(buffer):
            received += count
            if received > SIZE // 2 and not paused:
                paused = True
                time.sleep(PAUSE_S)
        return received


def upload(gateway: Gateway, workload: Workload) -> int:
    """Send SIZE bytes to an upstream that pauses at first and in the middle. How many bytes it says that it got."""
    with connect(gateway) as client:
        head = request(
            workload, f"/free/sink/{PAUSE_S}", f"Content-Length: {SIZE}", "Connection: close", method="POST"
        )
        client.sendall(head)
        for _ in range(SIZE // len(PIECE)):
            client.sendall(PIECE)
        answer = b""
        while data := client.recv(65_536):
            answer += data
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
        return int(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.slow
async def test_two_gibibytes_to_a_slow_client_take_little_memory(
    installation: Installation, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with()
    await asyncio.to_thread(_warm, gateway, workload)
    received, grown = await growth_during(gateway, lambda: download(gateway, workload))
    assert received > SIZE
    assert grown < 32 * MIB
    rows = await installation.settled(workload.tag)
    assert rows[-1]["bytes_out"] == SIZE


@pytest.mark.slow
async def test_two_gibibytes_to_a_slow_upstream_take_little_memory(
    installation: Installation, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with()
    await asyncio.to_thread(_warm, gateway, workload)
    received, grown = await growth_during(gateway, lambda: upload(gateway, workload))
    assert received == SIZE
    assert grown < 32 * MIB
    rows = await installation.settled(workload.tag)
    assert rows[-1]["bytes_in"] == SIZE


def _warm(gateway: Gateway, workload: Workload) -> None:
    with connect(gateway) as client:
        client.sendall(request(workload, "/free/bytes/10000000", "Connection: close"))
        while client.recv(MIB):
            pass


def raise_own_limit(files: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, hard), hard))


async def keep_alive_connections(gateway: Gateway, workload: Workload, count: int) -> list[socket.socket]:
    """Connections that have had one answer each and stay."""

    def open_all() -> list[socket.socket]:
        clients = []
        data = request(workload, "/free/status/204")
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
            clients.append(client)
            client.sendall(data)
            assert client.recv(4096).startswith(b"HTTP/1.1 204"), (
                f"connection {len(clients)} was not answered"
            )
        return clients

    return await asyncio.to_thread(open_all)


@pytest.mark.slow
async def test_five_thousand_idle_connections_cost_less_than_150_mib_and_still_work(
    installation: Installation, gateway_with: StartGateway
) -> None:
    raise_own_limit(6_000)
    workload = await installation.workload()
    gateway = gateway_with(workers="2")
    await asyncio.to_thread(_warm, gateway, workload)
    before = memory(gateway)
    clients = await keep_alive_connections(gateway, workload, 5_000)
    try:
        assert memory(gateway) - before < 150 * MIB
        for client in clients[::50]:
            client.sendall(request(workload, "/free/status/204"))
            assert client.recv(4096).startswith(b"HTTP/1.1 204")
        busy = sum(worker.cpu_times().user for worker in gateway.workers())
        await asyncio.sleep(1)
        spent = sum(worker.cpu_times().user for worker in gateway.workers()) - busy
        assert spent < 0.3, f"{spent} s of CPU in a second in which nothing happened"
    finally:
        for client in clients:
            client.close()


async def test_a_gateway_takes_as_many_open_files_as_it_may(
    installation: Installation, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with(limit_files=128)
    for worker in gateway.workers():
        soft, hard = worker.rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard
    clients = await keep_alive_connections(gateway, workload, 300)
    for client in clients:
        client.close()


async def test_a_stream_reaches_the_client_as_it_is_made(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    url = f"{installation.addresses.gateway}/free/stream/5/0.2"
    async with installation.http.get(url, headers=workload.bearer) as answer:
        arrived = [time.monotonic() async for line in answer.content if line.strip()]
    assert len(arrived) == 5
    assert arrived[-1] - arrived[0] > 0.6, "the events came all at once"
    (seen,) = upstream.of(workload.key)
    assert arrived[0] - seen.arrived < 0.5
