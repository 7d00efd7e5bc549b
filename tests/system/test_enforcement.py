"""A level that observes lets everything through, and says what it would have refused; one that enforces, refuses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.model_client import get, refusals_counted
from tests.system.model_upstream import Play

FLAT = "/flat/pieces"
QUICK = Play(events=0)

PATHS = {"key": "/v1/keys", "account": "/v1/service-accounts", "organization": "/v1/organizations"}


async def workload_with(installation: Installation, level: str, **rules: Any) -> Workload:
    """A key whose chain has these rules at one level."""
    given: dict[str, dict[str, Any]] = {"key": {}, "account": {}, "organization": {}} | {level: rules}
    organization = await installation.organization(**given["organization"])
    account = await installation.account(organization, **given["account"])
    return await installation.key(organization, account, **given["key"])


async def shown(installation: Installation, level: str, workload: Workload) -> dict[str, Any]:
    """A level of a key's chain, as the REST API shows it."""
    return await installation.call("GET", f"{PATHS[level]}/{getattr(workload, level)}")


async def ask(installation: Installation, workload: Workload, count: int) -> list[int]:
    """The statuses of so many requests, one after another."""
    return [(await get(installation, workload, FLAT, "", QUICK)).status for _ in range(count)]


@pytest.mark.parametrize("level", ["key", "account", "organization"])
async def test_a_limit_that_is_observed_lets_through_and_counts_what_it_would_have_refused(
    installation: Installation, level: str
) -> None:
    workload = await workload_with(installation, level, limit="0.25", enforcement="observe")
    assert await ask(installation, workload, 5) == [200] * 5
    assert len(await installation.settled(workload.tag)) == 5
    told = await shown(installation, level, workload)
    assert (told["enforcement"], told["observed"], told["spent"]) == ("observe", 3, "0.5")
    assert told["remaining"] == "0"
    await refusals_counted(installation, workload.tag, {("budget_exceeded", level, True): 3})
    (usage,) = await installation.usage(workload, "key")
    assert (usage["requests"], usage["refused"], usage["cost"]) == (5, 0, "0.5")


@pytest.mark.parametrize("level", ["key", "account"])
async def test_a_pace_that_is_observed_lets_through_and_counts_too(
    installation: Installation, level: str
) -> None:
    workload = await workload_with(
        installation, level, enforcement="observe", requests_per_minute=1, burst=2, requests_in_flight=1
    )
    slow = Play(events=0, wait_s=0.5)
    answers = await asyncio.gather(*(get(installation, workload, FLAT, "", slow) for _ in range(4)))
    assert [answer.status for answer in answers] == [200] * 4
    assert len(await installation.settled(workload.tag)) == 4
    # One is told of one reason: the rate is looked at first.
    assert (await shown(installation, level, workload))["observed"] == 3
    await refusals_counted(
        installation, workload.tag, {("rate_limited", level, True): 2, ("too_many_in_flight", level, True): 1}
    )


async def test_a_level_that_enforces_refuses_though_another_only_observes(installation: Installation) -> None:
    organization = await installation.organization("0.25")
    account = await installation.account(organization, "0.15", enforcement="observe")
    workload = await installation.key(organization, account, "0.05", enforcement="observe")
    assert await ask(installation, workload, 4) == [200, 200, 402, 402]
    assert len(await installation.settled(workload.tag)) == 2
    # What is refused is no request: the levels that observe count those that passed.
    assert [(await shown(installation, level, workload))["observed"] for level in PATHS] == [2, 1, 0]
    await refusals_counted(
        installation, workload.tag,
        {
            ("budget_exceeded", "key", True): 2, ("budget_exceeded", "account", True): 1,
            ("budget_exceeded", "organization", False): 2,
        },
    )  # fmt: skip


async def test_enforcing_begins_and_ends_with_the_next_request(installation: Installation) -> None:
    workload = await installation.workload("0.1", enforcement="observe")
    key = f"/v1/keys/{workload.key}"
    assert await ask(installation, workload, 2) == [200, 200]
    await installation.call("PATCH", key, {"enforcement": "enforce"})
    assert await ask(installation, workload, 2) == [402, 402]
    await installation.call("PATCH", key, {"enforcement": "observe"})
    assert await ask(installation, workload, 2) == [200, 200]
    assert len(await installation.settled(workload.tag)) == 4
    await refusals_counted(
        installation, workload.tag,
        {("budget_exceeded", "key", True): 3, ("budget_exceeded", "key", False): 2},
    )  # fmt: skip


async def test_a_postpaid_organization_goes_on_beyond_its_limit_and_a_prepaid_one_does_not(
    installation: Installation,
) -> None:
    organization = await installation.organization("0.15", billing="postpaid")
    workload = await installation.key(organization, await installation.account(organization))
    assert await ask(installation, workload, 3) == [200] * 3
    told = await shown(installation, "organization", workload)
    assert (told["billing"], told["observed"]) == ("postpaid", 2)
    path = f"/v1/organizations/{organization['id']}"
    await installation.call("PATCH", path, {"billing": "prepaid"})
    assert await ask(installation, workload, 1) == [402]
    await installation.call("POST", f"{path}/grants", {"amount": "0.25"})
    assert await ask(installation, workload, 3) == [200, 200, 402]

    async def is_spent() -> bool:
        told = await shown(installation, "organization", workload)
        return bool((told["spent"], told["remaining"], told["granted"]) == ("0.2", "0.05", "0.25"))

    await wait_until(is_spent, 15, "the requests to be settled")
    rows = await installation.settled(workload.tag)
    assert len(rows) == 5
