"""Grants that expire, with the job that writes their loss down, through every loss of Redis and kill of the job."""

from __future__ import annotations

import re
from typing import Any, cast

import asyncpg
import pytest

from control.domain import grants as domain
from control.jobs import drain, grants, publish, reconcile
from control.jobs.grants import Closed
from tests.integration.jobs.world import Workload, World

EXPIRED_S, LATER_S = -1, 3_600


@pytest.fixture
async def acme(world: World) -> Workload:
    """A prepaid organization's key, published. Money in this file is in microcredits."""
    workload = await world.add_workload()
    await world.postgres.execute("UPDATE organizations SET billing = 'prepaid'")
    await publish.run_once(world.context)
    return workload


async def grant(
    world: World, acme: Workload, amount: int, end: int, expires_in_s: int | None = LATER_S
) -> str:
    """A grant as the API would make it, on its place on the line, published."""
    identifier = f"gr_{acme.tag}{end:010d}"
    await world.postgres.execute(
        """INSERT INTO grants (id, organization, window_ms, amount_microcredits, end_microcredits, expires_at, created_by)
           VALUES ($1, $2, 0, $3, $4, now() + $5 * interval '1 second', 'test')""",
        identifier, acme.tag, amount, end, expires_in_s,
    )  # fmt: skip
    await published(world, acme)
    return identifier


async def expire(world: World, acme: Workload, identifier: str) -> None:
    await world.postgres.execute(
        "UPDATE grants SET expires_at = now() - interval '1 s' WHERE id = $1", identifier
    )
    await published(world, acme)


async def published(world: World, acme: Workload) -> None:
    await world.postgres.execute("UPDATE organizations SET version = nextval('rule_version')")
    await world.postgres.execute("INSERT INTO outbox (kind, entity) VALUES ('organization', $1)", acme.tag)
    await publish.run_once(world.context)


async def record(world: World, acme: Workload, *fields: str) -> list[str]:
    found = await world.redis.hmget(world.layout.organization(acme.tag), list(fields))
    return [cast(bytes, value).decode() for value in found]


async def written(world: World) -> int:
    return cast(int, await world.postgres.fetchval("SELECT lost_microcredits FROM organizations"))


async def rows(world: World) -> list[tuple[Any, ...]]:
    """Loss of each grant in the order of the line, and whether it is closed."""
    found = await world.postgres.fetch(
        "SELECT lost_microcredits AS lost, closed_at IS NOT NULL AS closed FROM grants ORDER BY end_microcredits"
    )
    return [(row["lost"], row["closed"]) for row in found]


async def room(world: World, acme: Workload) -> int:
    """What the next request may cost at most, found by trying: a hold for all of it is admitted, and one more is not."""
    with pytest.raises(AssertionError, match="budget") as refused:
        await world.admit(acme, 1_000_000)
    limit, spent, held, _ = map(int, re.findall(r" (\d+)", str(refused.value)))
    rest = limit - spent - held
    with pytest.raises(AssertionError, match="budget"):
        await world.admit(acme, rest + 1)
    if rest:
        assert await world.settle(acme, await world.admit(acme, rest), 0) == 1
    return rest


async def run_twice(world: World) -> None:
    """Write down, then close."""
    await grants.run_once(world.context)
    await grants.run_once(world.context)
    await publish.run_once(world.context)


async def test_a_loss_is_written_down_first_and_its_grant_closed_after_that(
    world: World, acme: Workload
) -> None:
    first = await grant(world, acme, 100, 100)
    await grant(world, acme, 50, 150, None)
    await world.request(acme, 30, hold=30)
    await expire(world, acme, first)
    assert await grants.run_once(world.context) == Closed()  # nobody has looked: nothing is booked

    await world.request(acme, 5, hold=5)
    assert await grants.run_once(world.context) == Closed(copied=1)
    assert (await written(world), await rows(world)) == (70, [(0, False), (0, False)])
    assert await grants.run_once(world.context) == Closed(closed=1)
    assert (await written(world), await rows(world)) == (70, [(70, True), (0, False)])
    assert await grants.run_once(world.context) == Closed()

    assert (await record(world, acme, "grants"))[0] != ""
    await publish.run_once(world.context)
    assert await record(world, acme, "grants", "limit", "lost") == ["", "150", "70"]
    assert await room(world, acme) == 45


