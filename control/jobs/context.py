"""What every job works with, and how a job reaches Postgres. The runner makes one for each job, tests make their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import asyncpg
from redis.asyncio import Redis

from control.jobs.metrics import JobMetrics
from control.publishing import connect_redis
from control.settings import ControlSettings
from gateway.contract.layout import Layout

STATEMENT_TIMEOUT_S: Final = 60.0
"""Longer than a call of the API may take: a batch on a busy disk is to be finished, not begun again."""
LOCK_TIMEOUT_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Context:
    """`postgres` is the job's own connection: in the runner it also holds the lock that lets the job run, so a job that
    has lost its lock has lost the means to write. `redis` answers bytes and has time-outs. A job that works in batches
    ends after the present one once `stopping` is set. One whose run may take long, for it waits for others, says `is_well`
    as soon as it knows that it can work.
    """

    postgres: asyncpg.Connection
    redis: Redis
    layout: Layout
    metrics: JobMetrics = field(default_factory=JobMetrics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    is_well: Callable[[], None] = lambda: None


async def connect_postgres(settings: ControlSettings, job: str) -> asyncpg.Connection:
    """A connection for one job alone, with a bound on every wait. It must lead to Postgres itself and not to a pooler that
    shares connections: locks and temporary tables belong to it.
    """
    return await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(),
        timeout=settings.postgres_timeout_s,
        command_timeout=STATEMENT_TIMEOUT_S + 1,
        server_settings={
            "application_name": f"tollkeeper-{job}",
            "statement_timeout": str(int(STATEMENT_TIMEOUT_S * 1000)),
            "lock_timeout": str(int(LOCK_TIMEOUT_S * 1000)),
            "idle_in_transaction_session_timeout": str(int(STATEMENT_TIMEOUT_S * 1000)),
            "timezone": "UTC",
            "jit": "off",  # compiling the statement of a batch takes longer than the batch
        },
    )


@asynccontextmanager
async def opened(settings: ControlSettings, job: str) -> AsyncIterator[Context]:
    """A context for one job that is run by hand, outside of the runner (`tollkeeper reconcile`)."""
    redis = connect_redis(settings)
    try:
        postgres = await connect_postgres(settings, job)
        try:
            yield Context(postgres, redis, settings.layout)
        finally:
            await postgres.close(timeout=settings.postgres_timeout_s)
    finally:
        await redis.aclose()
