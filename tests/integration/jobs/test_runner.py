"""The runner against real servers: each job in one process at a time, through outages, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs
from structlog.typing import EventDict

from control.embedded import EmbeddedPostgres, EmbeddedRedis
from control.jobs import publish, runner
from control.jobs.context import Context
from control.jobs.listener import Health
from control.jobs.metrics import JobMetrics
from control.jobs.runner import Job, Keeper
from control.migrate import migrate
from control.settings import ControlSettings
from gateway.contract.layout import META, Layout
from tests.integration.jobs.world import World

PEPPER = "ab" * 16
BOUND_S = 20.0


def _settings(dsn: str, url: str, **other: Any) -> ControlSettings:
    fields: dict[str, Any] = {"drain_interval_s": 0.1, "expire_interval_s": 0.1, "publish_interval_s": 0.1}
    return ControlSettings(
        postgres_dsn=SecretStr(dsn), redis_url=SecretStr(url), pepper=SecretStr(PEPPER), **fields, **other
    )


async def _until(is_so: Callable[[], Awaitable[bool]]) -> None:
    give_up_at = time.monotonic() + BOUND_S
    while not await is_so():
        assert time.monotonic() < give_up_at, "did not happen in time"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def _running(settings: ControlSettings) -> AsyncIterator[asyncio.Task[None]]:
    stopping = asyncio.Event()
    task = asyncio.create_task(runner.run(settings, stopping))
    try:
        yield task
    finally:
        stopping.set()
        await asyncio.wait_for(task, BOUND_S)


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EventDict]]:
    """What the runner logs; by a logger of its own, since a configured one may have been bound for good before."""
    monkeypatch.setattr(runner, "_log", structlog.get_logger())
    with capture_logs() as entries:
        yield entries


@dataclass
class Watched:
    """A job that notices when it runs twice at once."""

    inside: int = 0
    most: int = 0
    runs: int = 0
    failing: list[Exception] = field(default_factory=list)

    async def run(self, context: Context) -> bool:
        if self.failing:
            raise self.failing.pop(0)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(0.01)
            self.runs += 1
        finally:
            self.inside -= 1
        return True

    def keeper(
        self, settings: ControlSettings, redis: Redis, stopping: asyncio.Event, health: Health | None = None
    ) -> Keeper:
        job = Job("watched", 99, 0.01, self.run, busy_interval_s=0.01)
        return Keeper(job, settings, redis, JobMetrics(), health or Health(), stopping)


async def test_two_runners_never_run_one_job_at_once_and_one_takes_over(
    migrated_dsn: str, redis_url: str, redis_client: Redis
) -> None:
    settings, watched = _settings(migrated_dsn, redis_url), Watched()
    stops = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(watched.keeper(settings, redis_client, stop).keep()) for stop in stops]
    async with _backends(migrated_dsn) as observer:

        async def all_connected() -> bool:
            return bool(await observer.fetchval(_COUNT) == 3)

        await _until(all_connected)
        leaders = set()
        for stop, _ in zip(stops, tasks, strict=True):
            leader = await _leader(observer)
            leaders.add(leader)
            runs = watched.runs
            await _until(lambda seen=runs: _is(watched.runs > seen + 3))  # type: ignore[misc]
            # Its connection is lost, and with it the lock: another one, or itself anew, goes on.
            await observer.execute("SELECT pg_terminate_backend($1)", leader)
            await _until(lambda seen=leader: _other_leader(observer, seen))  # type: ignore[misc]
            assert not stop.is_set()
        for stop in stops:
            stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), BOUND_S)
    assert watched.most == 1
    assert len(leaders) == 3


_COUNT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tollkeeper-watched' AND datname = current_database()"
_LEADER = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 99 AND granted"


@asynccontextmanager
async def _backends(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    observer = await asyncpg.connect(dsn)
    try:
        yield observer
    finally:
        await observer.close()


async def _leader(observer: asyncpg.Connection) -> int:
    pids: list[int] = []

    async def has_one() -> bool:
        pids[:] = [row["pid"] for row in await observer.fetch(_LEADER)]
        return len(pids) == 1

    await _until(has_one)
    return pids[0]


async def _other_leader(observer: asyncpg.Connection, than: int) -> bool:
    return [row["pid"] for row in await observer.fetch(_LEADER)] not in ([], [than])


async def _is(truth: bool) -> bool:
    return truth


async def test_a_failing_job_says_so_once_and_goes_on(
    migrated_dsn: str,
    redis_url: str,
    redis_client: Redis,
    logs: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(runner, "RETRY_MAX_S", 0.01)
    watched = Watched(failing=[*(ValueError("no") for _ in range(5)), KeyError("other"), KeyError("other")])
    stopping, health = asyncio.Event(), Health()
    keeper = watched.keeper(_settings(migrated_dsn, redis_url), redis_client, stopping, health)
    task = asyncio.create_task(keeper.keep())
    assert health.states == {"watched": "starting"}
    await _until(lambda: _is(watched.runs > 2))
    assert health.is_ready
    stopping.set()
    await asyncio.wait_for(task, BOUND_S)
    told = [(entry["event"], entry.get("error")) for entry in logs]
    assert told == [("job_failing", "ValueError"), ("job_failing", "KeyError"), ("job_recovered", None)]


async def test_everything_runs_by_itself(world: World, migrated_dsn: str, redis_url: str) -> None:
    workload = await world.add_workload()
    async with _running(_settings(migrated_dsn, redis_url)):
        await _until(lambda: world.redis.hexists(META, "epoch"))
        await world.request(workload, 21)
        await world.admit(workload, 4, ttl_ms=1)  # nobody settles it

        async def both_are_rows() -> bool:
            return sorted(row["cost"] for row in await world.ledger()) == [4, 21]

        await _until(both_are_rows)
    days = await world.postgres.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'usage_events'::regclass"
    )
    assert days == 10


async def test_what_came_before_the_end_is_drained_and_a_stopped_runner_leaves_no_lock(
    world: World, migrated_dsn: str, redis_url: str
) -> None:
    workload = await world.add_workload()
    await publish.run_once(world.context)
    settings = _settings(migrated_dsn, redis_url)
    slow = settings.model_copy(update={"drain_interval_s": 3600.0})
    async with _running(slow):

        async def drain_leads() -> bool:
            return bool(
                await world.postgres.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 2"
                )
            )

        await _until(drain_leads)
        await world.request(workload, 21)
    assert len(await world.ledger()) == 1
    assert await world.postgres.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


async def test_sigterm_finishes_and_exits_0(world: World, migrated_dsn: str, redis_url: str) -> None:
    workload = await world.add_workload()
    code = (
        "import asyncio; from control.jobs import runner; from control.settings import load_settings; "
        "asyncio.run(runner.run(load_settings()))"
    )
    environment = {
        **os.environ, "TOLLKEEPER_POSTGRES_DSN": migrated_dsn, "TOLLKEEPER_REDIS_URL": redis_url,
        "TOLLKEEPER_PEPPER": PEPPER,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
    try:
        await _until(lambda: world.redis.hexists(META, "epoch"))
        for cost in range(50):
            await world.request(workload, cost)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), BOUND_S) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert len(await world.ledger()) == 50
    assert await world.undrained() == 0


async def test_an_outage_of_postgres_is_waited_for_and_nothing_is_lost(
    world: World,
    own_postgres: EmbeddedPostgres,
    redis_url: str,
    logs: list[EventDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "RETRY_MAX_S", 0.5)
    await migrate(own_postgres.dsn)
    postgres = await asyncpg.connect(own_postgres.dsn)
    outside = World(Context(postgres, world.redis, Layout()))
    workload = await outside.add_workload()
    async with _running(_settings(own_postgres.dsn, redis_url)):
        await _until(lambda: world.redis.hexists(META, "epoch"))
        await outside.request(workload, 1)
        await own_postgres.kill()
        for cost in range(2, 40):
            await outside.request(workload, cost)  # no request notices
        await own_postgres.start()
        postgres = await asyncpg.connect(own_postgres.dsn)

        async def everything_is_a_row() -> bool:
            return bool(await postgres.fetchval("SELECT sum(cost) = 780 AND count(*) = 39 FROM usage_events"))

        await _until(everything_is_a_row)
    failures = [entry for entry in logs if entry["event"] == "job_failing" and entry["job"] == "drain"]
    assert len(failures) <= 4, "said once a kind of failure, not once a try"
    await postgres.close()


async def test_redis_away_at_start_is_waited_for(
    world: World, migrated_dsn: str, own_redis: EmbeddedRedis, logs: list[EventDict]
) -> None:
    await world.add_workload()
    url = own_redis.url
    await own_redis.stop()
    async with _running(_settings(migrated_dsn, url)):

        async def said_so() -> bool:
            return any(entry["event"] == "job_failing" for entry in logs)

        await _until(said_so)
        await own_redis.start()
        redis = Redis.from_url(url)
        await _until(lambda: redis.hexists(META, "epoch"))
        await redis.aclose()


async def test_a_wrong_installation_is_refused_at_start(
    migrated_dsn: str, redis_url: str, redis_client: Redis
) -> None:
    await redis_client.hset(META, mapping={"schema": 1, "shards": 7, "epoch": "x"})
    with pytest.raises(publish.WrongInstallation):
        await asyncio.wait_for(runner.run(_settings(migrated_dsn, redis_url)), BOUND_S)


async def test_probes_and_metrics_are_served_where_asked(migrated_dsn: str, redis_url: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    async with (
        _running(_settings(migrated_dsn, redis_url, jobs_listen=f"127.0.0.1:{port}")),
        aiohttp.ClientSession() as session,
    ):

        async def ready() -> bool:
            try:
                async with session.get(f"{base}/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await _until(ready)
        async with session.get(f"{base}/livez") as answer:
            assert answer.status == 200
        async with session.get(f"{base}/metrics") as answer:
            text = await answer.text()
    for name in ("tollkeeper_job_runs_total", "tollkeeper_drained_events_total", "tollkeeper_backlog_events"):
        assert name in text
