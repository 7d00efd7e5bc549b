"""P1: no overspend, however many ask at once; and the books agree afterwards."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.recording_upstream import RecordingUpstream

REQUESTS = 200
PRICE = 100_000


async def race(installation: Installation, workloads: list[Workload]) -> list[tuple[int, dict[str, Any]]]:
    """REQUESTS requests at once, dealt out over the workloads."""

    async def one(number: int) -> tuple[int, dict[str, Any]]:
        status, body = await installation.ask(
            workloads[number % len(workloads)], f"/priced/sleep/0.2?{number}"
        )
        return status, json.loads(body)

    return await asyncio.gather(*(one(number) for number in range(REQUESTS)))


async def entity_of(installation: Installation, level: str) -> tuple[list[Workload], str]:
    """Keys whose budget at `level` is 1 credit a day in all, and the id by which a refusal calls that entity."""
    one = {"limit": "1.00", "period": "daily"}
    if level == "key":
        workload = await installation.workload(**one)
        return [workload], workload.key
    if level == "account":
        organization = await installation.organization()
        account = await installation.account(organization, **one)
        return [await installation.key(organization, account) for _ in range(5)], account["id"]
    organization = await installation.organization(**one)
    accounts = [await installation.account(organization) for _ in range(4)]
    return [await installation.key(organization, account) for account in accounts], organization["id"]


@pytest.mark.parametrize("level", ["key", "account", "organization"])
async def test_of_200_requests_at_once_exactly_as_many_pass_as_the_limit_pays_for(
    installation: Installation, upstream: RecordingUpstream, level: str
) -> None:
    workloads, entity = await entity_of(installation, level)
    answers = await race(installation, workloads)
    seen = [seen for workload in workloads for seen in upstream.of(workload.key)]
    assert len(seen) == 10
    assert sorted({status for status, _ in answers}) == [200, 402]
    refused = [body for status, body in answers if status == 402]
    assert len(refused) == 190
    for body in refused:
        assert (body["level"], body["id"], body["limit"]) == (level, entity, "1")
        assert body["error"]["code"] == "budget_exceeded"
        assert datetime.fromisoformat(body["resets_at"]) > datetime.now(UTC)
    await the_books_agree(installation, workloads, {each.request_id for each in seen})
    (row,) = await installation.usage(workloads[0], "day")
    assert (row["requests"], row["refused"], row["cost"]) == (10, 190, "1")


async def the_books_agree(installation: Installation, workloads: list[Workload], requests: set[str]) -> None:
    """The ledger has exactly these requests, and the refusals are counted too."""
    rows = await installation.settled(workloads[0].tag)
    assert {row["request_id"] for row in rows} == requests
    assert {(row["cost"], row["held"], row["outcome"]) for row in rows} == {(PRICE, PRICE, "completed")}

    async def refusals_are_counted() -> bool:
        counted = [int(row["refused"]) for row in await installation.usage(workloads[0], "account")]
        return sum(counted) == 190

    await wait_until(refusals_are_counted, 15, "the refusals to be counted")


async def test_where_the_route_says_429_a_refused_client_is_told_not_to_try_again(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.15", "daily")
    assert (await installation.ask(workload, "/quota-429/"))[0] == 200
    url = f"{installation.addresses.gateway}/quota-429/"
    async with installation.http.get(url, headers=workload.bearer) as answer:
        assert answer.status == 429
        assert answer.headers["x-should-retry"] == "false"
        assert (await answer.json())["remaining"] == "0.05"


async def test_a_raised_limit_lets_the_next_request_pass_and_a_lowered_one_stops_it(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.10")
    assert (await installation.ask(workload, "/priced/"))[0] == 200
    assert (await installation.ask(workload, "/priced/"))[0] == 402
    await installation.call("PATCH", f"/v1/keys/{workload.key}", {"credit_limit": "0.20"})
    assert (await installation.ask(workload, "/priced/"))[0] == 200
    await installation.call("PATCH", f"/v1/keys/{workload.key}", {"credit_limit": None})
    assert (await installation.ask(workload, "/priced/"))[0] == 200
    await installation.call("PATCH", f"/v1/keys/{workload.key}", {"credit_limit": "0.05"})
    assert (await installation.ask(workload, "/priced/"))[0] == 402
    assert len(await installation.settled(workload.tag)) == 3


async def test_the_cost_that_is_measured_replaces_what_was_held(installation: Installation) -> None:
    workload = await installation.workload("0.6")
    status, body = await installation.ask(workload, "/kib/bytes/10240")
    assert (status, len(body)) == (200, 10240)
    (row,) = await installation.settled(workload.tag)
    assert (row["held"], row["cost"], row["bytes_out"]) == (500_000, 10_000, 10240)