async def test_grants_that_expire_one_after_the_other_lose_each_its_own(world: World, acme: Workload) -> None:
    first = await grant(world, acme, 100, 100)
    second = await grant(world, acme, 50, 150)
    await world.request(acme, 30, hold=30)
    await expire(world, acme, first)
    await world.request(acme, 20, hold=20)
    await run_twice(world)
    await expire(world, acme, second)
    with pytest.raises(AssertionError, match="budget"):
        await world.admit(acme, 1)  # a refusal books nothing
    assert await grants.run_once(world.context) == Closed()

    await grant(world, acme, 7, 157, None)
    await world.request(acme, 7, hold=7)
    await run_twice(world)

    assert await rows(world) == [(70, True), (30, True), (0, False)]
    assert await record(world, acme, "spent", "lost", "grants") == ["57", "100", ""]


async def test_two_that_expired_together_lose_together_what_is_missing(world: World, acme: Workload) -> None:
    await grant(world, acme, 100, 100, EXPIRED_S)
    await grant(world, acme, 50, 150, EXPIRED_S)
    await grant(world, acme, 10, 160, None)
    await world.request(acme, 10, hold=10)
    await run_twice(world)

    assert await rows(world) == [(100, True), (50, True), (0, False)]
    assert await room(world, acme) == 0


async def test_a_grant_used_up_before_it_expires_is_closed_without_a_loss(
    world: World, acme: Workload
) -> None:
    only = await grant(world, acme, 100, 100)
    await world.request(acme, 100, hold=100)
    await expire(world, acme, only)

    assert await grants.run_once(world.context) == Closed(closed=1)
    assert await rows(world) == [(0, True)]


async def test_a_grant_waits_for_what_is_held_of_it(world: World, acme: Workload) -> None:
    """What comes back of a hold is lost as well, but for what was spent since the expiry."""
    first = await grant(world, acme, 100, 100)
    await grant(world, acme, 50, 150, None)
    member = await world.admit(acme, 80)
    await expire(world, acme, first)
    await world.request(acme, 10, hold=10)
    await run_twice(world)
    assert (await written(world), await rows(world)) == (20, [(0, False), (0, False)])

    await world.settle(acme, member, 30)
    assert await room(world, acme) == 50
    await run_twice(world)
    assert (await written(world), await rows(world)) == (60, [(60, True), (0, False)])
    assert await room(world, acme) == 50


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_flushed_redis_gets_back_what_was_spent_and_lost_however_far_the_job_was(
    world: World, acme: Workload, steps: int
) -> None:
    first = await grant(world, acme, 100, 100)
    second = await grant(world, acme, 50, 150)
    await grant(world, acme, 25, 175, None)
    await world.request(acme, 30, hold=30)
    await expire(world, acme, first)
    await world.request(acme, 0, hold=1)
    for _ in range(steps):
        await grants.run_once(world.context)
    await drain.run_once(world.context)

    await world.redis.flushall()
    assert (await publish.run_once(world.context)).rebuilt

    await world.request(acme, 0, hold=1)
    assert await room(world, acme) == 75
    assert await record(world, acme, "spent", "lost") == ["30", "70"]
    await expire(world, acme, second)
    assert await world.settle(acme, await world.admit(acme, 25), 0) == 1
    assert await room(world, acme) == 25
    await run_twice(world)
    await run_twice(world)
    assert (await written(world), await rows(world)) == (120, [(70, True), (50, True), (0, False)])
    assert await reconcile.differences(world.context, attempts=1) == []


async def test_what_expired_while_redis_was_away_is_lost_when_it_is_back(
    world: World, acme: Workload
) -> None:
    only = await grant(world, acme, 100, 100)
    await grant(world, acme, 10, 110, None)
    await world.request(acme, 40, hold=40)
    await drain.run_once(world.context)
    await world.redis.flushall()
    await world.postgres.execute("UPDATE grants SET expires_at = now() - interval '1 s' WHERE id = $1", only)

    assert await grants.run_once(world.context) == Closed()
    await publish.run_once(world.context)
    await world.request(acme, 0, hold=1)
    assert await room(world, acme) == 10


