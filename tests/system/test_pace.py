"""Requests a minute and requests in flight: exact over all workers, told as SDKs read it, and refused ones burn nothing."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import openai
import pytest

from control.embedded import wait_until
from tests.system.conftest import StartGateway
from tests.system.installation import Installation, Workload
from tests.system.model_client import Said, complete, get, refusals_counted, sdk
from tests.system.model_upstream import ModelUpstream, Play
from tests.system.wire import request, wire

QUICK = Play(events=0)
FLAT = "/flat/pieces"


async def paced(installation: Installation, level: str, **pace: Any) -> list[Workload]:
    """Two keys whose pace, at `level`, is this: of one account, or the first has it alone."""
    organization = await installation.organization()
    of_account, of_key = (pace, {}) if level == "account" else ({}, pace)
    account = await installation.account(organization, **of_account)
    return [
        await installation.key(organization, account, **of_key),
        await installation.key(organization, account, **of_key),
    ]


async def many(
    installation: Installation, workloads: list[Workload], count: int, play: Play = QUICK
) -> list[Said]:
    """So many requests at once, each on a connection of its own, dealt out over the keys."""
    asked = (get(installation, workloads[number % len(workloads)], FLAT, "", play) for number in range(count))
    return await asyncio.gather(*asked)


def by_status(answers: list[Said]) -> dict[int, int]:
    return dict(Counter(answer.status for answer in answers))


# -- requests a minute


@pytest.mark.parametrize("level", ["key", "account"])
async def test_exactly_the_burst_passes_at_once_over_all_workers(
    installation: Installation, models: ModelUpstream, level: str
) -> None:
    workloads = await paced(installation, level, requests_per_minute=1, burst=7)
    users = workloads if level == "account" else workloads[:1]
    answers = await many(installation, users, 60)
    assert by_status(answers) == {200: 7, 429: 53}
    assert sum(len(models.of(workload.key)) for workload in workloads) == 7
    assert len(await installation.settled(workloads[0].tag)) == 7
    await refusals_counted(installation, workloads[0].tag, {("rate_limited", level, False): 53})
    if level == "key":  # the other key has a pace of its own
        assert (await get(installation, workloads[1], FLAT)).status == 200


async def test_a_refusal_tells_clients_of_every_kind_when_to_try_again(installation: Installation) -> None:
    workload = await installation.workload(requests_per_minute=2, burst=1)
    assert (await get(installation, workload, FLAT, "", QUICK)).status == 200
    refused = await get(installation, workload, FLAT, "", QUICK)
    assert refused.status == 429
    wait_s = int(refused.fields["Retry-After"])
    assert 25 <= wait_s <= 30
    partition = refused.fields["RateLimit"].split(";")[-1]
    assert partition.startswith("pk=:")
    assert refused.fields["RateLimit"] == f'"requests-per-minute";r=0;t={wait_s};{partition}'
    assert (
        refused.fields["RateLimit-Policy"] == f'"requests-per-minute";q=2;w=60;tollkeeper-burst=1;{partition}'
    )
    assert {name: value for name, value in refused.fields.items() if name.startswith("x-ratelimit")} == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": f"{wait_s}s",
    }
    assert "x-should-retry" not in refused.fields
    error = refused.document["error"]
    assert (error["code"], error["type"]) == ("rate_limited", "rate_limit_error")
    told = error["metadata"]
    assert (told["level"], told["id"], told["limit"], told["burst"], told["retry_after_s"]) == (
        "key", workload.key, 2, 1, wait_s,
    )  # fmt: skip


async def test_refused_requests_burn_nothing_and_the_sdk_waits_as_it_is_told(
    installation: Installation,
) -> None:
    workload = await installation.workload("10", requests_per_minute=60, burst=1)
    async with sdk(installation, workload, "flat") as client:
        await complete(client, "first", QUICK)
        began = time.monotonic()
        refused = 0
        while time.monotonic() - began < 0.4:
            with pytest.raises(openai.RateLimitError):
                await complete(client, f"refused-{refused}", QUICK)
            refused += 1
    assert refused > 10
    async with sdk(installation, workload, "flat", retries=1) as client:
        await complete(client, "second", QUICK)  # refused once more, and sent again after Retry-After
    assert 0.5 < time.monotonic() - began < 10
    rows = await installation.settled(workload.tag)
    assert [row["client_request_id"] for row in rows] == ["first", "second"]
    await refusals_counted(installation, workload.tag, {("rate_limited", "key", False): refused + 1})


async def test_a_changed_rate_holds_from_the_next_request_on(installation: Installation) -> None:
    workload = await installation.workload(requests_per_minute=1)
    key = f"/v1/keys/{workload.key}"
    assert by_status(await many(installation, [workload], 3)) == {200: 1, 429: 2}
    await installation.call("PATCH", key, {"requests_per_minute": 60_000})

    async def passes() -> bool:  # after an interval of the new rate: a millisecond
        return (await get(installation, workload, FLAT, "", QUICK)).status == 200

    await wait_until(passes, 5, "a request to pass at the raised rate")
    await installation.call("PATCH", key, {"requests_per_minute": 1})
    statuses = by_status(await many(installation, [workload], 3))
    assert statuses[429] >= 2
    await installation.call("PATCH", key, {"requests_per_minute": None})
    assert by_status(await many(installation, [workload], 20)) == {200: 20}
    await installation.settled(workload.tag)


# -- requests in flight


@pytest.mark.parametrize("level", ["key", "account"])
async def test_never_more_than_so_many_are_at_the_upstream_at_once_and_in_the_end_all_pass(
    installation: Installation, models: ModelUpstream, level: str
) -> None:
    workloads = await paced(installation, level, requests_in_flight=3)
    users = workloads if level == "account" else workloads[:1]
    refusals = 0

    async def until_it_passes(number: int) -> None:
        nonlocal refusals
        while True:
            answer = await get(
                installation, users[number % len(users)], FLAT, "", Play(events=0, wait_s=0.01)
            )
            if answer.status == 200:
                return
            assert (answer.status, answer.document["error"]["code"]) == (429, "too_many_in_flight")
            assert answer.document["error"]["metadata"]["level"] == level
            assert answer.fields["Retry-After"] == "1"
            refusals += 1
            await asyncio.sleep(0.02)

    await asyncio.gather(*(until_it_passes(number) for number in range(40)))
    assert refusals > 0
    entity = workloads[0].account if level == "account" else workloads[0].key
    assert models.most_at_once[entity] == 3
    assert len(await installation.settled(workloads[0].tag)) == 40
    await refusals_counted(installation, workloads[0].tag, {("too_many_in_flight", level, False): refusals})


@pytest.mark.parametrize("company", [0, 48])
async def test_a_client_that_sends_one_after_another_is_never_refused_for_being_two(
    installation: Installation, company: int
) -> None:
    workload = await installation.workload(requests_in_flight=1)
    others = await installation.workload()
    crowd = [
        asyncio.create_task(get(installation, others, FLAT, "", Play(events=0, wait_s=10.0)))
        for _ in range(company)
    ]

    async def are_there() -> bool:
        return (await installation.live("key", others.key)).in_flight == company

    await wait_until(are_there, 10, "the others to be in flight")
    statuses: Counter[int] = Counter()
    for _ in range(100):
        async with wire(installation.addresses.gateway_port) as client:
            client.send(
                request(workload, FLAT, *(f"{name}: {value}" for name, value in QUICK.fields.items()))
            )
            statuses[(await client.answer()).status] += 1
    assert statuses == {200: 100}
    for other in crowd:
        other.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert len(await installation.settled(workload.tag)) == 100


async def in_flight_is(installation: Installation, workload: Workload, count: int) -> None:
    """Wait until so many requests of a key are under way, as the REST API tells."""

    async def is_so() -> bool:
        shown = await installation.call("GET", f"/v1/keys/{workload.key}")
        return bool(shown["in_flight"] == count)

    await wait_until(is_so, 15, f"{count} requests to be in flight")


async def test_places_come_back_whatever_ended_the_requests(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload(requests_in_flight=4)
    fields = [f"{name}: {value}" for name, value in Play(wait_s=15).fields.items()]
    ends: list[Mapping[str, Any]] = [
        {"dies": "unheard"},
        {"dies": "midway", "events": 4},
        {"status": 500, "events": 0},
    ]
    for _ in range(3):
        async with (
            wire(installation.addresses.gateway_port) as one,
            wire(installation.addresses.gateway_port) as two,
        ):
            for client in (one, two):
                client.send(request(workload, FLAT, *fields))
            await in_flight_is(installation, workload, 2)
        await in_flight_is(installation, workload, 0)
        for end in ends:
            assert by_status(await many(installation, [workload], 4, Play(**end))).keys() <= {200, 500, 502}
            await in_flight_is(installation, workload, 0)
    assert by_status(await many(installation, [workload], 4, Play(events=0, wait_s=0.3))) == {200: 4}
    outcomes = Counter(row["outcome"] for row in await installation.settled(workload.tag))
    assert outcomes == {"client_gone": 6, "upstream_failed": 24, "completed": 12 + 4}


async def test_places_of_a_worker_that_was_killed_come_back_with_its_holds(
    installation: Installation, gateway_with: StartGateway
) -> None:
    gateway = gateway_with(workers="2", hold_ttl_s="1.5")
    workload = await installation.workload(requests_in_flight=6)
    fields = [f"{name}: {value}" for name, value in Play(events=0, wait_s=10).fields.items()]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(wire(gateway.port)) for _ in range(7)]
        for client in clients[:6]:
            client.send(request(workload, FLAT, *fields))
        await in_flight_is(installation, workload, 6)
        clients[6].send(request(workload, FLAT, *fields))
        assert (await clients[6].answer()).status == 429
        for worker in gateway.workers():
            worker.send_signal(signal.SIGKILL)
        assert [await client.is_closed() for client in clients] == [True] * 7
    assert (await installation.live("key", workload.key)).in_flight == 6
    await in_flight_is(installation, workload, 0)
    rows = await installation.settled(workload.tag)
    assert [(row["outcome"], row["cost"]) for row in rows] == [("expired", 100_000)] * 6


async def test_a_changed_number_in_flight_holds_from_the_next_request_on(installation: Installation) -> None:
    workload = await installation.workload(requests_in_flight=1)
    key, slow = f"/v1/keys/{workload.key}", Play(events=0, wait_s=1.0)
    running = [asyncio.create_task(get(installation, workload, FLAT, "", slow))]
    await in_flight_is(installation, workload, 1)
    assert (await get(installation, workload, FLAT, "", QUICK)).status == 429
    await installation.call("PATCH", key, {"requests_in_flight": 2})
    assert (await get(installation, workload, FLAT, "", QUICK)).status == 200
    await installation.call("PATCH", key, {"requests_in_flight": None})
    assert by_status(await many(installation, [workload], 10)) == {200: 10}
    await installation.call("PATCH", key, {"requests_in_flight": 0})
    blocked = await get(installation, workload, FLAT, "", QUICK)
    assert (blocked.status, blocked.fields["x-should-retry"]) == (429, "false")
    assert "Retry-After" not in blocked.fields
    assert "A limit of 0 lets nothing through" in blocked.document["error"]["message"]
    assert {answer.status for answer in await asyncio.gather(*running)} == {200}  # what was under way goes on
    await installation.settled(workload.tag)
