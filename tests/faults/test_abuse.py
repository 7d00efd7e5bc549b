"""Thousands of clients that mean no good: the others are served as before, memory is bounded, and limits answer as said."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import quantiles
from subprocess import PIPE

import pytest

from control.embedded import free_port, wait_until
from tests.faults.stack import Stack
from tests.system.installation import Gateway, Installation, Workload, another_gateway
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import Wire, request, wire

MIB = 1024**2
PROBES = 4
PROBED_S = 2.0
PROBE_PAUSE_S = 0.004
NOISE_MS = 5.0
LOOKS = 4
WORKERS = 2
ADDRESS_MAX = 1_500
ANSWER_BYTES = 10 * MIB
READER_BYTES_MAX = 320 * 1024
"""What the gateway keeps for one who does not read: a thirtieth of what is on its way to him."""


ROUTES = """
[[route]]
name = "free"
path = "/free/"
upstream = ["{probed}"]

[[route]]
name = "plenty"
path = "/plenty/"
upstream = ["http://127.0.0.1:{port}"]
"""


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python program of this directory."""
    started = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, stdin=PIPE, stdout=PIPE)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


@asynccontextmanager
async def crowd(
    kind: str, gateway: Gateway, count: int, source: str, *more: str
) -> AsyncIterator[dict[str, object]]:
    """So many clients of one kind, from one address; inside, they are all there. Then what became of them is in the
    dictionary."""
    report: dict[str, object] = {}
    async with process("tests.faults.crowd", kind, str(gateway.port), str(count), source, *more) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        async with asyncio.timeout(60):
            assert await running.stdout.readline() == b"ready\n"
        yield report
        running.stdin.close()
        async with asyncio.timeout(20):
            report.update(json.loads(await running.stdout.readline()))


@pytest.fixture
async def upstream_port() -> AsyncIterator[int]:
    port = free_port()
    async with process("tests.faults.plenty", str(port)):

        async def answers() -> bool:
            try:
                (await Wire.open(port)).close()
            except OSError:
                return False
            return True

        await wait_until(answers, 20, "the upstream")
        yield port


@pytest.fixture
def gateway(
    stack: Stack, upstream_port: int, fault_upstream: RecordingUpstream, tmp_path: Path
) -> Iterator[Gateway]:
    """A gateway of this test's own, with two workers."""
    routes = tmp_path / "routes.toml"
    routes.write_text(ROUTES.format(port=upstream_port, probed=fault_upstream.url))
    with another_gateway(
        stack.redis.url, stack.directory / "pepper", stack.directory / "abuse.log", routes,
        workers=str(WORKERS), access_log="off", head_timeout_s="8", body_timeout_s="8",
        connections_per_address_max=str(ADDRESS_MAX),
    ) as started:  # fmt: skip
        yield started


async def p99_ms(gateway: Gateway, workload: Workload) -> float:
    """How long nearly all answers take at the most, to a few clients that ask steadily on kept connections."""
    took: list[float] = []
    data = request(workload, "/free/status/204")

    async def probe() -> None:
        until = time.monotonic() + PROBED_S
        async with wire(gateway.port) as client:
            while time.monotonic() < until:
                began = time.perf_counter()
                client.send(data)
                assert (await client.answer()).status == 204
                took.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(PROBE_PAUSE_S)

    await asyncio.gather(*(probe() for _ in range(PROBES)))
    return quantiles(took, n=100)[98]


def memory(gateway: Gateway) -> int:
    return sum(worker.memory_info().rss for worker in gateway.workers())


async def metric(gateway: Gateway, sample: str) -> float:
    async with wire(gateway.management_port) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = (await client.answer()).body.decode()
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(sample + " ")), 0.0)


async def has_counted(gateway: Gateway, event: str, count: int) -> bool:
    return await metric(gateway, f'tollkeeper_events_total{{event="{event}"}}') >= count


async def is_as_quick_as(idle_ms: float, gateway: Gateway, workload: Workload) -> None:
    """The others' p99 is within twice of what it is when nobody means harm. Of a few looks the best one counts, and a little is
    allowed: what else runs on the machine disturbs some looks, what the gateway does wrong shows in all of them."""
    looks: list[float] = []
    while len(looks) < LOOKS and (not looks or min(looks) > 2 * idle_ms + NOISE_MS):
        looks.append(await p99_ms(gateway, workload))
    assert min(looks) <= 2 * idle_ms + NOISE_MS, f"{looks} ms, against {idle_ms:.1f} when idle"


@pytest.fixture
async def workload(installation: Installation) -> Workload:
    return await installation.workload()


@pytest.fixture
async def idle_ms(gateway: Gateway, workload: Workload) -> float:
    return min([await p99_ms(gateway, workload) for _ in range(2)])


@pytest.mark.slow
async def test_two_thousand_slow_heads_slow_nobody_else_and_are_told_so(
    gateway: Gateway, workload: Workload, idle_ms: float
) -> None:
    before = memory(gateway)
    async with crowd("heads", gateway, 2_000, "127.0.0.2") as report:
        await is_as_quick_as(idle_ms, gateway, workload)
        assert memory(gateway) - before < 64 * MIB
        await wait_until(
            partial(has_counted, gateway, "head_timeout", 2_000), 20, "every slow head to be told so"
        )
    assert report["statuses"] == {"408": 2_000}


@pytest.mark.slow
async def test_two_thousand_slow_readers_slow_nobody_else_and_cost_a_bounded_memory(
    gateway: Gateway, workload: Workload, idle_ms: float
) -> None:
    before = memory(gateway)
    async with crowd(
        "readers", gateway, 2_000, "127.0.0.4", workload.token, f"/plenty/{ANSWER_BYTES}"
    ) as report:
        await is_as_quick_as(idle_ms, gateway, workload)
        assert memory(gateway) - before < 2_000 * READER_BYTES_MAX
        await wait_until(
            partial(has_counted, gateway, "client_stalled", 2_000), 30, "every slow reader to be given up"
        )
    assert report["connected"] == 2_000
    assert await metric(gateway, "tollkeeper_in_flight") == 0


@pytest.mark.slow
async def test_ten_thousand_connections_from_one_address_are_bounded_and_slow_nobody_else(
    gateway: Gateway, workload: Workload, idle_ms: float
) -> None:
    before = memory(gateway)
    async with crowd("idlers", gateway, 10_000, "127.0.0.3") as report:
        await is_as_quick_as(idle_ms, gateway, workload)
        assert memory(gateway) - before < 64 * MIB
        here = await metric(gateway, "tollkeeper_client_connections")
        assert here <= WORKERS * ADDRESS_MAX + PROBES
    statuses = report["statuses"]
    assert isinstance(statuses, dict)
    assert set(statuses) <= {
        "503",
        "408",
        "closed",
    }  # beyond the limit; and of those within, some have said nothing for long
    assert statuses["503"] == 10_000 - WORKERS * ADDRESS_MAX
    assert (
        await metric(gateway, 'tollkeeper_events_total{event="address_connections_refused"}')
        == statuses["503"]
    )
