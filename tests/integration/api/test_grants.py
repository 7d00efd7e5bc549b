"""Prepaid organizations over REST: grants, the order in which they are used, and their expiry."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from control.domain import grants, rules
from control.publishing import Publisher
from gateway.contract.ids import tag_of_organization
from tests.integration.api.world import LAYOUT, Answer, Api, Gateway, Json

PATH = "/v1/organizations/acme/grants"


class Prepaid:
    """A prepaid organization with one key, which spends."""

    def __init__(self, api: Api, gateway: Gateway, organization: Json, token: str) -> None:
        tag = tag_of_organization(organization["id"])
        assert tag is not None
        self.api, self.gateway, self.token = api, gateway, token
        self.record = LAYOUT.organization(tag)

    async def grant(
        self, amount: str, expires_at: datetime | None = None, key: str | None = None, **more: Any
    ) -> Answer:
        body = {"amount": amount, **more}
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat().replace("+00:00", "Z")
        return await self.api.call(
            "POST", PATH, body, headers={} if key is None else {"Idempotency-Key": key}
        )

    async def figures(self) -> tuple[Any, ...]:
        """Granted, lost, spent, remaining."""
        shown = (await self.api.get("/v1/organizations/acme")).body
        return shown["granted"], shown["lost"], shown["spent"], shown["remaining"]

    async def shares(self) -> list[tuple[Any, ...]]:
        """Amount, used, lost and left of each grant, newest first."""
        rows = (await self.api.get(PATH)).body["data"]
        return [(row["amount"], row["used"], row["lost"], row["left"]) for row in rows]

    async def spend(self, amount: float) -> None:
        await self.gateway.spend(self.token, int(amount * 1_000_000))

    async def refusal(self, amount: float) -> Any:
        return await self.gateway.admit(self.token, int(amount * 1_000_000))

    async def expire(self, amount: str, database: asyncpg.Connection) -> None:
        """The grant of this amount has just expired, in Postgres and in Redis."""
        await database.execute(
            "UPDATE grants SET expires_at = now() - interval '1 second' WHERE amount_microcredits = $1",
            int(amount) * 1_000_000,
        )
        await database.execute("UPDATE organizations SET version = nextval('rule_version')")
        await publish_organization(self.api, database)


async def publish_organization(api: Api, database: asyncpg.Connection) -> None:
    tag = await database.fetchval("SELECT tag FROM organizations WHERE name = 'acme'")
    found = await rules.load(database, "organization", tag)
    assert found is not None
    publisher: Publisher = api.deps.changes._publisher
    assert await publisher.publish_changes([found]) == [True]


@pytest.fixture
async def acme(api: Api, gateway: Gateway) -> Prepaid:
    organization = await api.organization("acme", billing="prepaid")
    return Prepaid(api, gateway, organization, (await api.key(await api.account()))["token"])


def tomorrow(days: int = 1) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


async def test_a_prepaid_organization_may_spend_nothing_before_the_first_grant(acme: Prepaid) -> None:
    assert await acme.figures() == ("0", "0", "0", "0")
    assert (await acme.refusal(0))[:3] == [b"budget", b"organization", 0]


async def test_a_grant_can_be_spent_from_the_next_request_on_and_not_more_than_it(acme: Prepaid) -> None:
    made = await acme.grant("10", note="invoice 7")

    assert made.status == 201
    assert made.body["id"].startswith("gr_")
    assert (made.body["amount"], made.body["expires_at"], made.body["note"]) == ("10", None, "invoice 7")
    await acme.spend(6)
    assert await acme.figures() == ("10", "0", "6", "4")
    assert (await acme.refusal(4.000001))[0] == b"budget"
    assert await acme.shares() == [("10", "6", "0", "4")]

    await acme.grant("1.5")
    assert await acme.figures() == ("11.5", "0", "6", "5.5")
    await acme.spend(5.5)
    assert (await acme.refusal(0))[0] == b"budget"


async def test_credits_that_expire_first_are_used_first_whatever_was_granted_first(acme: Prepaid) -> None:
    await acme.grant("10")
    await acme.grant("20", tomorrow(9))
    await acme.grant("30", tomorrow(5))
    await acme.spend(35)

    assert await acme.shares() == [("30", "30", "0", "0"), ("20", "5", "0", "15"), ("10", "0", "0", "10")]


async def test_a_grant_is_never_used_up_by_what_was_spent_before_it(acme: Prepaid) -> None:
    await acme.grant("10")
    await acme.spend(4)
    await acme.grant("5", tomorrow())
    assert await acme.shares() == [("5", "0", "0", "5"), ("10", "4", "0", "6")]

    hold = await acme.gateway.admit(acme.token, 11_000_000)
    await acme.gateway.settle(hold, 13_000_000)  # it cost more than was held: all is gone, and more
    assert await acme.figures() == ("15", "0", "17", "0")
    await acme.grant("1")
    assert (await acme.shares())[0] == ("1", "0", "0", "1")
    await acme.spend(1)


async def test_what_is_held_while_a_grant_is_made_is_of_no_later_one_than_before(
    acme: Prepaid, database: asyncpg.Connection
) -> None:
    """The hold reaches far into the credits that do not expire; when it comes back, only the new grant's own may be lost."""
    await acme.grant("60")
    hold = await acme.gateway.admit(acme.token, 60_000_000)
    await acme.grant("50", tomorrow())
    await acme.gateway.settle(hold, 0)

    await acme.expire("50", database)
    assert await acme.figures() == ("110", "50", "0", "60")


