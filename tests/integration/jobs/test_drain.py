"""Drain against a real Redis and Postgres: one row for each event, through double delivery, kills and poison."""

from __future__ import annotations

import asyncio
import json  # orjson would refuse a number of more than 64 bits
import secrets
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import orjson
import pytest

from control.embedded import EmbeddedPostgres
from control.jobs import drain, ledger, partitions, publish, stream
from control.jobs.context import Context
from control.jobs.drain import Drained
from control.migrate import migrate
from gateway.contract.usage_event import UsageEvent
from tests.integration.jobs.world import World

HOUR_MS = 3_600_000


async def _sums(world: World) -> dict[str, int]:
    row = await world.postgres.fetchrow(
        "SELECT sum(requests)::bigint AS requests, sum(refused)::bigint AS refused, sum(cost)::bigint AS cost,"
        " sum(bytes_in)::bigint AS bytes_in, sum(bytes_out)::bigint AS bytes_out FROM usage_hourly"
    )
    assert row is not None
    return {name: value or 0 for name, value in row.items()}


async def test_every_field_of_an_event_is_in_its_row(world: World) -> None:
    workload = await world.add_workload("daily")
    await publish.run_once(world.context)
    event = world.event(
        workload, await world.admit(workload, 5_000), 1_234, status=206, outcome="cut", upstream_ms=7, total_ms=9,
        units={"output_tokens": 12}, session="s-1", computer="c-1", trace="t-1", path="/v1/ünï", is_estimated=True,
    )  # fmt: skip
    await world.append(workload, event.encode())
    await drain.run_once(world.context)
    (row,) = await world.ledger()
    stored = dict(row)
    windows = tuple(stored.pop(f"{level}_window") for level in ("key", "account", "organization"))
    times = {f"{name}_ms": round(stored.pop(name).timestamp() * 1000) for name in ("admitted_at", "ended_at")}
    stored["units"] = orjson.loads(stored["units"])
    assert UsageEvent(**stored, **times, windows=windows) == event


