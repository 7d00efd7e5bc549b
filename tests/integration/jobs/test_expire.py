"""Expire against a real Redis: a hold whose gateway is gone is settled once, at what was held."""

from __future__ import annotations

import asyncio

import pytest

from control.jobs import drain, expire, publish, reconcile
from control.jobs.expire import Expired
from gateway.contract import scripts
from gateway.contract.records import Hold
from tests.integration.jobs.world import Workload, World


@pytest.fixture
async def workload(world: World) -> Workload:
    workload = await world.add_workload("daily")
    await publish.run_once(world.context)
    return workload


async def _make_due(world: World, workload: Workload, member: bytes) -> None:
    """Move the deadline of a hold into the past, as time does."""
    await world.redis.zadd(world.layout.holds(world.shard(workload)), {member: 1}, xx=True)


async def test_a_due_hold_becomes_one_event_that_costs_what_was_held(
    world: World, workload: Workload
) -> None:
    member = await world.admit(workload, 40_000)
    await _make_due(world, workload, member)
    assert await expire.run_once(world.context) == Expired(settled=1)
    await drain.run_once(world.context)
    (row,) = await world.ledger()
    hold = Hold.unpack(member)
    assert (row["request_id"], row["outcome"], row["status"]) == (hold.request_id, "expired", 0)
    assert (row["held"], row["cost"], row["account_name"]) == (40_000, 40_000, workload.name)
    assert round(row["admitted_at"].timestamp() * 1000) == hold.admitted_at_ms
    for counters in (await world.counters()).values():
        assert (counters[b"spent"], counters[b"held"]) == (b"40000", b"0")
    assert await reconcile.differences(world.context, attempts=1) == []


async def test_a_hold_that_is_not_due_is_left_alone(world: World, workload: Workload) -> None:
    await world.admit(workload, 5)
    assert await expire.run_once(world.context) == Expired()
    assert await world.undrained() == 0


async def test_a_settlement_after_expiry_changes_nothing(world: World, workload: Workload) -> None:
    member = await world.admit(workload, 100)
    await _make_due(world, workload, member)
    await expire.run_once(world.context)
    assert await world.settle(workload, member, 60) == 0
    await drain.run_once(world.context)
    assert [(row["outcome"], row["cost"]) for row in await world.ledger()] == [("expired", 100)]


async def test_a_settlement_just_before_leaves_nothing_to_expire(world: World, workload: Workload) -> None:
    member = await world.admit(workload, 100)
    await _make_due(world, workload, member)
    assert await world.settle(workload, member, 60) == 1
    assert await expire.run_once(world.context) == Expired()
    await drain.run_once(world.context)
    assert [(row["outcome"], row["cost"]) for row in await world.ledger()] == [("completed", 60)]


async def test_a_hold_extended_between_reading_and_settling_is_not_expired(
    world: World, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = await world.admit(workload, 100)
    await _make_due(world, workload, member)
    names = expire._account_names

    async def extend_meanwhile(*arguments: object) -> list[str]:
        keys = [*world.records(workload), world.layout.holds(world.shard(workload))]
        assert await world.eval(scripts.EXTEND, keys, member, 0, 60_000) == member
        return await names(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(expire, "_account_names", extend_meanwhile)
    assert await expire.run_once(world.context) == Expired()
    assert await world.undrained() == 0


async def test_two_expire_jobs_and_late_settlements_at_once_make_one_event_each(
    world: World, workload: Workload
) -> None:
    members = [await world.admit(workload, 10) for _ in range(60)]
    for member in members:
        await _make_due(world, workload, member)
    late = asyncio.gather(*(world.settle(workload, member, 4) for member in members))
    jobs = await asyncio.gather(expire.run_once(world.context), expire.run_once(world.context))
    assert sum(done.settled for done in jobs) + sum(await late) == 60
    assert await world.undrained() == 60
    assert await reconcile.differences(world.context, attempts=1) == []


async def test_more_due_holds_than_a_batch_are_settled_in_one_run(
    world: World, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire, "BATCH_MAX", 50)
    other = await world.add_workload()
    await publish._write_everything(world.context)
    for number in range(120):
        each = workload if number % 3 else other
        await _make_due(world, each, await world.admit(each, 1))
    assert await expire.run_once(world.context) == Expired(settled=120)


async def test_a_hold_of_a_record_that_is_gone_still_becomes_an_event(
    world: World, workload: Workload
) -> None:
    member = await world.admit(workload, 9)
    await world.redis.delete(*world.records(workload))
    await _make_due(world, workload, member)
    assert await expire.run_once(world.context) == Expired(settled=1)
    await drain.run_once(world.context)
    (row,) = await world.ledger()
    assert (row["account"], row["account_name"], row["cost"]) == (workload.account, "", 9)


async def test_what_cannot_be_read_is_put_aside_once_and_not_lost(world: World, workload: Workload) -> None:
    good = await world.admit(workload, 9)
    await _make_due(world, workload, good)
    shard = world.shard(workload)
    other_shard = (shard + 1) % 16
    unreadable = [
        b"junk", b"\xff\xfe", b"a|b|c", b"", good.replace(b"|9|", b"|-9|"), good.replace(b"|9|", b"| 9|"),
        good.replace(workload.tag.encode(), b"Zz0000", 1),
    ]  # fmt: skip
    for member in unreadable:
        await world.redis.zadd(world.layout.holds(shard), {member: 1})
    await world.redis.zadd(world.layout.holds(other_shard), {good: 1})  # not of that shard
    assert await expire.run_once(world.context) == Expired(settled=1, unreadable=len(unreadable) + 1)
    assert await expire.run_once(world.context) == Expired()
    kept = await world.redis.zrangebyscore(world.layout.holds(shard), "+inf", "+inf")
    assert sorted(kept) == sorted(unreadable)
    assert await world.redis.zscore(world.layout.holds(other_shard), good) == float("inf")
    assert await world.undrained() == 1


async def test_expire_works_on_a_redis_that_has_forgotten_its_scripts(
    world: World, workload: Workload
) -> None:
    await _make_due(world, workload, await world.admit(workload, 9))
    await world.redis.script_flush()
    assert await expire.run_once(world.context) == Expired(settled=1)
