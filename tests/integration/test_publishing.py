"""Publishing: rules reach Redis in any order, from anywhere, and the newest wins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest
from redis.asyncio import Redis

from control.domain import outbox, rules
from control.publishing import Publisher, RedisUnavailable, Start
from gateway.contract.ids import AccountId, KeyId, OrganizationTag
from gateway.contract.layout import META, Layout
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, KeyRules, OrganizationRules

ACME = OrganizationRules(OrganizationTag("AcmeAc"), "acme", 5, "active", Budget(Microcredits(9)))
RECORD = Layout().organization(ACME.tag)


@pytest.fixture
async def database(migrated_dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    conn = await asyncpg.connect(migrated_dsn)
    yield conn
    await conn.close()


@pytest.fixture
def publisher(redis_client: Redis) -> Publisher:
    return Publisher(redis_client, Layout())


async def test_older_rules_never_overwrite_newer_ones(publisher: Publisher, redis_client: Redis) -> None:
    assert await publisher.publish(ACME)
    assert not await publisher.publish(ACME)
    assert not await publisher.publish(replace(ACME, version=4, status="inactive"))
    assert await publisher.publish(replace(ACME, version=6, status="inactive"))

    assert await redis_client.hmget(RECORD, ["status", "version"]) == [b"inactive", b"6"]


async def test_counters_are_set_with_a_new_record_and_left_alone_on_a_live_one(
    publisher: Publisher, redis_client: Redis
) -> None:
    await publisher.publish(ACME, window_ms=7, spent=3, lost=2)
    await publisher.publish(replace(ACME, version=6), window_ms=0, spent=0)

    assert await redis_client.hmget(RECORD, ["window", "spent", "held", "lost"]) == [b"7", b"3", b"0", b"2"]


async def test_many_are_published_in_few_round_trips_even_if_redis_forgot_the_script(
    publisher: Publisher, redis_client: Redis
) -> None:
    items = [(replace(ACME, tag=OrganizationTag(f"{number:06d}")), Start()) for number in range(2_500)]
    await redis_client.script_flush()

    assert await publisher.publish_many(items) == [True] * 2_500
    assert await redis_client.dbsize() == 2_500


async def test_a_change_is_not_written_into_a_redis_that_lost_its_counters(
    publisher: Publisher, redis_client: Redis
) -> None:
    assert await publisher.publish_changes([ACME]) == [False]
    assert await redis_client.exists(RECORD) == 0

    await redis_client.hset(META, "epoch", "first")
    # Loaded or not: only the publish job knows what was spent.
    assert await publisher.publish_changes([ACME]) == [False]
    await publisher.publish(ACME, window_ms=7, spent=3)
    assert await publisher.publish_changes([replace(ACME, version=6)]) == [True]


async def test_a_change_reaches_a_record_that_a_rebuild_has_already_written(
    publisher: Publisher, redis_client: Redis
) -> None:
    await publisher.publish(ACME, window_ms=7, spent=3)

    assert await publisher.publish_changes([replace(ACME, version=6, status="inactive")]) == [True]
    assert await redis_client.hmget(RECORD, ["status", "spent"]) == [b"inactive", b"3"]


async def test_a_redis_that_is_away_is_one_kind_of_failure_without_its_address() -> None:
    redis = Redis.from_url("redis://:a-password@127.0.0.1:1", socket_connect_timeout=0.5)

    with pytest.raises(RedisUnavailable) as raised:
        await Publisher(redis, Layout()).publish(ACME)
    assert str(raised.value) == "ConnectionError"
    await redis.aclose()


async def test_all_rules_come_parents_first_with_tombstones(database: asyncpg.Connection) -> None:
    await database.execute(
        """INSERT INTO organizations (tag, name, display_name, created_by, billing_day)
           VALUES ('AcmeAc', 'acme', 'Acme', 'operator', 31);
           INSERT INTO accounts (id, organization, kind, name, display_name, status, deleted_at, created_by)
           VALUES ('sa_AcmeAc0000000000', 'AcmeAc', 'service-account', 'gone', 'Gone', 'deleted', now(), 'operator');
           INSERT INTO keys (id, organization, account, name, hint, token_hash, status, revoked_at, expires_at, created_by)
           VALUES ('AcmeAc0000000001', 'AcmeAc', 'sa_AcmeAc0000000000', 'old', 'tk_…0000', '$argon2id$x', 'revoked', now(),
                   '2031-01-31T12:00:00.1239Z', 'operator');"""
    )

    organization, account, key = [found async for found in rules.all_rules(database)]

    assert isinstance(organization, OrganizationRules)
    assert account == await rules.load(database, "account", "sa_AcmeAc0000000000")
    assert account.status == "deleted"
    assert account.budget.billing_day == 31
    assert isinstance(key, KeyRules)
    assert (key.id, key.account_id) == (KeyId("AcmeAc0000000001"), AccountId("sa_AcmeAc0000000000"))
    assert (key.status, key.expires_at_ms, key.digest) == ("revoked", 1_927_627_200_123, None)
    assert await rules.load(database, "key", "0000000000000000") is None


async def test_the_outbox_keeps_an_entry_until_it_is_done(database: asyncpg.Connection) -> None:
    first = await outbox.enqueue(database, "organization", "AcmeAc")
    await outbox.enqueue_all(database, "key", ["AcmeAc0000000001", "AcmeAc0000000002"])

    taken = await outbox.take(database, 2)
    assert taken[0] == first
    assert [entry.entity for entry in await outbox.take(database, 2)] == ["AcmeAc", "AcmeAc0000000001"]

    await outbox.done(database, [entry.id for entry in taken])
    assert [entry.entity for entry in await outbox.take(database, 2)] == ["AcmeAc0000000002"]
