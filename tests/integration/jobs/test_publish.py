"""Publish and reconcile against real servers: Redis is disposable, and its counters equal the sums of the rows."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest
from redis.asyncio import Redis

from control.domain import outbox
from control.domain.changes import Changes
from control.embedded import EmbeddedRedis
from control.jobs import drain, publish, reconcile
from control.jobs.context import Context
from control.jobs.publish import LoadInterrupted, Published, WrongInstallation
from control.jobs.reconcile import Difference
from control.publishing import Publisher, RedisUnavailable
from gateway.contract.ids import KeyId
from gateway.contract.layout import META, Layout
from gateway.contract.periods import PERIODS, window_at
from tests.integration.jobs.world import TOKEN_HASH, World


async def _traffic(world: World) -> None:
    """Requests of every period, so that every record has spent something."""
    tag = None
    for number, period in enumerate(PERIODS):
        workload = await world.add_workload(period, tag)
        tag = workload.tag if number % 2 else None
    await publish._write_everything(world.context)
    for round_ in range(7):
        for number, workload in enumerate(world.workloads):
            await world.request(workload, 100 * number + round_)


async def test_an_empty_redis_is_loaded_and_the_epoch_comes_last(world: World) -> None:
    workload = await world.add_workload()
    assert await publish.run_once(world.context) == Published(written=3, rebuilt=True)
    meta = await world.redis.hgetall(META)
    assert (meta[b"schema"], meta[b"shards"]) == (b"1", b"16")
    assert meta[b"epoch"]
    assert b"loading" not in meta
    assert await world.redis.hget(world.layout.key(workload.key), "status") == b"active"
    assert await publish.run_once(world.context) == Published()


async def test_an_installation_without_rules_is_loaded_too(world: World) -> None:
    assert (await publish.run_once(world.context)).rebuilt
    assert await world.redis.hexists(META, "epoch")


async def test_a_flushed_redis_gets_back_identical_counters(world: World) -> None:
    await publish.run_once(world.context)
    await _traffic(world)
    await drain.run_once(world.context)
    before = await world.counters()
    epoch = await world.redis.hget(META, "epoch")
    await world.redis.flushall()
    assert (await publish.run_once(world.context)).rebuilt
    assert await world.counters() == before
    assert any(int(counters[b"spent"]) for counters in before.values())
    assert await world.redis.hget(META, "epoch") != epoch
    assert await reconcile.differences(world.context, attempts=1) == []


async def test_a_rebuilt_limit_is_enforced_with_what_was_spent_before(world: World) -> None:
    workload = await world.add_workload("monthly", limit=1_000)
    await publish.run_once(world.context)
    await world.request(workload, 900, hold=900)
    await drain.run_once(world.context)
    await world.redis.flushall()
    await publish.run_once(world.context)
    with pytest.raises(AssertionError, match="budget"):
        await world.admit(workload, 101)
    await world.request(workload, 100, hold=100)


async def test_events_that_outlived_the_epoch_are_part_of_a_rebuild(world: World) -> None:
    workload = await world.add_workload("daily")
    await publish.run_once(world.context)
    await world.request(workload, 70)
    await world.redis.delete(META, *world.records(workload))
    await publish.run_once(world.context)
    assert {counters[b"spent"] for counters in (await world.counters()).values()} == {b"70"}
    assert await world.undrained() == 0


async def test_what_was_spent_in_a_window_that_has_ended_is_not_charged_to_the_new_one(world: World) -> None:
    workload = await world.add_workload("daily")
    await publish.run_once(world.context)
    member = await world.admit(workload, 10)
    today = window_at("daily", (await world.redis.time())[0] * 1000).start_ms
    yesterday = today - 86_400_000
    event = world.event(workload, member, 55, admitted_at_ms=yesterday + 5, windows=(yesterday, yesterday, 0))
    await world.append(workload, event.encode())
    await world.redis.delete(META, *world.records(workload))
    await publish.run_once(world.context)
    spent = {name: int(counters[b"spent"]) for name, counters in (await world.counters()).items()}
    key, account, organization = world.records(workload)
    assert (spent[key], spent[account], spent[organization]) == (0, 0, 55)


async def test_a_redis_flushed_while_it_is_loaded_is_not_declared_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.add_workload()
    write = publish._write_everything

    async def flushed_meanwhile(context: Context) -> int:
        written = await write(context)
        await context.redis.flushall()
        return written

    monkeypatch.setattr(publish, "_write_everything", flushed_meanwhile)
    with pytest.raises(LoadInterrupted):
        await publish.run_once(world.context)
    assert not await world.redis.hexists(META, "epoch")
    monkeypatch.undo()
    assert (await publish.run_once(world.context)).rebuilt


async def test_ten_thousand_keys_are_loaded_in_seconds(world: World) -> None:
    workload = await world.add_workload("monthly")
    await world.postgres.execute(
        "INSERT INTO keys (id, organization, account, name, hint, token_hash, created_by)"
        " SELECT $1 || lpad(n::text, 10, '0'), $1, $2, 'key ' || n, 'tk_…abcd', '$argon2id$x', 'test'"
        " FROM generate_series(1, 10000) AS n",
        workload.tag,
        workload.account,
    )
    await world.postgres.execute(
        "INSERT INTO usage_windows (window_ms, spent, level, id) SELECT 0, 7, 'key', id FROM keys"
    )
    began = time.monotonic()
    assert (await publish.run_once(world.context)).written == 10_003
    took_s = time.monotonic() - began
    print(f"10 000 keys in {took_s:.2f} s")
    assert took_s < 15  # some 1.5 s on an idle core
    assert await world.redis.hget(world.layout.key(f"{workload.tag}{'42':0>10}"), "spent") == b"7"  # type: ignore[arg-type]


async def test_a_load_that_fails_half_way_leaves_no_transaction_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = await world.add_workload()
    await world.postgres.execute(
        "INSERT INTO keys (id, organization, account, name, hint, token_hash, created_by)"
        " SELECT $1 || lpad(n::text, 10, '0'), $1, $2, 'many', 'tk_…abcd', $3, 'test' FROM generate_series(1, 3000) AS n",
        workload.tag, workload.account, TOKEN_HASH,
    )  # fmt: skip

    async def fails(*_: object) -> list[bool]:
        raise RedisUnavailable("TimeoutError")

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "publish_many", fails)
        with pytest.raises(RedisUnavailable):
            await publish.run_once(world.context)
        assert not world.postgres.is_in_transaction()
    assert (await publish.run_once(world.context)).written == 3_003


async def test_what_redis_loses_between_its_announcement_and_the_commit_is_published_again(
    world: World, migrated_dsn: str
) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    key = KeyId(workload.tag + "0123456789")
    async with asyncpg.create_pool(migrated_dsn, min_size=1, max_size=1) as pool:
        changes = Changes(pool, Publisher(world.redis, world.layout), timeout_s=5)
        async with changes.begin() as change:
            await change.conn.execute(
                "INSERT INTO keys (id, organization, account, name, hint, token_hash, created_by)"
                " VALUES ($1, $2, $3, 'new', 'tk_…abcd', $4, 'test')",
                key, workload.tag, workload.account, TOKEN_HASH,
            )  # fmt: skip
            await change.introduce("key", key)
            await world.redis.flushall()
            await publish.run_once(world.context)  # sees nothing of the key: it is not committed
    assert await publish.run_once(world.context) == Published(changes=1, written=1)
    assert await world.redis.hget(world.layout.key(key), "status") == b"active"


async def test_a_redis_with_another_number_of_shards_is_not_touched(world: World) -> None:
    await world.add_workload()
    await world.redis.hset(META, mapping={"schema": 1, "shards": 32, "epoch": "x"})
    with pytest.raises(WrongInstallation, match=r"shards 32.*set to 16.*TOLLKEEPER_SHARDS"):
        await publish.run_once(world.context)
    assert await world.redis.keys() == [META.encode()]


async def test_a_redis_of_another_schema_is_not_touched(world: World) -> None:
    await world.redis.hset(META, mapping={"schema": 2, "shards": 16})
    with pytest.raises(WrongInstallation, match="another version"):
        await publish.run_once(world.context)


async def test_a_change_left_in_the_outbox_is_published_and_taken_out(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 33)
    await world.postgres.execute(
        "UPDATE keys SET status = 'disabled', version = nextval('rule_version') WHERE id = $1", workload.key
    )
    await outbox.enqueue(world.postgres, "key", workload.key)
    assert await publish.run_once(world.context) == Published(changes=1, written=1)
    record = world.layout.key(workload.key)
    assert await world.redis.hmget(record, ["status", "spent"]) == [b"disabled", b"33"]
    assert await outbox.take(world.postgres, 10) == []


async def test_a_change_of_a_record_that_redis_lost_brings_what_was_spent(world: World) -> None:
    workload = await world.add_workload("daily")
    await publish.run_once(world.context)
    await world.request(workload, 33)
    await drain.run_once(world.context)
    await world.redis.delete(world.layout.key(workload.key))
    await outbox.enqueue(world.postgres, "key", workload.key)
    await publish.run_once(world.context)
    assert await world.redis.hget(world.layout.key(workload.key), "spent") == b"33"


async def test_an_outbox_entry_of_something_that_is_not_there_does_not_stay(world: World) -> None:
    await outbox.enqueue(world.postgres, "account", "sa_0000000000000000")
    assert (await publish.run_once(world.context)).changes == 1
    assert await outbox.take(world.postgres, 10) == []


async def test_another_server_gets_what_it_lacks_and_keeps_its_counters(
    world: World, own_redis: EmbeddedRedis
) -> None:
    """A restart without its last writes, as after a fail-over to a replica that lagged."""
    redis = Redis.from_url(own_redis.url)
    moved = World(Context(world.postgres, redis, Layout()))
    workload = await moved.add_workload("daily")
    await publish.run_once(moved.context)
    await moved.request(workload, 12)
    await drain.run_once(moved.context)
    epoch = await redis.hget(META, "epoch")
    before = await moved.counters()
    await redis.delete(moved.layout.account(workload.account))
    await own_redis.stop()
    await own_redis.start()
    await redis.aclose()
    redis = Redis.from_url(own_redis.url)
    moved = World(Context(world.postgres, redis, Layout()), moved.workloads)
    assert await publish.run_once(moved.context) == Published(written=1)
    assert await moved.counters() == before
    assert await redis.hget(META, "epoch") == epoch
    assert await publish.run_once(moved.context) == Published()
    await redis.aclose()


async def test_counters_equal_the_sums_of_the_rows_under_traffic_and_in_flight(world: World) -> None:
    await publish.run_once(world.context)
    await _traffic(world)
    in_flight = [await world.admit(workload, 500) for workload in world.workloads]
    assert await reconcile.differences(world.context, attempts=1) == []  # nothing drained
    await drain.run_once(world.context)
    await _traffic_again(world)
    assert await reconcile.differences(world.context, attempts=1) == []  # some drained, some not, some held
    assert len(in_flight) == len(world.workloads)


async def _traffic_again(world: World) -> None:
    await asyncio.gather(*(world.request(workload, 9) for workload in world.workloads))


async def test_reconcile_counts_an_event_that_is_a_row_and_still_in_the_stream_once(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    member = await world.admit(workload, 10)
    assert await world.settle(workload, member, 8) == 1
    await drain.run_once(world.context)
    await world.append(workload, world.event(workload, member, 8).encode())
    assert await reconcile.differences(world.context, attempts=1) == []


async def test_reconcile_names_a_counter_that_differs_and_repairs_nothing(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 30)
    await world.admit(workload, 4)
    record = world.layout.account(workload.account)
    await world.redis.hset(record, mapping={"spent": 29, "held": 5})
    expected = [
        Difference("held", "account", workload.account, 0, 5, 4),
        Difference("spent", "account", workload.account, 0, 29, 30),
    ]
    assert await reconcile.run_once(world.context) == expected
    assert await world.redis.hmget(record, ["spent", "held"]) == [b"29", b"5"]
    assert world.context.metrics.registry.get_sample_value("tollkeeper_reconcile_differences") == 2


async def test_reconcile_notices_a_row_that_is_missing_from_the_ledger(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 30)
    await world.request(workload, 1)
    await drain.run_once(world.context)
    await world.postgres.execute("DELETE FROM usage_events WHERE cost = 1")
    found = await reconcile.differences(world.context, attempts=2)
    assert {(each.what, each.level, each.found, each.expected) for each in found} == {
        (what, level, 31, 30) for what in ("spent", "sum") for level in ("key", "account", "organization")
    }


async def test_reconcile_notices_that_all_rows_of_a_window_are_missing(world: World) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    await world.request(workload, 30)
    await drain.run_once(world.context)
    await world.postgres.execute("DELETE FROM usage_events")
    found = await reconcile.differences(world.context, attempts=1)
    assert len([each for each in found if each.what == "sum"]) == 3


async def test_what_moved_while_it_was_compared_is_not_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    waiting, times = reconcile._waiting, 0

    async def traffic_meanwhile(*arguments: object) -> object:
        nonlocal times
        times += 1
        await world.request(workload, times * 10)
        return await waiting(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(reconcile, "_waiting", traffic_meanwhile)
    monkeypatch.setattr(reconcile, "PAUSE_S", 0)
    assert await reconcile.differences(world.context, attempts=1) != []
    assert await reconcile.differences(world.context) == []
