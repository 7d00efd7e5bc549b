"""The sum over the workers: whatever becomes of one of them, nothing that was counted is taken back."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway import supervisor
from gateway.metrics import Metrics, without_gauges
from gateway.settings import GatewaySettings
from gateway.supervisor import Supervisor, Worker, open_listeners


class Answering:
    """The far end of a worker's channel: counts, and says so when asked, if it may."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.metrics = Metrics()
        self.metrics.gauges = {"workers": 1, "ready": 1}
        self.may_speak = asyncio.Event()
        self.may_speak.set()
        self.writer = writer
        self.task = asyncio.create_task(self._serve(reader))

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        while await reader.readline():
            await self.may_speak.wait()
            self.writer.write(orjson.dumps(self.metrics.snapshot()) + b"\n")


@asynccontextmanager
async def supervised(count: int) -> AsyncIterator[tuple[Supervisor, list[Worker], list[Answering]]]:
    """A supervisor whose workers are played by the test."""
    over = Supervisor(GatewaySettings(workers=count), {})
    workers, ends = [], []
    for number in range(count):
        ours, theirs = socket.socketpair()
        worker = Worker(number, socket.socket())
        worker.reader, worker.writer = await asyncio.open_connection(sock=ours)
        ends.append(Answering(*await asyncio.open_connection(sock=theirs)))
        workers.append(worker)
    over._workers = workers
    try:
        yield over, workers, ends
    finally:
        for worker, end in zip(workers, ends, strict=True):
            end.task.cancel()
            end.writer.close()
            worker.listener.close()
            if worker.writer is not None:
                worker.writer.close()


def served(snapshot: dict[str, Any]) -> int:
    return sum(count for *_, count in snapshot["requests"])


async def test_the_sum_is_over_all_workers_and_ready_means_all_of_them() -> None:
    async with supervised(3) as (over, _, ends):
        for number, end in enumerate(ends):
            end.metrics.requests[("models", "completed", 2)] = 10**number
        snapshot = await over.snapshot()
        assert (served(snapshot), snapshot["gauges"]["workers"]) == (111, 3)
        assert await over.is_ready()
        ends[1].metrics.gauges["ready"] = 0
        assert not await over.is_ready()


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
            assert not await over.is_ready()
        ends[1].metrics.requests[("models", "completed", 2)] = 8
        ends[1].may_speak.set()
        monkeypatch.setattr(supervisor, "_SNAPSHOT_TIMEOUT_S", 5.0)
        await over.snapshot()  # the answer to the question of before
        assert served(await over.snapshot()) == 14
        assert await over.is_ready()


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
    async with supervised(2) as (over, workers, ends):
        for end in ends:
            end.metrics.requests[("models", "completed", 2)] = 5
        await over.snapshot()
        ends[1].may_speak.clear()
        asking = asyncio.create_task(over.snapshot())
        await asyncio.sleep(0.05)  # the first has answered, the second has not
        first = workers[0]
        assert first.last is not None
        over._departed.append(without_gauges(first.last))
        first.last = None
        ends[1].may_speak.set()
        assert served(await asking) == 10


def test_listeners_share_one_port_and_a_taken_one_is_refused() -> None:
    listeners = open_listeners("127.0.0.1:0", 3)
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    with pytest.raises(OSError):
        open_listeners(f"127.0.0.1:{ports.pop()}", 1)
    for listener in listeners:
        listener.close()
