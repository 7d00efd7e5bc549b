"""P2, P5, P6: without Redis nothing passes, quickly; with it again everything goes on and the books are right."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest

from control.embedded import wait_until
from tests.faults.load import load
from tests.faults.stack import Stack, hang, wake
from tests.faults.test_killed import every_request_has_its_row
from tests.system.installation import Installation, Workload, another_gateway, with_other_secret
from tests.system.recording_upstream import RecordingUpstream

ANSWER_S_MAX = 2.0
"""How long a request may take that is refused for want of Redis: the bound on one wait, and something for a busy machine."""

HUNG_S = 4.0
"""Longer than a wait for an answer and the next attempt to connect together."""


@pytest.mark.slow
async def test_a_redis_that_is_restarted_under_load_costs_no_row_and_gives_no_free_ride(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with load(installation, workload) as running:
        for _ in range(2):
            await stack.redis.stop()
            await running.until_only(503)
            await stack.redis.start()
            await running.until_only(200)
    assert set(running.counted()) == {200, 503}
    assert max(each.ended - each.began for each in running.outcomes) < ANSWER_S_MAX
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert len(rows) >= running.counted()[200]


async def test_what_ends_while_redis_is_away_is_settled_by_its_gateway_when_it_is_back(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    directory = stack.directory
    with another_gateway(
        stack.redis.url,
        directory / "pepper",
        directory / "another.log",
        directory / "routes.toml",
        hold_ttl_s="60",
    ) as gateway:
        url = f"{gateway.url}/priced/sleep/1"
        asked = [asyncio.create_task(get(installation, url, workload)) for _ in range(10)]
        await wait_until(lambda: len(fault_upstream.of(workload.key)) == 10, 5, "the requests to arrive")
        await stack.redis.stop()
        assert set(await asyncio.gather(*asked)) == {200}
        await stack.redis.start()
        rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert [(row["outcome"], row["status"], row["cost"]) for row in rows] == [
        ("completed", 200, 100_000)
    ] * 10


async def get(installation: Installation, url: str, workload: Workload) -> int:
    async with installation.http.get(url, headers=workload.bearer) as answer:
        await answer.read()
        return answer.status


@pytest.mark.slow
async def test_a_redis_that_hangs_is_given_up_on_and_found_again(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    assert stack.redis.pid is not None
    async with load(installation, workload) as running:
        hang(stack.redis.pid)
        try:
            hung = time.monotonic()
            await running.until(503, 100)
            await asyncio.sleep(max(0.0, hung + HUNG_S - time.monotonic()))
        finally:
            wake(stack.redis.pid)
        await running.until_only(200)
    slowest = max(each.ended - each.began for each in running.outcomes)
    assert slowest < ANSWER_S_MAX, f"a request took {slowest:.2f} s"
    assert set(running.counted()) == {200, 503}
    await every_request_has_its_row(installation, workload, fault_upstream)


async def test_a_flushed_redis_refuses_everything_until_it_is_rebuilt_with_what_was_spent(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload("1.00", "daily")
    for _ in range(7):
        assert (await installation.ask(workload, "/priced/"))[0] == 200
    await installation.settled(workload.tag)
    await stack.stop_process("jobs")
    await installation.redis.flushall()
    for _ in range(30):
        status, body = await installation.ask(workload, "/priced/")
        assert (status, json.loads(body)["code"]) == (503, "not_ready")
    assert len(fault_upstream.of(workload.key)) == 7, "a free ride"
    await stack.start_process("jobs")
    statuses = []
    async with asyncio.timeout(20):
        while 402 not in statuses:
            statuses.append((await installation.ask(workload, "/priced/"))[0])
    assert statuses.count(200) == 3
    assert set(statuses) == {200, 402, 503} or set(statuses) == {200, 402}
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert len(rows) == 10
    assert (await installation.counters("key", workload.key))[1:] == (1_000_000, 0)


async def test_redis_flushed_under_load_is_rebuilt_and_no_key_is_called_invalid_meanwhile(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with load(installation, workload, "/free/echo") as running:
        for _ in range(3):
            await installation.redis.flushall()
            await running.until(503, 1)
            await running.until_only(200)
    assert set(running.counted()) == {200, 503}


async def test_a_key_unknown_to_a_worker_is_recognised_by_its_hash_after_a_flush(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload("0.20")
    assert (await installation.ask(workload, "/priced/"))[0] == 200
    await installation.settled(workload.tag)
    await stack.stop_process("gateway")  # whatever it has in memory
    await installation.redis.flushall()
    await stack.start_process("gateway")
    answers = await asyncio.gather(*(installation.ask(workload, "/priced/") for _ in range(20)))
    assert sorted(status for status, _ in answers) == [200] + [402] * 19
    wrong = replace(workload, token=with_other_secret(workload.token))
    assert await get(installation, f"{stack.addresses.gateway}/priced/", wrong) == 401
    rows = await every_request_has_its_row(installation, workload, fault_upstream)
    assert len(rows) == 2
