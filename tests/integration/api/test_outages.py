"""What the REST API does while Redis or Postgres is away: it says so, quickly, and nothing is half done."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import asyncpg
import pytest
from pytest_aiohttp.plugin import AiohttpClient
from redis.asyncio import Redis

from control.app import build_app, ensure_operator_token, open_services
from control.database import PostgresUnreachable, connect_pool
from control.domain import outbox, rules
from control.embedded import EmbeddedPostgres, EmbeddedRedis
from control.migrate import migrate
from control.publishing import Publisher
from control.settings import ControlSettings
from gateway.contract.layout import META
from tests.integration.api.world import LAYOUT, PEPPER, Api, Gateway


@pytest.fixture
async def frail(
    own_redis: EmbeddedRedis, migrated_dsn: str, aiohttp_client: AiohttpClient
) -> AsyncIterator[Api]:
    """The API on a Redis that the test may stop."""
    settings = ControlSettings.model_validate(
        {
            "postgres_dsn": migrated_dsn,
            "redis_url": own_redis.url,
            "pepper": PEPPER.hex(),
            "redis_timeout_s": 0.5,
        }
    )
    async with Redis.from_url(own_redis.url) as redis:
        await redis.hset(META, mapping={"schema": 1, "shards": 16, "epoch": "first"})
    async with open_services(settings) as deps:
        async with deps.reading() as conn:
            operator_token = await ensure_operator_token(conn)
        assert operator_token is not None
        yield Api(await aiohttp_client(build_app(deps)), operator_token, deps)


async def test_without_redis_nothing_new_is_saved(
    frail: Api, own_redis: EmbeddedRedis, database: asyncpg.Connection
) -> None:
    await frail.organization("acme")
    account = await frail.account()
    await own_redis.stop()

    answers = [
        await frail.post("/v1/organizations", {"name": "other"}),
        await frail.post("/v1/organizations/acme/service-accounts", {"name": "other"}),
        await frail.post(f"/v1/service-accounts/{account['id']}/keys", {"name": "other"}),
    ]

    assert [(answer.status, answer.code) for answer in answers] == [(503, "redis_unavailable")] * 3
    for table in ("organizations", "accounts"):
        assert await database.fetchval(f"SELECT count(*) FROM {table}") == 1
    assert await database.fetchval("SELECT count(*) FROM keys") == 0
    assert await database.fetchval("SELECT count(*) FROM outbox") == 0


async def test_without_redis_nothing_is_granted(
    frail: Api, own_redis: EmbeddedRedis, database: asyncpg.Connection
) -> None:
    """Where a grant goes depends on what is used up, and only Redis knows that."""
    await frail.organization("acme", billing="prepaid")
    headers = {"Idempotency-Key": "order-1"}
    path, body = "/v1/organizations/acme/grants", {"amount": "10"}
    await own_redis.stop()

    answer = await frail.call("POST", path, body, headers=headers)
    assert (answer.status, answer.code) == (503, "redis_unavailable")
    assert await database.fetchval("SELECT count(*) FROM grants") == 0
    shown = (await frail.get("/v1/organizations/acme")).body
    assert (shown["granted"], shown["lost"], shown["credit_limit"]) == ("0", None, "0")

    await own_redis.start()
    assert (await frail.call("POST", path, body, headers=headers)).status == 201
    await own_redis.stop()
    again = await frail.call("POST", path, body, headers=headers)
    assert (again.status, again.code) == (503, "not_yet_in_force")
    (row,) = (await frail.get(path)).body["data"]
    assert (row["amount"], row["left"], row["counters_available"]) == ("10", None, False)


async def test_without_redis_a_change_is_saved_said_not_to_be_in_force_and_carried_by_the_outbox(
    frail: Api, own_redis: EmbeddedRedis, database: asyncpg.Connection
) -> None:
    await frail.organization("acme")
    secret = await frail.key(await frail.account())
    key = secret["key"]
    await own_redis.stop()

    answer = await frail.post(f"/v1/keys/{key['id']}/revoke")
    assert (answer.status, answer.code) == (503, "not_yet_in_force")
    assert (await frail.get(f"/v1/keys/{key['id']}")).body["status"] == "revoked"

    await own_redis.start()
    async with Redis.from_url(own_redis.url) as redis:
        entries = await outbox.take(database, 10)
        found = [await rules.load(database, entry.kind, entry.entity) for entry in entries]
        await Publisher(redis, LAYOUT).publish_changes([item for item in found if item is not None])
        assert await Gateway(redis).admit(secret["token"]) == [b"status", b"key", b"revoked"]


async def test_without_redis_reads_answer_with_null_figures(frail: Api, own_redis: EmbeddedRedis) -> None:
    await frail.organization("acme", credit_limit="5")
    await own_redis.stop()

    for answer in (await frail.get("/v1/organizations/acme"), await frail.get("/v1/organizations")):
        assert answer.status == 200
        shown = answer.body.get("data", [answer.body])[0]
        assert (shown["spent"], shown["remaining"], shown["counters_available"]) == (None, None, False)
        assert shown["credit_limit"] == "5"


async def test_without_redis_the_process_is_live_and_not_ready(frail: Api, own_redis: EmbeddedRedis) -> None:
    await own_redis.stop()

    assert (await frail.call("GET", "/livez", bearer=None)).status == 200
    ready = await frail.call("GET", "/readyz", bearer=None)
    assert (ready.status, ready.body) == (503, {"status": "unavailable", "postgres": True, "redis": False})


async def test_a_redis_that_was_restarted_is_found_again(frail: Api, own_redis: EmbeddedRedis) -> None:
    await frail.organization("acme")
    await own_redis.stop()
    await own_redis.start()

    assert (await frail.account("acme", "nightly-report"))["counters_available"] is True


async def test_without_postgres_every_call_is_a_quick_503_and_works_again_when_it_is_back(
    own_postgres: EmbeddedPostgres, redis_url: str, aiohttp_client: AiohttpClient
) -> None:
    await migrate(own_postgres.dsn)
    settings = ControlSettings.model_validate(
        {
            "postgres_dsn": own_postgres.dsn,
            "redis_url": redis_url,
            "pepper": PEPPER.hex(),
            "postgres_timeout_s": 2,
        }
    )
    async with open_services(settings) as deps:
        async with deps.reading() as conn:
            operator_token = await ensure_operator_token(conn)
        assert operator_token is not None
        api = Api(await aiohttp_client(build_app(deps)), operator_token, deps)
        await api.organization("acme")

        await own_postgres.stop()
        began = time.monotonic()
        away = await api.get("/v1/organizations/acme")
        assert (away.status, away.code) == (503, "postgres_unavailable")
        assert time.monotonic() - began < 4
        assert (await api.call("GET", "/readyz", bearer=None)).body["postgres"] is False

        await own_postgres.start()
        assert (await api.get("/v1/organizations/acme")).status == 200


async def test_a_postgres_that_never_comes_up_is_named_at_start(redis_url: str) -> None:
    settings = ControlSettings.model_validate(
        {
            "postgres_dsn": "postgresql://someone:a-password@127.0.0.1:1/nowhere",
            "redis_url": redis_url,
            "pepper": PEPPER.hex(),
            "start_timeout_s": 0.5,
        }
    )

    with pytest.raises(PostgresUnreachable, match="TOLLKEEPER_POSTGRES_DSN") as raised:
        await connect_pool(settings)
    assert "a-password" not in str(raised.value)
