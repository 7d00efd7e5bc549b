"""The REST API on a real Postgres and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from pytest_aiohttp.plugin import AiohttpClient
from redis.asyncio import Redis

from control.app import build_app, ensure_operator_token, open_services
from control.settings import ControlSettings
from gateway.contract.layout import META
from tests.integration.api.world import PEPPER, Api, Gateway


@pytest.fixture
def control_settings(migrated_dsn: str, redis_url: str) -> ControlSettings:
    return ControlSettings.model_validate(
        {"postgres_dsn": migrated_dsn, "redis_url": redis_url, "pepper": PEPPER.hex(), "redis_timeout_s": 0.5}
    )


@pytest.fixture
async def gateway(redis_client: Redis) -> Gateway:
    """Redis is loaded, as the publish job would leave it."""
    await redis_client.hset(META, mapping={"schema": 1, "shards": 16, "epoch": "first"})
    return Gateway(redis_client)


@pytest.fixture
async def database(migrated_dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A look behind the API."""
    conn = await asyncpg.connect(migrated_dsn)
    yield conn
    await conn.close()


@pytest.fixture
async def api(
    control_settings: ControlSettings, gateway: Gateway, aiohttp_client: AiohttpClient
) -> AsyncIterator[Api]:
    async with open_services(control_settings) as deps:
        async with deps.reading() as conn:
            operator_token = await ensure_operator_token(conn)
        assert operator_token is not None
        yield Api(await aiohttp_client(build_app(deps)), operator_token, deps)
