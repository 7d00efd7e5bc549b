"""The sum over the workers: whatever becomes of one of them, nothing that was counted is taken back."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from control.embedded import wait_until
from gateway import supervisor
from gateway.channel import DRAINING
from gateway.contract.token import Pepper
from gateway.metrics import Metrics
from gateway.routing import RouteTable
from gateway.settings import GatewaySettings, Loaded
from gateway.supervisor import Place, Supervisor, open_listeners
from gateway.worker_process import WorkerProcess


class Answering:
    """A worker's end of the channel: counts, and says so when asked, if it may."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.metrics = Metrics()
        self.metrics.gauges = {"workers": 1, "ready": 1}
        self.may_speak = asyncio.Event()
        self.may_speak.set()
        self.asked = 0
        self.writer = writer
        self.task = asyncio.create_task(self._serve(reader))

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(1):
            self.asked += 1
            await self.may_speak.wait()
            self.writer.write(orjson.dumps(self.metrics.snapshot()) + b"\n")


async def sleeping_process() -> asyncio.subprocess.Process:
    """What a worker's process is as long as nobody asks it: there."""
    return await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")


@asynccontextmanager
async def supervised(count: int) -> AsyncIterator[tuple[Supervisor, list[Place], list[Answering]]]:
    """A supervisor whose workers are played by the test."""
    settings = GatewaySettings(workers=count)
    over = Supervisor(
        Loaded(settings, RouteTable(()), Pepper(b""), None), {}, lambda: pytest.fail("not asked to load")
    )
    ends = []
    for number in range(count):
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = WorkerProcess(number, await sleeping_process(), reader, writer)
        ends.append(Answering(*await asyncio.open_connection(sock=theirs)))
        over._places.append(Place(number, socket.socket(), worker))
    try:
        yield over, over._places, ends
    finally:
        for place, end in zip(over._places, ends, strict=True):
            end.task.cancel()
            end.writer.close()
            place.listener.close()
        for worker in over._workers():
            worker.kill()
            await worker.ended()


def served(snapshot: dict[str, Any]) -> int:
    return sum(count for *_, count in snapshot["requests"])


async def test_the_sum_is_over_all_workers_and_ready_means_all_of_them() -> None:
    async with supervised(3) as (over, _, ends):
        for number, end in enumerate(ends):
            end.metrics.requests[("models", "completed", 2)] = 10**number
        snapshot = await over.snapshot()
        assert (served(snapshot), snapshot["gauges"]["workers"]) == (111, 3)
        assert await over.why_not_ready() is None
        ends[1].metrics.gauges["ready"] = 0
        assert await over.why_not_ready() in ("2 of 3 workers admit", "1 of 2 workers admit")


async def test_a_worker_that_falls_silent_keeps_its_counts_and_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_SNAPSHOT_TIMEOUT_S", 0.05)
    async with supervised(2) as (over, _, ends):
        for end in ends:
            end.metrics.requests[("models", "completed", 2)] = 5
        assert served(await over.snapshot()) == 10
        ends[1].may_speak.clear()
        ends[0].metrics.requests[("models", "completed", 2)] = 6
        for _ in range(3):
            snapshot = await over.snapshot()
            assert (served(snapshot), snapshot["gauges"]["workers"]) == (11, 1)
            assert await over.why_not_ready() in ("2 of 3 workers admit", "1 of 2 workers admit")
        ends[1].metrics.requests[("models", "completed", 2)] = 8
        ends[1].may_speak.set()
        monkeypatch.setattr(supervisor, "_SNAPSHOT_TIMEOUT_S", 5.0)
        await over.snapshot()  # the answer to the question of before
        assert ends[1].asked == 2, "a worker that has not answered is not asked again"
        assert served(await over.snapshot()) == 14
        assert await over.why_not_ready() is None


async def test_a_worker_that_hangs_up_keeps_its_counts() -> None:
    async with supervised(2) as (over, _, ends):
        for end in ends:
            end.metrics.requests[("models", "completed", 2)] = 5
        assert served(await over.snapshot()) == 10
        ends[1].task.cancel()
        ends[1].writer.close()
        for _ in range(2):
            snapshot = await over.snapshot()
            assert (served(snapshot), snapshot["gauges"]["workers"]) == (10, 1)


async def test_a_worker_that_dies_while_another_is_asked_is_counted_once() -> None:
    async with supervised(2) as (over, places, ends):
        for end in ends:
            end.metrics.requests[("models", "completed", 2)] = 5
        await over.snapshot()
        ends[1].may_speak.clear()
        asking = asyncio.create_task(over.snapshot())
        await wait_until(lambda: ends[0].asked == 2, 5, "the first to be asked")
        await asyncio.sleep(0.01)  # it has answered, the second has not
        first = places[0].worker
        assert first is not None
        first.kill()
        await first.ended()
        over._leaving[first] = asyncio.create_task(over._see_off(first))
        places[0].worker = None
        await over._leaving[first]
        ends[1].may_speak.set()
        assert served(await asking) == 10


async def test_a_worker_that_drains_is_counted_until_it_has_ended_and_its_place_is_free_at_once() -> None:
    async with supervised(1) as (over, places, ends):
        ends[0].metrics.requests[("models", "completed", 2)] = 5
        leaving = places[0].worker
        assert leaving is not None
        ends[0].writer.write(DRAINING + b"\n")
        async with asyncio.timeout(5):
            await leaving.leaving.wait()
        assert leaving.status is None
        over._leaving[leaving] = asyncio.create_task(over._see_off(leaving))
        places[0].worker = None
        ends[0].metrics.requests[("models", "completed", 2)] = 7
        assert served(await over.snapshot()) == 7
        leaving.kill()
        await over._leaving[leaving]
        assert served(await over.snapshot()) == 7


def test_listeners_share_one_port_and_a_taken_one_is_refused() -> None:
    listeners = open_listeners("127.0.0.1:0", 3)
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    with pytest.raises(OSError):
        open_listeners(f"127.0.0.1:{ports.pop()}", 1)
    for listener in listeners:
        listener.close()
