"""P2: exactly one row for each request, whoever is killed in the middle of it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal

import aiohttp
import pytest

from control.embedded import wait_until
from tests.faults.load import load
from tests.faults.stack import Stack, hang, wake
from tests.system.installation import Installation, Row, Workload
from tests.system.recording_upstream import RecordingUpstream


async def every_request_has_its_row(
    installation: Installation, workload: Workload, upstream: RecordingUpstream
) -> list[Row]:
    """Wait for the books, and hold them against what the upstream saw: the rows."""
    rows = await installation.settled(workload.tag)
    seen = {each.request_id for each in upstream.of(workload.key)}
    assert seen, "nothing has reached the upstream"
    assert seen <= {row["request_id"] for row in rows}
    return rows


@pytest.mark.slow
async def test_a_killed_worker_is_replaced_and_every_request_has_one_row(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with load(installation, workload) as running:
        for _ in range(3):
            workers = await asyncio.to_thread(stack.workers)
            os.kill(random.choice(workers).pid, signal.SIGKILL)
            await running.until(200, 100)
            await wait_until(stack.gateway_is_ready, 20, "a replacement")
    # None: the connections of the worker that was killed. Nobody is refused because its successor is not ready yet.
    assert set(running.counted()) <= {200, None}
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    outcomes = {row["outcome"] for row in rows}
    assert "expired" in outcomes, "nobody was in the middle of a request when the worker was killed"
    assert outcomes <= {"completed", "expired", "client_gone", "upstream_failed"}


@pytest.mark.slow
async def test_a_killed_gateway_leaves_nothing_that_expire_does_not_settle(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with load(installation, workload) as running:
        await stack.kill_process("gateway")
        await stack.start_process("gateway")
        await running.until(200, 100)
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    expired = [row for row in rows if row["outcome"] == "expired"]
    assert expired
    assert {(row["cost"], row["held"], row["status"]) for row in expired} == {(100_000, 100_000, 0)}


async def test_when_only_the_supervisor_is_killed_its_workers_finish_and_end(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    workers = stack.workers()
    asked = [asyncio.create_task(installation.ask(workload, "/priced/sleep/0.5")) for _ in range(10)]
    await wait_until(lambda: len(fault_upstream.of(workload.key)) == 10, 5, "the requests to arrive")
    os.kill(stack.pid("gateway"), signal.SIGKILL)
    assert {status for status, _ in await asyncio.gather(*asked)} == {200}
    await wait_until(lambda: not any(worker.is_running() for worker in workers), 10, "the workers to end")
    await stack.stop_process("gateway")
    await stack.start_process("gateway")
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert {row["outcome"] for row in rows} == {"completed"}


async def test_a_gateway_that_is_told_to_stop_finishes_what_it_has_begun(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    asked = [asyncio.create_task(installation.ask(workload, "/priced/sleep/0.5")) for _ in range(20)]
    await wait_until(lambda: len(fault_upstream.of(workload.key)) == 20, 5, "the requests to arrive")
    await stack.stop_process("gateway")
    assert {status for status, _ in await asyncio.gather(*asked)} == {200}
    with pytest.raises(aiohttp.ClientConnectorError):
        await installation.ask(workload, "/priced/")
    await stack.start_process("gateway")
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert [row["outcome"] for row in rows] == ["completed"] * 20


@pytest.mark.slow
async def test_a_worker_that_is_silent_for_a_while_is_not_ready_and_not_ended_for_it(
    stack: Stack, installation: Installation
) -> None:
    workload = await installation.workload()
    before = {worker.pid for worker in stack.workers()}
    (silent, *_) = before
    hang(silent)
    try:
        async with asyncio.timeout(15):
            # Each of these answers waits for the worker until it is given up on.
            url = f"{stack.addresses.management}/readyz"
            for _ in range(2):
                async with installation.http.get(url) as answer:
                    assert answer.status == 503
    finally:
        wake(silent)
    await wait_until(stack.gateway_is_ready, 10, "readiness")
    async with installation.http.get(f"{stack.addresses.management}/metrics") as answer:
        assert "tollkeeper_workers 2.0" in await answer.text()
    assert {worker.pid for worker in stack.workers()} == before
    assert (await installation.ask(workload, "/free/"))[0] == 200


@pytest.mark.slow
async def test_jobs_that_are_killed_again_and_again_write_no_row_twice(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with load(installation, workload, "/priced/echo") as running:
        for _ in range(3):
            before = len(await installation.rows(workload.tag))
            await stack.kill_process("jobs")
            await running.until(200, 50)
            await stack.start_process("jobs")

            async def goes_on(before: int = before) -> bool:
                return len(await installation.rows(workload.tag)) > before

            await wait_until(goes_on, 20, "the drain to go on")
    assert set(running.counted()) == {200}
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert len(rows) == len(running.outcomes)


async def test_a_request_that_runs_longer_than_a_hold_lasts_keeps_its_hold(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload("0.15")
    asked = asyncio.create_task(installation.ask(workload, "/priced/sleep/4.5"))
    await wait_until(lambda: len(fault_upstream.of(workload.key)) == 1, 5, "the request to arrive")
    await asyncio.wait((asked,), timeout=3.5)
    assert not asked.done()
    status, body = await installation.ask(workload, "/priced/")
    assert (status, json.loads(body)["held"]) == (402, "0.1"), "the hold was let go while its request ran"
    assert (await asked)[0] == 200
    (row,) = await every_request_has_its_row(installation, workload, fault_upstream)
    assert (row["outcome"], row["cost"]) == ("completed", 100_000)
