"""A worker as its supervisor sees it: what it says is heard, what it said last is kept, and its end is learnt in any case."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from control.embedded import wait_until
from gateway.channel import DRAINING, RELOAD, SERVING, SNAPSHOT
from gateway.metrics import Metrics, Snapshot
from gateway.supervisor import open_listeners
from gateway.worker_process import WorkerProcess

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LONG_S = 20.0
"""More than anything here takes on a busy machine; waited for only where something is broken."""


@asynccontextmanager
async def played(*, limit: int = 1 << 16) -> AsyncIterator[tuple[WorkerProcess, Streams]]:
    """A process that only lives, and the worker's end of the channel for the test to play."""
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "import time; time.sleep(60)")
    worker = WorkerProcess(7, process, *await asyncio.open_connection(sock=ours, limit=limit))
    reader, writer = await asyncio.open_connection(sock=theirs)
    try:
        yield worker, (reader, writer)
    finally:
        writer.close()
        worker.kill()
        async with asyncio.timeout(LONG_S):
            await worker.ended()


def counted(requests: int) -> Snapshot:
    metrics = Metrics()
    metrics.requests[("models", "completed", 2)] = requests
    return metrics.snapshot()


def line(snapshot: Snapshot) -> bytes:
    return orjson.dumps(snapshot) + b"\n"


# -- what it says


async def test_it_says_when_it_serves_and_when_it_leaves() -> None:
    async with played() as (worker, (_, writer)), asyncio.timeout(LONG_S):
        assert not worker.serving.is_set()
        writer.write(b'"something new"\n' + SERVING[:4])
        await asyncio.sleep(0)
        writer.write(SERVING[4:] + b"\n")
        await worker.serving.wait()
        assert not worker.leaving.is_set()
        writer.write(DRAINING + b"\n")
        await worker.leaving.wait()
        assert worker.status is None, "it has not ended yet"


async def test_what_it_has_counted_is_noted() -> None:
    async with played() as (worker, (reader, writer)):
        for requests in (1, 2):
            asking = asyncio.create_task(worker.ask(LONG_S))
            assert await reader.readexactly(1) == SNAPSHOT
            writer.write(line(counted(requests)))
            assert await asking
            assert worker.last == counted(requests)


async def test_all_who_ask_at_once_wait_for_one_answer() -> None:
    async with played() as (worker, (reader, writer)):
        asking = [asyncio.create_task(worker.ask(LONG_S)) for _ in range(5)]
        assert await reader.readexactly(1) == SNAPSHOT
        writer.write(line(counted(1)))
        assert await asyncio.gather(*asking) == [True] * 5
        worker.reload()
        assert await reader.readexactly(1) == RELOAD, "no second question stands before it"


async def test_one_that_is_silent_is_not_waited_for_and_not_asked_twice() -> None:
    async with played() as (worker, (reader, writer)):
        for _ in range(3):
            assert not await worker.ask(0.02)
        asking = asyncio.create_task(worker.ask(LONG_S))
        assert await reader.readexactly(1) == SNAPSHOT
        writer.write(line(counted(9)))
        assert await asking, "the answer to the question of before"
        worker.reload()
        assert await reader.readexactly(1) == RELOAD


async def test_who_waits_for_an_answer_is_told_when_it_hangs_up() -> None:
    async with played() as (worker, (reader, writer)), asyncio.timeout(LONG_S):
        asking = asyncio.create_task(worker.ask(2 * LONG_S))
        await reader.readexactly(1)
        writer.close()
        assert not await asking


@pytest.mark.parametrize("words", [b"{broken\n", b"{" + b"x" * 5000 + b"\n", b"x" * 5000])
async def test_a_channel_with_nonsense_on_it_is_heard_no_further(words: bytes) -> None:
    async with played(limit=1000) as (worker, (reader, writer)), asyncio.timeout(LONG_S):
        asking = asyncio.create_task(worker.ask(2 * LONG_S))
        await reader.readexactly(1)
        writer.write(words)
        assert not await asking
        assert worker.last is None
        assert not await worker.ask(0.02)


async def test_it_is_told_to_reload() -> None:
    async with played() as (worker, (reader, _)):
        worker.reload()
        assert await reader.readexactly(1) == RELOAD


