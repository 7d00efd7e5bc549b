"""What every test of the jobs starts from."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
import redis.asyncio

from control.jobs.context import Context
from gateway.contract.layout import Layout
from tests.integration.jobs.world import World


@pytest.fixture
async def world(migrated_dsn: str, redis_client: redis.asyncio.Redis) -> AsyncIterator[World]:
    """An installation without rules, in a database and a Redis of its own."""
    postgres = await asyncpg.connect(migrated_dsn, command_timeout=30)
    yield World(Context(postgres, redis_client, Layout()))
    await postgres.close()
