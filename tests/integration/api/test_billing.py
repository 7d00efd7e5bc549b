"""How an organization pays: plain, prepaid or postpaid, and what a switch between them keeps and begins anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import asyncpg
import pytest
from redis.asyncio import Redis

from gateway.contract.ids import tag_of_organization
from tests.integration.api.world import LAYOUT, Answer, Api, Gateway

ORGANIZATION = "/v1/organizations/acme"


@pytest.fixture
async def token(api: Api) -> str:
    await api.organization("acme", credit_limit="10", reset_period="monthly")
    return str((await api.key(await api.account()))["token"])


Look = Callable[..., Awaitable[list[Any]]]


@pytest.fixture
def look(api: Api, redis_client: Redis, token: str) -> Look:
    """Fields of the organization's record in Redis."""

    async def look(*fields: str) -> list[Any]:
        tag = tag_of_organization((await api.get(ORGANIZATION)).body["id"])
        assert tag is not None
        found = await redis_client.hmget(LAYOUT.organization(tag), list(fields))
        return [cast(bytes, value).decode() for value in found]

    return look


async def bill(api: Api, billing: str | None, **more: Any) -> Answer:
    answer = await api.patch(ORGANIZATION, {"billing": billing, **more})
    assert answer.status == 200, answer.body
    return answer


async def test_a_plain_organization_says_so(api: Api, token: str, look: Look) -> None:
    shown = (await api.get(ORGANIZATION)).body

    assert (shown["billing"], shown["granted"], shown["lost"]) == (None, None, None)
    assert await look("limit", "period", "enforcement", "grants") == ["10000000", "monthly", "enforce", ""]


async def test_what_was_spent_before_counts_against_no_grant(
    api: Api, gateway: Gateway, token: str, look: Look
) -> None:
    await gateway.spend(token, 9_000_000)

    answer = await bill(api, "prepaid")
    assert (answer.body["credit_limit"], answer.body["reset_period"]) == ("0", "never")
    assert (answer.body["spent"], answer.body["remaining"], answer.body["granted"]) == ("0", "0", "0")
    assert (await gateway.admit(token, 1))[0] == b"budget"

    await api.post(f"{ORGANIZATION}/grants", {"amount": "5"})
    assert await look("limit", "period") == ["5000000", "never"]
    await gateway.spend(token, 5_000_000)
    assert (await gateway.admit(token, 1))[0] == b"budget"


async def test_a_request_that_was_under_way_at_the_switch_costs_no_grant_anything(
    api: Api, gateway: Gateway, token: str
) -> None:
    hold = await gateway.admit(token, 3_000_000)
    await bill(api, "prepaid")
    await api.post(f"{ORGANIZATION}/grants", {"amount": "5"})
    await gateway.spend(token, 1_000_000)
    await gateway.settle(hold, 3_000_000)

    assert (await api.get(ORGANIZATION)).body["remaining"] == "4"


async def test_the_limit_from_before_is_in_force_again_afterwards_and_what_was_lost_takes_nothing_of_it(
    api: Api, gateway: Gateway, token: str, look: Look, database: asyncpg.Connection
) -> None:
    await bill(api, "prepaid")
    await api.post(f"{ORGANIZATION}/grants", {"amount": "5", "expires_at": "2032-01-01T00:00:00Z"})
    await api.post(f"{ORGANIZATION}/grants", {"amount": "4"})
    await database.execute("UPDATE grants SET expires_at = now() WHERE expires_at IS NOT NULL")
    await api.patch(ORGANIZATION, {"alert_thresholds": [1]})  # publishes the expiry as well
    await gateway.spend(token, 1_000_000)
    assert await look("lost") == ["5000000"]

    answer = await bill(api, None)

    assert (answer.body["credit_limit"], answer.body["reset_period"]) == ("10", "monthly")
    assert (answer.body["granted"], answer.body["lost"], answer.body["remaining"]) == (None, None, "10")
    await gateway.spend(token, 10_000_000)
    assert (await gateway.admit(token, 1))[0] == b"budget"
    ended = (await api.get(f"{ORGANIZATION}/grants")).body["data"]
    assert [(row["amount"], row["left"]) for row in ended] == [("4", "0"), ("5", "0")]