# -- its end


async def test_what_it_said_last_is_kept_when_it_dies() -> None:
    async with played() as (worker, (_, writer)), asyncio.timeout(LONG_S):
        writer.write(line(counted(1)))
        worker.process.kill()
        await worker.process.wait()
        writer.write(line(counted(2)))  # it is still on its way when the end is learnt
        writer.close()
        assert await worker.ended() == -9
        assert worker.last == counted(2)
        assert worker.leaving.is_set()


async def test_an_end_is_learnt_even_if_the_channel_outlives_the_process() -> None:
    async with played() as (worker, (reader, _)), asyncio.timeout(LONG_S):
        asking = asyncio.create_task(worker.ask(2 * LONG_S))
        await reader.readexactly(1)
        worker.process.kill()
        assert await worker.ended() == -9
        assert not await asking
        assert worker.leaving.is_set()


async def test_nothing_is_asked_of_one_that_has_ended() -> None:
    async with played() as (worker, (_, writer)), asyncio.timeout(LONG_S):
        writer.close()
        worker.process.kill()
        await worker.ended()
        assert not await worker.ask(2 * LONG_S)
        worker.reload()
        worker.tell_to_stop()
        worker.kill()
        assert not worker.is_told_to_stop
        assert await worker.ended() == worker.status == -9


async def test_it_is_told_to_stop_once_and_everybody_learns_how_it_ended() -> None:
    async with played() as (worker, (_, writer)), asyncio.timeout(LONG_S):
        writer.close()
        for _ in range(3):
            worker.tell_to_stop()
        assert worker.is_told_to_stop
        statuses = await asyncio.gather(worker.ended(), worker.ended())
        assert list(statuses) == [-15, -15]


async def test_one_that_does_not_stop_is_killed() -> None:
    async with played() as (worker, (_, writer)), asyncio.timeout(LONG_S):
        writer.close()
        worker.kill()
        assert await worker.ended() == -9


async def test_who_gives_up_waiting_for_its_end_takes_that_from_nobody() -> None:
    async with played() as (worker, (_, writer)), asyncio.timeout(LONG_S):
        writer.close()
        impatient = asyncio.create_task(worker.ended())
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        worker.kill()
        assert await worker.ended() == -9


# -- its start


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return {**kept, **{f"TOLLKEEPER_{name}": value for name, value in settings.items()}}


async def test_a_process_serves_on_the_socket_counts_and_stops_in_order() -> None:
    (listener,) = open_listeners("127.0.0.1:0", 1)
    settings = environment(
        UPSTREAM="http://127.0.0.1:1", PEPPER="a1" * 32, REDIS_URL="redis://127.0.0.1:1", REDIS_TIMEOUT_S="0.05",
        ACCESS_LOG="off",
    )  # fmt: skip
    worker = await WorkerProcess.start(0, listener, settings, "error")
    try:
        async with asyncio.timeout(60):
            await worker.serving.wait()
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET /-/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            writer.close()
            assert await worker.ask(30)
            assert worker.last is not None
            assert ["", "no_such_route", 1] in worker.last["refusals"]
            worker.reload()
            worker.tell_to_stop()
            await worker.leaving.wait()
            assert await worker.ended() == 0
    finally:
        worker.kill()
        listener.close()


async def test_a_process_that_cannot_serve_ends_and_says_so_by_its_status() -> None:
    (listener,) = open_listeners("127.0.0.1:0", 1)
    worker = await WorkerProcess.start(0, listener, environment(), "error")
    try:
        async with asyncio.timeout(60):
            assert await worker.ended() == 2
            assert not worker.serving.is_set()
            assert worker.leaving.is_set()
    finally:
        worker.kill()
        listener.close()


async def test_a_process_that_cannot_be_started_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (listener,) = open_listeners("127.0.0.1:0", 1)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
    for _ in range(3):
        with pytest.raises(OSError):
            await WorkerProcess.start(0, listener, environment(), "error")
    await wait_until(lambda: set(os.listdir("/proc/self/fd")) <= before, LONG_S, "descriptors to be closed")  # noqa: PTH208
    listener.close()
