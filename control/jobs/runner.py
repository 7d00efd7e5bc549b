"""The runner: every job on its interval, each by one process at a time, until it is told to stop.

A job has a connection to Postgres of its own, and a session lock on it that only one process can have: a process that
loses the connection has lost the lock, and waits until it has both again. Whatever fails is logged when it begins and when
it ends, tried again ever more slowly, and never takes another job with it. `tollkeeper jobs` calls `run`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from control.jobs import alerts, drain, expire, grants, partitions, publish, reconcile, retention
from control.jobs.context import Context, connect_postgres
from control.jobs.listener import Health, listening
from control.jobs.metrics import JobMetrics
from control.publishing import connect_redis
from control.settings import ControlSettings

LOCK_SPACE: Final = 0x746B6A6F  # "tkjo"; with the job's number, the name of its lock
BUSY_INTERVAL_S: Final = 0.2
STANDBY_INTERVAL_S: Final = 1.0
RETENTION_INTERVAL_S: Final = 3600.0
RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 10.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """`run` answers whether there was work, so that it is worth looking again soon. `number` names the lock: never
    change one. `at_end`: run once more after being told to stop.
    """

    name: str
    number: int
    interval_s: float
    run: Callable[[Context], Awaitable[bool]]
    busy_interval_s: float = BUSY_INTERVAL_S
    at_end: bool = False


def jobs(settings: ControlSettings) -> list[Job]:
    """What a process runs."""
    return [
        Job("publish", 1, settings.publish_interval_s, _publish),
        Job("drain", 2, settings.drain_interval_s, _drain, at_end=True),
        Job("expire", 3, settings.expire_interval_s, _expire),
        Job("partitions", 4, settings.partitions_interval_s, _partitions, settings.partitions_interval_s),
        Job("reconcile", 5, settings.reconcile_interval_s, _reconcile, settings.reconcile_interval_s),
        Job("grants", 6, settings.grants_interval_s, _grants),
        Job("alerts", 7, settings.alerts_interval_s, _alerts(settings)),
        Job("retention", 8, RETENTION_INTERVAL_S, _retention(settings)),
    ]


async def _publish(context: Context) -> bool:
    return (await publish.run_once(context)).changes > 0


async def _drain(context: Context) -> bool:
    done = await drain.run_once(context)
    return done != drain.Drained()


async def _expire(context: Context) -> bool:
    return (await expire.run_once(context)).settled > 0


async def _partitions(context: Context) -> bool:
    return bool(await partitions.run_once(context))


async def _grants(context: Context) -> bool:
    return await grants.run_once(context) != grants.Closed()


async def _reconcile(context: Context) -> bool:
    return bool(await reconcile.run_once(context))


def _alerts(settings: ControlSettings) -> Callable[[Context], Awaitable[bool]]:
    post = alerts.Post.of(settings)

    async def run_once(context: Context) -> bool:
        return await alerts.run_once(context, post) != alerts.Told()

    return run_once


def _retention(settings: ControlSettings) -> Callable[[Context], Awaitable[bool]]:
    async def run_once(context: Context) -> bool:
        return await retention.run_once(context, settings.alert_retention_days) == retention.BATCH

    return run_once


async def run(settings: ControlSettings, stopping: asyncio.Event | None = None) -> None:
    """Run every job until SIGTERM, SIGINT or `stopping`; then finish what is begun, and return.

    Raises WrongInstallation at start if Redis belongs to an installation with other constants. A Redis or Postgres that
    is away is waited for.
    """
    stopping = stopping or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(
            RuntimeError, ValueError
        ):  # not the main thread: whoever runs us there stops us by the event
            loop.add_signal_handler(number, stopping.set)
    redis = connect_redis(settings)
    metrics, health = JobMetrics(), Health()
    try:
        await _check(redis, settings)
        async with listening(settings.jobs_listen, health, metrics):
            await _run_all(settings, redis, metrics, health, stopping)
    finally:
        await redis.aclose()


async def _check(redis: Redis, settings: ControlSettings) -> None:
    try:
        await publish.check_installation(redis, settings.layout)
    except (RedisError, OSError, TimeoutError) as error:
        _log.warning("redis_unreachable_at_start", error=type(error).__name__)


async def _run_all(
    settings: ControlSettings, redis: Redis, metrics: JobMetrics, health: Health, stopping: asyncio.Event
) -> None:
    keepers = [Keeper(job, settings, redis, metrics, health, stopping) for job in jobs(settings)]
    tasks = [asyncio.create_task(keeper.keep(), name=keeper.job.name) for keeper in keepers]
    _log.info("jobs_started", jobs=[keeper.job.name for keeper in keepers])
    try:
        await stopping.wait()
        _, late = await asyncio.wait(tasks, timeout=settings.shutdown_timeout_s)
        for task in late:
            _log.warning("job_cut_off", job=task.get_name())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    _log.info("jobs_stopped")


class Keeper:
    """Keeps one job going."""

    def __init__(
        self,
        job: Job,
        settings: ControlSettings,
        redis: Redis,
        metrics: JobMetrics,
        health: Health,
        stopping: asyncio.Event,
    ) -> None:
        self.job = job
        self._settings = settings
        self._redis = redis
        self._metrics = metrics
        self._health = health
        self._stopping = stopping
        self._failure: str | None = None
        self._retry_s = RETRY_FIRST_S
        health.starting(job.name)

    async def keep(self) -> None:
        """Connect, lead or stand by, and again after whatever ended that."""
        while not self._stopping.is_set():
            try:
                postgres = await connect_postgres(self._settings, self.job.name)
            except Exception as error:  # noqa: BLE001 - logged and counted; the job goes on
                await self._failed(error)
                continue
            try:
                await self._lead(postgres)
            finally:
                self._metrics.leading.labels(self.job.name).set(0)
                with suppress(OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresError):
                    await postgres.close(timeout=self._settings.postgres_timeout_s)

    async def _lead(self, postgres: asyncpg.Connection) -> None:
        """Run the job while this connection lives and has its lock."""
        context = Context(
            postgres, self._redis, self._settings.layout, self._metrics, self._stopping,
            is_well=lambda: self._succeeded("running"),
        )  # fmt: skip
        leads = False
        while not self._stopping.is_set() and not postgres.is_closed():
            try:
                if not leads:
                    leads = await self._try_lock(postgres)
                    self._metrics.leading.labels(self.job.name).set(leads)
                if not leads:
                    self._succeeded("standby")
                    await self._pause(STANDBY_INTERVAL_S)
                    continue
                busy = await self._run(context)
            except Exception as error:  # noqa: BLE001 - logged and counted; the job goes on
                await self._failed(error)
                continue
            self._succeeded("running")
            await self._pause(self.job.busy_interval_s if busy else self.job.interval_s)
        if leads and self.job.at_end and not postgres.is_closed():
            await self._run_last(replace(context, stopping=asyncio.Event()))

    async def _try_lock(self, postgres: asyncpg.Connection) -> bool:
        return bool(
            await postgres.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_SPACE, self.job.number)
        )

    async def _run(self, context: Context) -> bool:
        await context.postgres.fetchval("SELECT 1")  # the connection, and so the lock, is still there
        began = time.monotonic()
        busy = await self.job.run(context)
        self._metrics.duration.labels(self.job.name).observe(time.monotonic() - began)
        self._metrics.runs.labels(self.job.name).inc()
        return busy

    async def _run_last(self, context: Context) -> None:
        try:
            await self._run(context)
        except Exception as error:  # noqa: BLE001 - what it would have done is done by the next start
            _log.warning("job_last_run_failed", job=self.job.name, error=_kind(error))

    async def _failed(self, error: Exception) -> None:
        """Say it once as long as it is the same, and wait: longer each time."""
        self._metrics.failures.labels(self.job.name).inc()
        kind = _kind(error)
        if kind != self._failure:
            _log.error("job_failing", job=self.job.name, error=kind, detail=str(error)[:300])
            self._failure = kind
        self._health.failing(self.job.name, kind)
        await self._pause(self._retry_s)
        self._retry_s = min(RETRY_MAX_S, self._retry_s * 2)

    def _succeeded(self, state: str) -> None:
        if self._failure is not None:
            _log.info("job_recovered", job=self.job.name, after=self._failure)
            self._failure = None
        self._retry_s = RETRY_FIRST_S
        self._health.well(self.job.name, state)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)


def _kind(error: Exception) -> str:
    return type(error).__name__
