"""Usage over REST: what was drained into the ledger, by what it is asked to be grouped by."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from redis.asyncio import Redis

from control.jobs import drain, partitions
from control.jobs.context import Context
from gateway.contract.records import Hold
from gateway.contract.usage_event import RefusalCount, UsageEvent
from tests.integration.api.world import LAYOUT, Api, Gateway, Json


class Workload:
    """A key that makes requests, as a gateway would book them."""

    def __init__(self, api: Api, gateway: Gateway, account: Json, created: Json) -> None:
        self.gateway = gateway
        self.account = account
        self.key: Json = created["key"]
        self._secret: str = created["token"]
        self._tag = str(self.key["organization"]).removeprefix("org_")

    async def request(self, cost: int, *, route: str = "default") -> None:
        hold = await self.gateway.admit(self._secret, cost)
        facts = Hold.unpack(hold)
        event = UsageEvent(
            request_id=f"{self.key['id']}-{facts.admitted_at_ms}-{cost}",
            admitted_at_ms=facts.admitted_at_ms,
            ended_at_ms=facts.admitted_at_ms + 5,
            organization=self._tag,
            account=self.account["id"],
            account_name=self.account["name"],
            account_kind="service-account",
            key=self.key["id"],
            route=route,
            method="POST",
            path="/v1/things",
            status=200,
            outcome="completed",
            bytes_in=10,
            bytes_out=100,
            held=cost,
            cost=cost,
            windows=facts.windows,
        )
        await self.gateway.settle(hold, cost, event.encode())

    async def refusal(self, count: int, *, observed: bool = False) -> None:
        minute_ms = int(datetime.now(UTC).timestamp()) // 60 * 60_000
        event = RefusalCount(
            id=f"{self.key['id']}-{minute_ms}-{observed}",
            minute_ms=minute_ms,
            organization=self._tag,
            account=self.account["id"],
            key=self.key["id"],
            route="default",
            reason="budget_exceeded",
            count=count,
            observed=observed,
        )
        stream = LAYOUT.events(
            LAYOUT.shard_of(Hold.unpack(await self.gateway.admit(self._secret)).organization_tag)
        )
        await self.gateway.redis.xadd(stream, {"e": event.encode()})


@pytest.fixture
async def used(
    api: Api, gateway: Gateway, redis_client: Redis, database: asyncpg.Connection[asyncpg.Record]
) -> tuple[Workload, Workload]:
    """Two accounts of acme with some usage, and an organization that has none."""
    await api.organization("idle")
    await api.organization("acme")
    first, second = await api.account("acme", "first-worker"), await api.account("acme", "second-worker")
    one = Workload(api, gateway, first, await api.key(first))
    other = Workload(api, gateway, second, await api.key(second))
    for workload, cost, route in ((one, 300_000, "default"), (one, 200_000, "models"), (other, 1, "default")):
        await workload.request(cost, route=route)
        await asyncio.sleep(0.002)  # the ledger's order is by the millisecond of admission
    await other.refusal(7)
    await other.refusal(4, observed=True)
    context = Context(database, redis_client, LAYOUT)
    await partitions.run_once(context)
    await drain.run_once(context)
    return one, other


async def test_usage_is_summed_by_account(api: Api, used: tuple[Workload, Workload]) -> None:
    answer = await api.get("/v1/organizations/acme/usage?group_by=account")

    rows = {row["name"]: row for row in answer.body["data"]}
    assert answer.body["next"] is None
    assert rows["first-worker"]["account"] == used[0].account["id"]
    figures = ("requests", "refused", "observed", "cost", "bytes_in", "bytes_out")
    assert [rows["first-worker"][name] for name in figures] == [2, 0, 0, "0.5", 20, 200]
    assert [rows["second-worker"][name] for name in figures] == [1, 7, 4, "0.000001", 10, 100]


async def test_why_requests_were_refused_is_told_by_reason_level_and_key(
    api: Api, used: tuple[Workload, Workload], database: asyncpg.Connection
) -> None:
    await database.execute(
        """INSERT INTO refusals (id, minute, count, organization, account, key, route, reason, level)
           SELECT 'more' || n, date_trunc('minute', now()), n, organization, account, key, route, 'rate_limited', v.level
             FROM refusals CROSS JOIN (VALUES (1, 'key'), (2, 'account'), (3, 'account')) AS v (n, level)
            WHERE NOT observed"""
    )
    path = "/v1/organizations/acme/usage?group_by=reason"
    rows = (await api.get(path)).body["data"]

    said = [(row["reason"], row["level"], row["refused"], row["observed"]) for row in rows]
    assert said == [
        ("budget_exceeded", None, 7, 4), ("rate_limited", "account", 5, 0), ("rate_limited", "key", 1, 0),
    ]  # fmt: skip
    assert {(row["key"], row["account_name"]) for row in rows} == {(used[1].key["id"], "second-worker")}
    first = (await api.get(f"{path}&limit=2")).body
    rest = (await api.get(f"{path}&limit=2&cursor={first['next']}")).body
    assert first["data"] + rest["data"] == rows
    assert rest["next"] is None
    wrong = await api.get(f"{path}&cursor={first['next'][:-4]}")
    assert (wrong.status, wrong.code) == (400, "invalid_cursor")
    assert (await api.get(f"{path}&from=2020-01-01&to=2020-02-01")).body["data"] == []
    assert (await api.get("/v1/organizations/idle/usage?group_by=reason")).body["data"] == []


@pytest.mark.parametrize(
    ("group_by", "rows"), [("account", 2), ("key", 2), ("route", 2), ("hour", 1), ("day", 1)]
)
async def test_every_grouping_adds_up_to_the_same(
    api: Api, used: tuple[Workload, Workload], group_by: str, rows: int
) -> None:
    data = (await api.get(f"/v1/organizations/acme/usage?group_by={group_by}")).body["data"]

    assert len(data) in {rows, rows + (group_by in {"hour", "day"})}  # the test may run across a full hour
    assert all(row[group_by] for row in data)
    assert (sum(row["requests"] for row in data), sum(row["refused"] for row in data)) == (3, 7)
    assert round(sum(float(row["cost"]) for row in data), 6) == 0.500001


async def test_usage_is_paged(api: Api, used: tuple[Workload, Workload]) -> None:
    first = await api.get("/v1/organizations/acme/usage?limit=1")
    second = await api.get(f"/v1/organizations/acme/usage?limit=1&cursor={first.body['next']}")

    assert {page.body["data"][0]["name"] for page in (first, second)} == {"first-worker", "second-worker"}
    assert second.body["next"] is None


async def test_usage_of_another_time_or_organization_is_not_shown(
    api: Api, used: tuple[Workload, Workload]
) -> None:
    past = (datetime.now(UTC) - timedelta(days=2)).date()

    assert (await api.get(f"/v1/organizations/acme/usage?from={past}&to={past + timedelta(days=1)}")).body[
        "data"
    ] == []
    assert (await api.get("/v1/organizations/idle/usage")).body["data"] == []


async def test_a_report_says_which_whole_hours_it_covers(api: Api, used: tuple[Workload, Workload]) -> None:
    answer = await api.get(
        "/v1/organizations/acme/usage?from=2031-01-31T12:30:00Z&to=2031-02-01T12:30:00%2B01:00"
    )

    assert (answer.body["from"], answer.body["to"]) == (
        "2031-01-31T12:00:00.000Z",
        "2031-02-01T12:00:00.000Z",
    )


async def test_rows_of_the_ledger_are_shown_latest_first(api: Api, used: tuple[Workload, Workload]) -> None:
    answer = await api.get("/v1/organizations/acme/usage/events?limit=2")

    assert [(row["account_name"], row["cost"]) for row in answer.body["data"]] == [
        ("second-worker", "0.000001"),
        ("first-worker", "0.2"),
    ]
    assert answer.body["data"][0]["admitted_at"].endswith("Z")
    assert answer.body["data"][0]["is_estimated"] is False
    rest = await api.get(f"/v1/organizations/acme/usage/events?limit=2&cursor={answer.body['next']}")
    assert [row["cost"] for row in rest.body["data"]] == ["0.3"]


async def test_a_key_shows_when_it_was_last_used(api: Api, used: tuple[Workload, Workload]) -> None:
    shown = (await api.get(f"/v1/keys/{used[0].key['id']}")).body

    last_used_at = datetime.fromisoformat(shown["last_used_at"])
    assert timedelta(0) <= datetime.now(UTC) - last_used_at < timedelta(minutes=2)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("group_by=month", "group_by"),
        ("from=2031-01-31&to=2031-01-31", "from"),
        ("from=2031-02-31", "from"),
        ("from=yesterday", "from"),
        ("to=1", "to"),
        ("from=1900-01-01", "from"),
        ("cursor=x", "cursor"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(api: Api, query: str, field: str) -> None:
    await api.organization("acme")

    answer = await api.get(f"/v1/organizations/acme/usage?{query}")

    assert (answer.status, answer.fields) == (400, [field])
