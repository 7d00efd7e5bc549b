"""Alerts told by whole processes: two beside each other tell once, and one that is killed leaves nothing lost or doubled."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gateway.contract.layout import META
from tests.integration.jobs.alert_world import Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import BOUND_S, receiving, until

_CODE = (
    "import asyncio; from control.jobs import runner; from control.settings import load_settings; "
    "asyncio.run(runner.run(load_settings()))"
)
_IS_LED = """
SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                WHERE l.locktype = 'advisory' AND l.objid = 7 AND l.granted AND a.datname = current_database())
"""


@asynccontextmanager
async def _jobs(dsn: str, redis_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `jobs` process, ended in the end."""
    environment = {
        **os.environ, "TOLLKEEPER_POSTGRES_DSN": dsn, "TOLLKEEPER_REDIS_URL": redis_url, "TOLLKEEPER_PEPPER": "ab" * 16,
        "TOLLKEEPER_ALERTS_INTERVAL_S": "0.1", "TOLLKEEPER_DRAIN_INTERVAL_S": "0.1", "TOLLKEEPER_LOG_LEVEL": "warning",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _CODE, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), BOUND_S)
            except TimeoutError:
                process.kill()
                await process.wait()
                raise


async def _wait_for(is_so: Callable[[], Awaitable[Any]]) -> None:
    give_up_at = time.monotonic() + BOUND_S
    while not await is_so():
        assert time.monotonic() < give_up_at, "did not happen in time"
        await asyncio.sleep(0.05)


async def _delivered(conn: asyncpg.Connection, destination: str) -> int:
    return int(
        await conn.fetchval(
            "SELECT count(*) FROM alert_deliveries WHERE status = 'delivered' AND destination = $1",
            destination,
        )
    )


@pytest.fixture
async def alerted(world: World) -> Alerted:
    return await alerted_in(world)


async def test_two_processes_tell_each_alert_once_though_its_event_comes_twice(
    alerted: Alerted, migrated_dsn: str, redis_url: str
) -> None:
    world = alerted.world
    async with receiving() as receiver:
        for number in range(3):
            await alerted.add(url=f"{receiver.url}?{number}")
        async with _jobs(migrated_dsn, redis_url), _jobs(migrated_dsn, redis_url):
            await _wait_for(lambda: world.redis.hexists(META, "epoch"))
            for threshold in range(1, 21):
                for _ in range(2):
                    await world.append(alerted.workload, alerted.crossing(threshold).encode())
            await until(lambda: len(receiver.taken) >= 60)
            # Whatever was to come a second time would be told before this one.
            await world.append(alerted.workload, alerted.crossing(100).encode())
            await until(lambda: len(receiver.taken) >= 63)

    told = Counter(each.id for each in receiver.taken)
    assert len(told) == 21
    assert set(told.values()) == {3}
    assert (
        await world.postgres.fetchval("SELECT count(*) FROM alert_deliveries WHERE status = 'delivered'")
        == 63
    )


async def test_a_killed_process_loses_none_and_its_successor_doubles_none_that_was_written_down(
    alerted: Alerted, migrated_dsn: str, redis_url: str
) -> None:
    postgres = alerted.postgres
    async with receiving() as receiver, receiving() as hanging:
        hanging.answer = "hang"
        well, stuck = await alerted.add(url=receiver.url), await alerted.add(url=hanging.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in range(1, 11)))

        async def all_well() -> bool:
            return await _delivered(postgres, well.id) == 10

        async def all_stuck() -> bool:
            return await _delivered(postgres, stuck.id) == 10

        async with _jobs(migrated_dsn, redis_url) as killed:
            await _wait_for(all_well)
            await until(lambda: hanging.inside > 0)
            killed.send_signal(signal.SIGKILL)
            await asyncio.wait_for(killed.wait(), BOUND_S)
        on_their_way = {each.id for each in hanging.refused}
        hanging.answer = 200
        async with _jobs(migrated_dsn, redis_url):
            await _wait_for(lambda: postgres.fetchval(_IS_LED))
            await postgres.execute(
                "UPDATE alert_deliveries SET leased_until = now() WHERE leased_until IS NOT NULL"
            )
            await _wait_for(all_stuck)

    assert set(Counter(each.id for each in receiver.taken).values()) == {1}
    assert set(Counter(each.id for each in hanging.taken).values()) == {1}
    assert len(receiver.taken) == len(hanging.taken) == 10
    assert on_their_way
    assert on_their_way <= {each.id for each in hanging.taken}, "sent again, under the same id"