async def test_a_redis_that_came_back_without_its_last_seconds_loses_again_what_was_lost(
    world: World, acme: Workload
) -> None:
    first = await grant(world, acme, 100, 100)
    await grant(world, acme, 50, 150, None)
    await expire(world, acme, first)
    await world.request(acme, 10, hold=10)
    await run_twice(world)
    await drain.run_once(world.context)

    await world.redis.hset(world.layout.organization(acme.tag), "lost", "0")
    await world.redis.hset("tk:meta", "server", "another")
    await publish.run_once(world.context)

    assert await record(world, acme, "lost") == ["100"]
    assert await room(world, acme) == 40


async def test_killed_before_its_commit_the_job_has_done_nothing_and_the_next_run_does_it(
    world: World, acme: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await grant(world, acme, 100, 100)
    await grant(world, acme, 50, 150, None)
    await expire(world, acme, first)
    await world.request(acme, 10, hold=10)
    await grants.run_once(world.context)
    close = domain.close

    async def closes_and_dies(conn: asyncpg.Connection, lost: dict[str, int]) -> None:
        await close(conn, lost)
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(domain, "close", closes_and_dies)
        with pytest.raises(ConnectionError):
            await grants.run_once(world.context)
    assert await rows(world) == [(0, False), (0, False)]
    assert await world.postgres.fetchval("SELECT count(*) FROM outbox") == 0

    assert await grants.run_once(world.context) == Closed(closed=1)
    assert await rows(world) == [(100, True), (0, False)]


async def test_an_organization_that_began_a_new_line_between_two_looks_is_let_go(
    world: World, acme: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grant(world, acme, 100, 100, EXPIRED_S)
    await grant(world, acme, 50, 150, None)
    await world.request(acme, 10, hold=10)
    counters = grants._counters

    async def switched_meanwhile(*arguments: Any) -> Any:
        found = await counters(*arguments)
        await world.postgres.execute("UPDATE organizations SET period_since_ms = period_since_ms + 5")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(grants, "_counters", switched_meanwhile)
        assert await grants.run_once(world.context) == Closed()  # would have copied
    await world.postgres.execute("UPDATE organizations SET period_since_ms = 0")
    assert await grants.run_once(world.context) == Closed(copied=1)
    with monkeypatch.context() as patch:
        patch.setattr(grants, "_counters", switched_meanwhile)
        assert await grants.run_once(world.context) == Closed()  # would have closed
    assert await rows(world) == [(0, False), (0, False)]


async def test_of_grants_that_expired_unnoticed_redis_is_told_the_last_one_alone(
    world: World, acme: Workload
) -> None:
    """Where every request is refused nothing is booked, and such grants would pile up in what every admission reads."""
    for number in range(1, 6):
        await grant(world, acme, 10, 10 * number, EXPIRED_S * (10 - number))
    soon = await grant(world, acme, 10, 60)
    (published_grants,) = await record(world, acme, "grants")
    assert [part.split(":")[1] for part in published_grants.split(",")] == ["50", "60"]

    assert await room(world, acme) == 10
    await run_twice(world)
    assert await rows(world) == [(10, True)] * 5 + [(0, False)]
    await expire(world, acme, soon)
    assert await room(world, acme) == 0


async def test_every_organization_is_looked_at_however_many_there_are(
    world: World, acme: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "BATCH_MAX", 2)
    others = [await world.add_workload() for _ in range(4)]
    await world.postgres.execute("UPDATE organizations SET billing = 'prepaid'")
    await publish._write_everything(world.context)
    for workload in (acme, *others):
        await grant(world, workload, 10, 10, EXPIRED_S)
        await grant(world, workload, 10, 20, None)
    for workload in (acme, *others):
        await world.request(workload, 1, hold=1)

    assert await grants.run_once(world.context) == Closed(copied=5)
    assert await grants.run_once(world.context) == Closed(closed=5)
