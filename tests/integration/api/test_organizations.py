"""Organizations over REST."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from gateway.contract.ids import tag_of_organization
from gateway.contract.layout import META
from tests.integration.api.world import LAYOUT, Api


def record(organization_id: str) -> str:
    tag = tag_of_organization(organization_id)
    assert tag is not None
    return LAYOUT.organization(tag)


async def test_an_organization_is_found_by_its_id_and_by_its_name(api: Api) -> None:
    created = await api.organization(
        "acme", display_name="Acme, Inc.", credit_limit="500", reset_period="monthly"
    )

    assert created["id"].startswith("org_")
    for reference in (created["id"], "acme"):
        shown = await api.get(f"/v1/organizations/{reference}")
        assert shown.status == 200
        assert shown.body["display_name"] == "Acme, Inc."
        assert (shown.body["credit_limit"], shown.body["remaining"], shown.body["spent"]) == (
            "500",
            "500",
            "0",
        )
        assert shown.body["resets_at"].endswith("T00:00:00.000Z")


async def test_a_created_organization_is_in_redis_when_the_answer_comes(
    api: Api, redis_client: Redis
) -> None:
    created = await api.organization("acme", credit_limit="0.5")

    fields = await redis_client.hmget(record(created["id"]), ["status", "name", "limit", "spent", "held"])
    assert fields == [b"active", b"acme", b"500000", b"0", b"0"]


async def test_a_name_is_never_used_twice(api: Api) -> None:
    await api.organization("acme")

    again = await api.post("/v1/organizations", {"name": "acme"})

    assert (again.status, again.code) == (409, "name_taken")


async def test_a_name_never_changes(api: Api) -> None:
    await api.organization("acme")

    answer = await api.patch("/v1/organizations/acme", {"name": "other"})

    assert (answer.status, answer.code, answer.fields) == (400, "immutable_field", ["name"])


async def test_a_name_is_derived_from_the_display_name(api: Api) -> None:
    answer = await api.post("/v1/organizations", {"display_name": "Bücher & Söhne GmbH"})

    assert answer.status == 201
    assert answer.body["name"] == "bucher-sohne-gmbh"


async def test_an_inactive_organization_is_inactive_in_redis_before_the_answer(
    api: Api, redis_client: Redis
) -> None:
    created = await api.organization("acme")

    answer = await api.patch("/v1/organizations/acme", {"status": "inactive"})

    assert (answer.status, answer.body["status"]) == (200, "inactive")
    assert await redis_client.hget(record(created["id"]), "status") == b"inactive"


async def test_a_new_billing_day_reaches_every_monthly_budget_below(api: Api, redis_client: Redis) -> None:
    created = await api.organization("acme")
    monthly = await api.account("acme", "monthly-worker", reset_period="monthly", credit_limit="5")
    daily = await api.account("acme", "daily-worker", reset_period="daily", credit_limit="5")
    key = (await api.key(monthly, reset_period="monthly"))["key"]

    answer = await api.patch("/v1/organizations/acme", {"billing_day": 31})

    assert answer.status == 200
    days = [
        await redis_client.hget(name, "billing_day")
        for name in (
            record(created["id"]),
            LAYOUT.account(monthly["id"]),
            LAYOUT.key(key["id"]),
            LAYOUT.account(daily["id"]),
        )
    ]
    assert days == [b"31", b"31", b"31", b"1"]
    assert await redis_client.hget(LAYOUT.account(monthly["id"]), "since") != b"0"
    assert await redis_client.hget(LAYOUT.account(daily["id"]), "since") == b"0"


async def test_every_organization_is_listed_once_across_pages_newest_first(api: Api) -> None:
    names = [f"organization-{number}" for number in range(7)]
    for name in names:
        await api.organization(name)

    first = await api.get("/v1/organizations?limit=3")
    second = await api.get(f"/v1/organizations?limit=3&cursor={first.body['next']}")
    await api.organization("created-meanwhile")
    third = await api.get(f"/v1/organizations?limit=3&cursor={second.body['next']}")

    assert [row["name"] for page in (first, second, third) for row in page.body["data"]] == names[::-1]
    assert third.body["next"] is None


@pytest.mark.parametrize(
    ("body", "code", "fields"),
    [
        ({}, "invalid_field", ["name"]),
        ({"name": "Production Worker"}, "invalid_field", ["name"]),
        ({"name": "-acme"}, "invalid_field", ["name"]),
        ({"name": "a" * 64}, "invalid_field", ["name"]),
        ({"name": "acme", "credit_limit": 5}, "invalid_field", ["credit_limit"]),
        ({"name": "acme", "credit_limit": "-5"}, "invalid_field", ["credit_limit"]),
        ({"name": "acme", "credit_limit": "NaN"}, "invalid_field", ["credit_limit"]),
        ({"name": "acme", "credit_limit": "Infinity"}, "invalid_field", ["credit_limit"]),
        ({"name": "acme", "credit_limit": "1e3"}, "invalid_field", ["credit_limit"]),
        ({"name": "acme", "credit_limit": "0.0000001"}, "invalid_field", ["credit_limit"]),
        ({"name": "acme", "reset_period": "yearly"}, "invalid_field", ["reset_period"]),
        ({"name": "acme", "billing_day": 32}, "invalid_field", ["billing_day"]),
        ({"name": "acme", "billing_day": "1"}, "invalid_field", ["billing_day"]),
        ({"name": "acme", "display_name": " "}, "invalid_field", ["display_name"]),
        ({"name": "acme", "display_name": "a\u0000b"}, "invalid_field", ["display_name"]),
        ({"name": "acme", "display_name": "a" * 201}, "invalid_field", ["display_name"]),
        ({"name": "acme", "description": "a" * 2001}, "invalid_field", ["description"]),
        ({"name": "acme", "limit": "5"}, "unknown_field", ["limit"]),
        ({"name": "acme", "limit": "5", "credit_limit": 1.5}, "invalid_field", ["credit_limit", "limit"]),
    ],
)
async def test_what_cannot_be_accepted_is_named(api: Api, body: object, code: str, fields: list[str]) -> None:
    answer = await api.post("/v1/organizations", body)

    assert (answer.status, answer.code, answer.fields) == (400, code, fields)
    assert (await api.get("/v1/organizations")).body["data"] == []


async def test_a_name_that_is_no_slug_is_answered_with_one_that_would_do(api: Api) -> None:
    answer = await api.post("/v1/organizations", {"name": "Production Worker"})

    assert answer.body["errors"][0]["suggestion"] == "production-worker"


async def test_a_limit_of_zero_blocks_and_null_lifts_it(api: Api, redis_client: Redis) -> None:
    created = await api.organization("acme", credit_limit="0")
    assert await redis_client.hget(record(created["id"]), "limit") == b"0"

    answer = await api.patch("/v1/organizations/acme", {"credit_limit": None})

    assert (answer.body["credit_limit"], answer.body["remaining"]) == (None, None)
    assert await redis_client.hget(record(created["id"]), "limit") == b""


async def test_while_redis_is_not_loaded_a_change_is_left_to_the_rebuild(
    api: Api, redis_client: Redis
) -> None:
    """Published now, the record would begin with nothing spent."""
    created = await api.organization("acme", credit_limit="5")
    await redis_client.flushall()

    answer = await api.patch("/v1/organizations/acme", {"credit_limit": "6"})

    assert (answer.status, answer.code) == (503, "not_yet_in_force")
    assert await redis_client.exists(record(created["id"]), META) == 0
    assert (await api.get("/v1/organizations/acme")).body["credit_limit"] == "6"
