"""Limits that change while workloads send requests: each change holds from the next request on, at every level."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.model_client import get, post, refusals_counted
from tests.system.model_upstream import ModelUpstream, Play

FLAT = "/flat/pieces"
QUICK = Play(events=0)
LEVELS = ("key", "account", "organization")
PATHS = {"key": "/v1/keys", "account": "/v1/service-accounts", "organization": "/v1/organizations"}


async def ask(installation: Installation, workload: Workload) -> int:
    return (await get(installation, workload, FLAT, "", QUICK)).status


async def set_limit(installation: Installation, level: str, workload: Workload, limit: str | None) -> None:
    entity = getattr(workload, level)
    await installation.call("PATCH", f"{PATHS[level]}/{entity}", {"credit_limit": limit})


@pytest.mark.parametrize("level", LEVELS)
async def test_a_changed_limit_holds_from_the_next_request_on(installation: Installation, level: str) -> None:
    workload = await installation.workload()
    changes: list[tuple[str | None, int]] = [
        ("0.15", 402), ("0.25", 200), ("0.2", 402), ("1", 200), ("0", 402), (None, 200), ("0.35", 402), ("0.5", 200)
    ]  # fmt: skip
    assert await ask(installation, workload) == 200
    for limit, status in changes:
        await set_limit(installation, level, workload, limit)
        assert await ask(installation, workload) == status, limit
    assert len(await installation.settled(workload.tag)) == 5
    await refusals_counted(installation, workload.tag, {("budget_exceeded", level, False): 4})


@pytest.mark.parametrize("level", LEVELS)
async def test_a_limit_of_zero_blocks_even_what_costs_nothing(installation: Installation, level: str) -> None:
    workload = await installation.workload()
    assert (await installation.ask(workload, "/free/x"))[0] == 200
    await set_limit(installation, level, workload, "0")
    assert (await installation.ask(workload, "/free/x"))[0] == 402
    await set_limit(installation, level, workload, None)
    assert (await installation.ask(workload, "/free/x"))[0] == 200


async def test_what_is_under_way_when_a_limit_is_lowered_is_finished_and_charged(
    installation: Installation,
) -> None:
    workload = await installation.workload("1")
    slow = Play(events=0, wait_s=0.6)
    running = [asyncio.create_task(get(installation, workload, FLAT, "", slow)) for _ in range(3)]

    async def all_are_held() -> bool:
        return (await installation.live("key", workload.key)).held == 300_000

    await wait_until(all_are_held, 10, "the requests to be under way")
    await set_limit(installation, "key", workload, "0.1")
    refused = await get(installation, workload, FLAT, "", QUICK)
    metadata = refused.document["error"]["metadata"]
    assert (refused.status, metadata["held"], metadata["remaining"]) == (402, "0.3", "0")
    assert {answer.status for answer in await asyncio.gather(*running)} == {200}
    rows = await installation.settled(workload.tag)
    assert [(row["outcome"], row["cost"]) for row in rows] == [("completed", 100_000)] * 3


async def test_a_changed_period_starts_a_fresh_window_and_keeps_the_rows(installation: Installation) -> None:
    workload = await installation.workload("0.1")
    assert await ask(installation, workload) == 200
    assert await ask(installation, workload) == 402
    await installation.call("PATCH", f"/v1/keys/{workload.key}", {"reset_period": "monthly"})
    assert await ask(installation, workload) == 200
    refused = await get(installation, workload, FLAT, "", QUICK)
    assert refused.status == 402
    assert refused.document["error"]["metadata"]["resets_at"].endswith("T00:00:00Z")
    rows = await installation.settled(workload.tag)
    assert len({row["key_window"] for row in rows}) == 2


async def test_the_most_that_passes_while_limits_are_moved_about_is_the_highest_of_them(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.5")
    is_over = False

    async def move_about() -> None:
        for number in range(12):
            await set_limit(installation, LEVELS[number % 3], workload, ("1", "0.8", "1.2")[number % 3])
            await set_limit(installation, LEVELS[number % 3], workload, ("0.6", "0.7", "0.5")[number % 3])
        nonlocal is_over
        is_over = True

    async def keep_asking() -> int:
        passed = 0
        while not is_over:
            passed += await ask(installation, workload) == 200
        return passed

    moving, *asking = (
        asyncio.create_task(work) for work in (move_about(), *(keep_asking() for _ in range(8)))
    )
    passed = sum([await one for one in asking])  # type: ignore[misc]
    await moving
    rows = await installation.settled(workload.tag)
    assert len(rows) == passed
    assert 5 <= passed <= 12


async def test_refusals_of_every_reason_are_rows_by_reason_and_level(
    installation: Installation, models: ModelUpstream
) -> None:
    organization = await installation.organization("0.25")
    account = await installation.account(organization, requests_in_flight=1)
    workload = await installation.key(organization, account)
    slow = asyncio.create_task(get(installation, workload, FLAT, "", Play(events=0, wait_s=1.0)))
    await wait_until(lambda: bool(models.of(workload.key)), 10, "the request to be under way")
    assert await ask(installation, workload) == 429
    assert (await slow).status == 200
    assert [await ask(installation, workload) for _ in range(4)] == [200, 402, 402, 402]
    unpriced = await post(installation, workload, "/by-model/chat/completions", body={"model": "huge"})
    malformed = await post(
        installation, workload, "/by-model/chat/completions", body=b'{"model": 1, "model": 2}'
    )
    assert (unpriced.status, malformed.status) == (400, 400)
    await installation.call("PATCH", f"/v1/keys/{workload.key}", {"requests_per_minute": 1, "burst": 1})
    await set_limit(installation, "organization", workload, None)
    assert [await ask(installation, workload) for _ in range(3)] == [200, 429, 429]
    expected: dict[tuple[str, str, bool], int] = {
        ("too_many_in_flight", "account", False): 1,
        ("budget_exceeded", "organization", False): 3,
        ("rate_limited", "key", False): 2,
        ("unpriced", "", False): 1,
        ("bad_request", "", False): 1,
    }
    await refusals_counted(installation, workload.tag, expected)
    usage: list[dict[str, Any]] = await installation.usage(workload, "route")
    assert {row["route"]: (row["requests"], row["refused"]) for row in usage} == {
        "flat": (3, 6), "by-model": (0, 2)
    }  # fmt: skip
    assert len(await installation.settled(workload.tag)) == 3