async def test_an_expired_grant_takes_what_is_left_of_it_with_the_next_look(
    acme: Prepaid, database: asyncpg.Connection, redis_client: Redis
) -> None:
    await acme.grant("10", tomorrow())
    await acme.grant("5")
    await acme.spend(3)

    await acme.expire("10", database)

    assert await acme.figures() == ("15", "7", "3", "5")
    assert await acme.shares() == [("5", "0", "0", "5"), ("10", "3", "7", "0")]
    assert await redis_client.hget(acme.record, "lost") == b"0"
    refused = await acme.refusal(5.000001)
    assert refused == [b"budget", b"organization", 8_000_000, 3_000_000, 0, 0]
    await acme.spend(5)
    assert await redis_client.hget(acme.record, "lost") == b"7000000"
    assert await acme.figures() == ("15", "7", "8", "0")


async def test_a_grant_made_after_an_expiry_that_nobody_noticed_is_whole(
    acme: Prepaid, database: asyncpg.Connection
) -> None:
    await acme.grant("10", tomorrow())
    await acme.spend(3)
    await acme.expire("10", database)

    await acme.grant("4")

    assert await acme.figures() == ("14", "7", "3", "4")
    await acme.spend(4)
    assert (await acme.refusal(0))[0] == b"budget"


async def test_the_same_key_makes_one_grant_with_one_answer_for_ever(
    acme: Prepaid, database: asyncpg.Connection
) -> None:
    first = await acme.grant("10", tomorrow(), key="order-1", note="x")
    await acme.spend(2)
    again = await acme.grant("10", tomorrow(), key="order-1", note="x")
    await database.execute("UPDATE grants SET expires_at = now() - interval '1 day', closed_at = now()")
    past = await acme.api.get(PATH)
    expires_at = datetime.fromisoformat(past.body["data"][0]["expires_at"])
    late = await acme.grant("10", expires_at, key="order-1", note="x")

    assert (first.status, again.status, late.status) == (201, 200, 200)
    assert again.body == first.body
    assert late.body["id"] == first.body["id"]
    assert len(past.body["data"]) == 1


@pytest.mark.parametrize(
    "other", [{"amount": "11"}, {"note": "another"}, {"expires_at": "2033-01-01T00:00:00Z"}]
)
async def test_the_same_key_with_another_grant_is_a_conflict(acme: Prepaid, other: Json) -> None:
    body = {"amount": "10", "expires_at": "2032-01-01T00:00:00Z", "note": "x"}
    headers = {"Idempotency-Key": "order-1"}
    assert (await acme.api.call("POST", PATH, body, headers=headers)).status == 201

    answer = await acme.api.call("POST", PATH, {**body, **other}, headers=headers)

    assert (answer.status, answer.code) == (409, "idempotency_key_reused")
    assert len(await acme.shares()) == 1


async def test_the_same_key_said_by_many_at_once_makes_one_grant(acme: Prepaid) -> None:
    answers = await asyncio.gather(*(acme.grant("10", key="order-1") for _ in range(6)))

    assert sorted(answer.status for answer in answers) == [200] * 5 + [201]
    assert len({answer.body["id"] for answer in answers}) == 1
    assert (await acme.figures())[0] == "10"


