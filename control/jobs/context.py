"""What every job works with. The runner makes one for each job, tests make their own. No logic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import asyncpg
from redis.asyncio import Redis

from control.jobs.metrics import JobMetrics
from gateway.contract.layout import Layout


@dataclass(frozen=True, slots=True)
class Context:
    """`postgres` is the job's own connection: in the runner it also holds the lock that lets the job run, so a job that
    has lost its lock has lost the means to write. `redis` answers bytes and has time-outs.
    """

    postgres: asyncpg.Connection
    redis: Redis
    layout: Layout
    metrics: JobMetrics = field(default_factory=JobMetrics)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