async def test_an_event_that_lacks_optional_fields_is_a_row_with_defaults(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    full = orjson.loads(world.event(workload, await world.admit(workload, 0), 3).encode())
    needed = (
        "request_id",
        "admitted_at_ms",
        "ended_at_ms",
        "organization",
        "account",
        "key",
        "route",
        "outcome",
        "cost",
    )
    await world.append(
        workload, orjson.dumps({name: full[name] for name in needed} | {"from_the_future": [1]})
    )
    assert await drain.run_once(world.context) == Drained(events=1)
    (row,) = await world.ledger()
    assert (row["cost"], row["units"], row["session"], row["account_kind"]) == (
        3,
        "{}",
        None,
        "service-account",
    )


async def test_an_event_delivered_twice_is_one_row_and_counted_once(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    event = world.event(workload, await world.admit(workload, 10), 10).encode()
    await world.append(workload, event)
    await world.append(workload, event)
    assert await drain.run_once(world.context) == Drained(events=1, repeated=1)
    await world.append(workload, event)
    assert await drain.run_once(world.context) == Drained(repeated=1)
    assert len(await world.ledger()) == 1
    assert await _sums(world) == {"requests": 1, "refused": 0, "cost": 10, "bytes_in": 10, "bytes_out": 20}
    assert await world.postgres.fetchval("SELECT array_agg(DISTINCT spent) FROM usage_windows") == [10]


async def test_a_kill_between_commit_and_removal_changes_nothing(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    for cost in range(20):
        await world.request(workload, cost)
    await world.append(workload, world.refusals(workload, 60_000, 5).encode())
    context, waiting = world.context, await stream.lengths(world.redis, world.layout)
    entries = await stream.oldest(world.redis, world.layout, waiting, drain.BATCH_MAX)
    await drain.record(context, await ledger.prepare(world.postgres), entries)  # … and killed here
    before = (await world.ledger(), await _sums(world))
    assert await world.undrained() == 21
    assert await drain.run_once(context) == Drained(repeated=20)
    assert (await world.ledger(), await _sums(world)) == before
    assert await world.undrained() == 0


async def test_a_kill_before_commit_leaves_no_trace_and_loses_nothing(
    world: World, migrated_dsn: str
) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 7)
    other = await asyncpg.connect(migrated_dsn)
    entries = await stream.oldest(
        world.redis, world.layout, await stream.lengths(world.redis, world.layout), drain.BATCH_MAX
    )
    statement = await ledger.prepare(other)
    await other.transaction().start()
    await drain.record(replace(world.context, postgres=other), statement, entries)
    other.terminate()  # as a killed process: no rollback is sent
    assert await drain.run_once(world.context) == Drained(events=1)
    assert (await _sums(world))["cost"] == 7


async def test_two_drains_at_once_make_one_row_of_each_event(world: World, migrated_dsn: str) -> None:
    workloads = [await world.add_workload() for _ in range(6)]
    await publish.run_once(world.context)
    for cost in range(120):
        await world.request(workloads[cost % 6], cost)
    other = await asyncpg.connect(migrated_dsn)
    both = await asyncio.gather(
        drain.run_once(world.context), drain.run_once(replace(world.context, postgres=other))
    )
    await other.close()
    assert sum(done.events for done in both) == 120
    assert (await _sums(world))["requests"] == 120
    assert (await _sums(world))["cost"] == sum(range(120))


async def test_entries_that_are_no_events_are_set_aside_and_block_nothing(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    poison = [
        b"",
        b"not json",
        b"[]",
        b"null",
        b'{"kind":"refused"}',
        b'{"request_id":"r"}',
        b"\xff\xfe",
        b'"\\ud800"',
    ]
    kept = set()
    for cost, payload in enumerate(poison):
        await world.request(workload, cost)
        kept.add((await world.append(workload, payload), payload))
    await world.request(workload, 100)
    assert await drain.run_once(world.context) == Drained(events=len(poison) + 1, rejected=len(poison))
    assert await world.undrained() == 0
    rows = await world.postgres.fetch("SELECT shard, entry_id, payload, reason FROM rejected_events")
    assert {(row["entry_id"].encode(), row["payload"]) for row in rows} == kept
    assert all(row["shard"] == world.shard(workload) for row in rows)
    assert all(row["reason"].startswith("not an event") for row in rows)


async def test_events_that_postgres_cannot_store_are_set_aside_and_their_neighbours_are_rows(
    world: World,
) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    wrong: list[dict[str, object]] = [
        {"route": 5}, {"request_id": None}, {"cost": 10**30}, {"cost": 2**63 - 1}, {"admitted_at_ms": 10**18},
        {"status": 2**40}, {"path": ["a"]}, {"session": {}},
    ]  # fmt: skip
    good = orjson.loads(world.event(workload, await world.admit(workload, 1), 1).encode())
    for cost, fields in enumerate(wrong):
        await world.request(workload, cost + 1)
        await world.append(workload, json.dumps({**good, "request_id": f"req_{cost}", **fields}).encode())
    done = await drain.run_once(world.context)
    assert (done.events, done.rejected) == (len(wrong), len(wrong))
    assert await world.undrained() == 0
    reasons = await world.postgres.fetch("SELECT reason FROM rejected_events")
    assert all(row["reason"].startswith(("cannot be stored", "not an event")) for row in reasons)
    assert (await _sums(world))["cost"] == sum(range(1, len(wrong) + 1))


async def test_an_impossible_cost_does_not_spoil_the_sums_that_come_after_it(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    event = world.event(workload, await world.admit(workload, 1), 2**63 - 1)
    await world.append(workload, event.encode())
    await world.append(workload, world.refusals(workload, 60_000, 2**63 - 1).encode())
    assert await drain.run_once(world.context) == Drained(rejected=2)
    await world.request(workload, 5)
    assert await drain.run_once(world.context) == Drained(events=1)


async def test_an_entry_without_the_event_field_is_set_aside_with_what_it_has(world: World) -> None:
    await world.redis.xadd(world.layout.events(3), {"other": "thing"})
    assert await drain.run_once(world.context) == Drained(rejected=1)
    assert b"thing" in await world.postgres.fetchval("SELECT payload FROM rejected_events")


async def test_a_long_poison_entry_is_kept_in_part_only(world: World) -> None:
    await world.redis.xadd(world.layout.events(0), {"e": b"x" * 100_000})
    await drain.run_once(world.context)
    assert await world.postgres.fetchval("SELECT length(payload) FROM rejected_events") == 8_192


async def test_a_nul_in_a_path_does_not_lose_the_event(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.append(
        workload, world.event(workload, await world.admit(workload, 1), 4, path="/a\0b").encode()
    )
    assert await drain.run_once(world.context) == Drained(events=1)
    assert (await world.ledger())[0]["path"] == "/a�b"


async def test_refusals_are_summed_by_the_hour_of_their_minute_once(world: World) -> None:
    workload = await world.add_workload()
    for minute, count in ((0, 3), (59, 4), (60, 5)):
        entry = world.refusals(workload, 480_000 * HOUR_MS + minute * 60_000, count).encode()
        await world.append(workload, entry)
        await world.append(workload, entry)
    assert await drain.run_once(world.context) == Drained(refusals=3)
    rows = await world.postgres.fetch("SELECT hour, refused, requests FROM usage_hourly ORDER BY hour")
    first = datetime.fromtimestamp(480_000 * 3600, UTC)
    assert [tuple(row) for row in rows] == [(first, 7, 0), (first + timedelta(hours=1), 5, 0)]


async def test_what_a_limit_would_have_refused_is_counted_apart_from_what_was_refused(world: World) -> None:
    workload = await world.add_workload()
    refused = replace(world.refusals(workload, 480_000 * HOUR_MS, 3), level="account")
    observed = replace(world.refusals(workload, 480_000 * HOUR_MS, 5), level="organization", observed=True)
    before = {
        name: value
        for name, value in orjson.loads(refused.encode()).items()
        if name not in ("level", "observed")
    }
    for entry in (
        refused.encode(),
        observed.encode(),
        observed.encode(),
        orjson.dumps(before | {"id": "of before"}),
    ):
        await world.append(workload, entry)
    assert await drain.run_once(world.context) == Drained(refusals=3)
    rows = await world.postgres.fetch("SELECT count, level, observed FROM refusals ORDER BY level, count")
    assert [tuple(row) for row in rows] == [(3, "", False), (3, "account", False), (5, "organization", True)]
    (sums,) = await world.postgres.fetch("SELECT refused, observed, requests FROM usage_hourly")
    assert tuple(sums) == (6, 5, 0)


async def test_more_events_than_a_batch_are_drained_in_one_run(world: World) -> None:
    workloads = [await world.add_workload() for _ in range(3)]
    await publish.run_once(world.context)
    template = orjson.loads(world.event(workloads[0], await world.admit(workloads[0], 1), 1).encode())
    total = drain.BATCH_MAX + 777
    async with world.redis.pipeline(transaction=False) as pipe:
        for number in range(total):
            workload = workloads[0 if number % 10 else number % 3]
            event = template | {
                "request_id": f"req_{number}",
                "key": workload.key,
                "account": workload.account,
            }
            event |= {"organization": workload.tag, "cost": number}
            pipe.xadd(world.layout.events(world.shard(workload)), {"e": orjson.dumps(event)})
        await pipe.execute()
    assert await drain.run_once(world.context) == Drained(events=total)
    assert await world.undrained() == 0
    assert (await _sums(world))["cost"] == sum(range(total))


async def test_the_drain_says_how_far_behind_it_is(world: World) -> None:
    workload = await world.add_workload()
    seconds, _ = await world.redis.time()
    await world.redis.xadd(
        world.layout.events(world.shard(workload)),
        {"e": world.refusals(workload, 0, 1).encode()},
        id=f"{(seconds - 90) * 1000}-1",
    )
    await drain.run_once(world.context)
    registry = world.context.metrics.registry
    assert 89 <= (registry.get_sample_value("tollkeeper_drain_lag_seconds") or 0) < 120
    await drain.run_once(world.context)
    assert registry.get_sample_value("tollkeeper_drain_lag_seconds") == 0


async def test_a_key_knows_when_it_was_last_used_and_never_earlier(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 1)
    latest = world.event(workload, await world.admit(workload, 1), 1)
    await world.append(workload, latest.encode())
    await drain.run_once(world.context)
    late = replace(latest, request_id="req_late", admitted_at_ms=latest.admitted_at_ms - HOUR_MS)
    await world.append(workload, late.encode())
    await drain.run_once(world.context)
    at = await world.postgres.fetchval("SELECT last_used_at FROM keys WHERE id = $1", workload.key)
    assert round(at.timestamp() * 1000) == latest.admitted_at_ms


async def test_removal_takes_only_what_was_drained(world: World) -> None:
    """Ids may come out of order after a fail-over: an entry below the last drained one is not drained by that."""
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 1)
    waiting = await stream.lengths(world.redis, world.layout)
    entries = await stream.oldest(world.redis, world.layout, waiting, drain.BATCH_MAX)
    name = world.layout.events(world.shard(workload))
    await world.redis.delete(name)
    await world.redis.xadd(name, {"e": world.refusals(workload, 0, 1).encode()}, id="1-1")
    await stream.remove(world.redis, world.layout, entries)
    assert await world.redis.xlen(name) == 1


async def test_a_restart_of_postgres_in_the_middle_loses_nothing(
    world: World, own_postgres: EmbeddedPostgres
) -> None:
    await migrate(own_postgres.dsn)
    rounds, size, drained = 5, 400, 0
    template = UsageEvent(
        request_id="", admitted_at_ms=1_760_000_000_000, ended_at_ms=1_760_000_000_001, organization="abcdef",
        account="sa_abcdef0123456789", account_name="w", account_kind="service-account", key="abcdef0123456789",
        route="r", method="GET", path="/", status=200, outcome="completed", cost=3,
    )  # fmt: skip
    for number in range(rounds * size):
        event = replace(template, request_id=f"req_{number}")
        await world.redis.xadd(world.layout.events(number % 16), {"e": event.encode()})

    async def drain_a_little(postgres: asyncpg.Connection) -> int:
        waiting = await stream.lengths(world.redis, world.layout)
        entries = await stream.oldest(world.redis, world.layout, waiting, size)
        context = replace(world.context, postgres=postgres)
        done = await drain.record(context, await ledger.prepare(postgres), entries)
        await stream.remove(world.redis, world.layout, entries)
        return done.events

    postgres = await asyncpg.connect(own_postgres.dsn)
    drained += await drain_a_little(postgres)
    await own_postgres.kill()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await drain_a_little(postgres)
    await own_postgres.start()
    postgres = await asyncpg.connect(own_postgres.dsn)
    drained += (await drain.run_once(replace(world.context, postgres=postgres))).events
    assert drained == rounds * size
    row = await postgres.fetchrow("SELECT count(*), sum(cost)::bigint AS cost FROM usage_events")
    assert row is not None
    assert tuple(row) == (rounds * size, rounds * size * 3)
    assert await postgres.fetchval("SELECT sum(requests)::bigint FROM usage_hourly") == rounds * size
    await postgres.close()


async def test_days_are_made_ahead_and_take_the_rows_that_came_before_them(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 5)
    await drain.run_once(world.context)
    before = await world.ledger()
    assert await world.postgres.fetchval("SELECT count(*) FROM usage_events_default") == 1
    made = await partitions.run_once(world.context)
    assert len(made) == 1 + 1 + 7
    assert await world.postgres.fetchval("SELECT count(*) FROM usage_events_default") == 0
    assert await world.ledger() == before
    assert await partitions.run_once(world.context) == []
    await world.append(workload, world.event(workload, await world.admit(workload, 1), 6).encode())
    assert await drain.run_once(world.context) == Drained(events=1)
    assert await world.postgres.fetchval("SELECT count(*) FROM usage_events_default") == 0


async def test_a_row_moved_into_its_day_is_still_known_to_a_second_delivery(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    event = world.event(workload, await world.admit(workload, 1), 6).encode()
    await world.append(workload, event)
    await drain.run_once(world.context)
    await partitions.run_once(world.context)
    await world.append(workload, event)
    assert await drain.run_once(world.context) == Drained(repeated=1)


async def test_making_days_does_not_wait_for_a_drain_that_is_busy_with_another_day(
    world: World, migrated_dsn: str
) -> None:
    await partitions.run_once(world.context)
    busy = await asyncpg.connect(migrated_dsn)
    context = Context(busy, world.redis, world.layout)
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 1)
    statement = await ledger.prepare(busy)
    waiting = await stream.lengths(world.redis, world.layout)
    async with busy.transaction():
        await drain.record(context, statement, await stream.oldest(world.redis, world.layout, waiting, 10))
        today = datetime.now(UTC).date()
        made = await asyncio.wait_for(partitions.run_once(world.context, today + timedelta(days=30)), 10)
        assert len(made) == 9
    await busy.close()


async def test_a_day_that_is_made_under_a_drain_costs_no_event(world: World, migrated_dsn: str) -> None:
    """The drain has chosen the default partition, waits for its lock, and then the day exists."""
    workload = await world.add_workload()
    await publish.run_once(world.context)
    for cost in range(10):
        await world.request(workload, cost)
    other, observer = await asyncpg.connect(migrated_dsn), await asyncpg.connect(migrated_dsn)
    making = other.transaction()
    await making.start()
    assert await partitions._make(other, datetime.now(UTC).date())
    draining = asyncio.create_task(drain.run_once(world.context))
    give_up_at = time.monotonic() + 20
    while not await observer.fetchval(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'usage_events_default'::regclass"
    ):
        assert time.monotonic() < give_up_at
        assert not draining.done()
        await asyncio.sleep(0.01)
    await making.commit()
    assert await draining == Drained(events=10)
    assert (await _sums(world))["cost"] == sum(range(10))
    await other.close()
    await observer.close()


async def test_ids_are_not_taken_for_sql(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    nasty = "x'); DROP TABLE usage_events; --" + secrets.token_hex(2)
    await world.append(
        workload, world.event(workload, await world.admit(workload, 1), 4, path=nasty).encode()
    )
    await drain.run_once(world.context)
    assert (await world.ledger())[0]["path"] == nasty