async def test_prepaid_once_more_begins_a_line_of_its_own(
    api: Api, gateway: Gateway, token: str, look: Look
) -> None:
    await bill(api, "prepaid")
    await api.post(f"{ORGANIZATION}/grants", {"amount": "5"})
    await gateway.spend(token, 2_000_000)
    await bill(api, None)
    await bill(api, "prepaid")

    assert (await gateway.admit(token, 1))[0] == b"budget"
    await api.post(f"{ORGANIZATION}/grants", {"amount": "7"})
    shown = (await api.get(ORGANIZATION)).body
    assert (shown["granted"], shown["lost"], shown["spent"], shown["remaining"]) == ("7", "0", "0", "7")
    await gateway.spend(token, 7_000_000)
    assert (await gateway.admit(token, 1))[0] == b"budget"


async def test_postpaid_keeps_limit_window_and_spend_and_only_observes(
    api: Api, gateway: Gateway, token: str, look: Look
) -> None:
    await gateway.spend(token, 9_000_000)

    answer = await bill(api, "postpaid")

    assert (answer.body["credit_limit"], answer.body["spent"]) == ("10", "9")
    assert answer.body["enforcement"] == "observe"
    assert await look("limit", "period", "enforcement") == ["10000000", "monthly", "observe"]
    assert (await gateway.admit(token, 2_000_000))[0] == b"observed"
    back = await bill(api, None)
    assert (back.body["enforcement"], back.body["spent"], back.body["held"]) == ("enforce", "9", "2")


@pytest.mark.parametrize(
    ("billing", "body"),
    [
        ("prepaid", {"credit_limit": "5"}),
        ("prepaid", {"credit_limit": None}),
        ("prepaid", {"reset_period": "daily"}),
        ("prepaid", {"enforcement": "observe"}),
        ("postpaid", {"enforcement": "enforce"}),
    ],
)
async def test_what_does_not_go_with_the_billing_is_a_conflict_that_says_what_to_do(
    api: Api, token: str, billing: str, body: dict[str, Any]
) -> None:
    at_once = await api.patch(ORGANIZATION, {"billing": billing, **body})
    assert (at_once.status, at_once.code) == (409, "not_with_this_billing")
    assert (await api.get(ORGANIZATION)).body["billing"] is None

    await bill(api, billing)
    answer = await api.patch(ORGANIZATION, body)
    assert (answer.status, answer.code) == (409, "not_with_this_billing")
    assert "billing" in answer.body["detail"]
    assert ("/grants" in answer.body["detail"]) == ("enforcement" not in body)

    created = await api.post("/v1/organizations", {"name": "other", "billing": billing, **body})
    assert (created.status, created.fields) == (400, list(body))


async def test_a_limit_may_be_set_in_the_call_that_ends_prepaid(api: Api, token: str) -> None:
    await bill(api, "prepaid")

    answer = await bill(api, None, credit_limit="3", reset_period="daily")

    assert (answer.body["credit_limit"], answer.body["reset_period"]) == ("3", "daily")


async def test_what_leaves_the_billing_alone_leaves_the_line_alone(
    api: Api, gateway: Gateway, token: str
) -> None:
    await bill(api, "prepaid")
    await api.post(f"{ORGANIZATION}/grants", {"amount": "5"})
    await gateway.spend(token, 2_000_000)

    await api.patch(ORGANIZATION, {"billing_day": 15, "alert_thresholds": [50]})
    answer = await bill(api, "prepaid", enforcement="enforce", display_name="Acme, Inc.")

    assert (answer.body["spent"], answer.body["remaining"]) == ("2", "3")


async def test_only_a_prepaid_organization_is_granted_credits(api: Api, token: str) -> None:
    for billing in (None, "postpaid"):
        await bill(api, billing)
        answer = await api.post(f"{ORGANIZATION}/grants", {"amount": "5"})
        assert (answer.status, answer.code) == (409, "not_prepaid")
        assert "set billing to prepaid" in answer.body["detail"]


async def test_billing_is_one_of_two_or_null(api: Api, token: str) -> None:
    answer = await api.patch(ORGANIZATION, {"billing": "plain"})

    assert (answer.status, answer.fields) == (400, ["billing"])