async def test_grants_made_at_once_without_a_key_all_count(acme: Prepaid) -> None:
    answers = await asyncio.gather(*(acme.grant("10", tomorrow(1 + n % 3)) for n in range(6)))

    assert [answer.status for answer in answers] == [201] * 6
    assert await acme.figures() == ("60", "0", "0", "60")
    assert await acme.shares() == [("10", "0", "0", "10")] * 6


async def test_keys_of_two_organizations_do_not_meet(acme: Prepaid) -> None:
    await acme.api.organization("globex", billing="prepaid")
    await acme.grant("10", key="order-1")

    other = await acme.api.call(
        "POST", "/v1/organizations/globex/grants", {"amount": "5"}, headers={"Idempotency-Key": "order-1"}
    )

    assert other.status == 201


@pytest.mark.parametrize("key", ["", "a" * 256, "smörgås", "tab\tin it"])
async def test_a_key_that_cannot_be_kept_is_refused(acme: Prepaid, key: str) -> None:
    answer = await acme.grant("10", key=key)

    assert (answer.status, answer.fields) == (400, ["Idempotency-Key"])
    assert await acme.shares() == []


@pytest.mark.parametrize(
    ("body", "code", "fields"),
    [
        ({}, "missing_field", ["amount"]),
        ({"amount": None}, "invalid_field", ["amount"]),
        ({"amount": 5}, "invalid_field", ["amount"]),
        ({"amount": "0"}, "invalid_field", ["amount"]),
        ({"amount": "-1"}, "invalid_field", ["amount"]),
        ({"amount": "0.0000001"}, "invalid_field", ["amount"]),
        ({"amount": "1000000001"}, "invalid_field", ["amount"]),
        ({"amount": "1", "expires_at": "2020-01-01T00:00:00Z"}, "invalid_field", ["expires_at"]),
        ({"amount": "1", "expires_at": "2200-01-01T00:00:00Z"}, "invalid_field", ["expires_at"]),
        ({"amount": "1", "expires_at": "tomorrow"}, "invalid_field", ["expires_at"]),
        ({"amount": "1", "note": ""}, "invalid_field", ["note"]),
        ({"amount": "1", "credits": "1"}, "unknown_field", ["credits"]),
    ],
)
async def test_what_cannot_be_granted_is_named(
    acme: Prepaid, body: Json, code: str, fields: list[str]
) -> None:
    answer = await acme.api.post(PATH, body)

    assert (answer.status, answer.code, answer.fields) == (400, code, fields)
    assert await acme.shares() == []


async def test_no_more_is_granted_than_an_amount_may_be(acme: Prepaid) -> None:
    assert (await acme.grant("999999999")).status == 201

    answer = await acme.grant("2")

    assert (answer.status, answer.code) == (409, "too_much_granted")
    assert "at most 1 more" in answer.body["detail"]
    assert (await acme.grant("1")).status == 201


async def test_open_grants_are_bounded_and_used_up_ones_are_not_counted(
    acme: Prepaid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "OPEN_MAX", 2)
    await acme.grant("1", tomorrow())
    await acme.grant("1")
    assert (await acme.grant("1")).code == "too_many_grants"

    await acme.spend(1)
    assert (await acme.grant("1")).status == 201
    assert await acme.shares() == [("1", "0", "0", "1"), ("1", "0", "0", "1"), ("1", "1", "0", "0")]


async def test_grants_are_listed_once_across_pages(acme: Prepaid) -> None:
    for amount in ("1", "2", "3"):
        await acme.grant(amount)

    first = await acme.api.get(f"{PATH}?limit=2")
    second = await acme.api.get(f"{PATH}?limit=2&cursor={first.body['next']}")

    assert [row["amount"] for page in (first, second) for row in page.body["data"]] == ["3", "2", "1"]
    assert second.body["next"] is None


async def test_nothing_is_granted_while_redis_has_lost_the_organization(
    acme: Prepaid, redis_client: Redis, database: asyncpg.Connection
) -> None:
    """What is used up is not known until it is loaded again."""
    await redis_client.flushall()

    answer = await acme.grant("10", key="order-1")

    assert (answer.status, answer.code) == (503, "redis_unavailable")
    assert await database.fetchval("SELECT count(*) FROM grants") == 0
    assert await database.fetchval("SELECT count(*) FROM outbox") == 0
