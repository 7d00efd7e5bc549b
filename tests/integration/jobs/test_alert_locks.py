"""Alerts beside everything else that locks destinations and their deliveries: nobody waits for each other in a circle, and who
finds a row locked loses nothing of what is under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from control.domain import deliveries, destinations
from control.jobs import retention
from control.jobs.alerts import Told
from control.jobs.context import Context
from tests.integration.jobs.alert_world import SEALING, Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import receiving

ROUNDS = 40


@pytest.fixture
async def alerted(world: World) -> Alerted:
    return await alerted_in(world)


@pytest.fixture
async def others(migrated_dsn: str) -> AsyncIterator[list[asyncpg.Connection]]:
    connections = [await asyncpg.connect(migrated_dsn) for _ in range(4)]
    yield connections
    for connection in connections:
        await connection.close()


async def test_whatever_changes_many_deliveries_at_once_nothing_ends_in_a_deadlock(
    alerted: Alerted, others: list[asyncpg.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "TEST_PAUSE_S", 0)
    chance = random.Random(7)
    found = [await alerted.add(url=f"http://127.0.0.1:1/{number}") for number in range(12)]
    for _ in range(50):  # so that rows do not lie in any order
        await alerted.postgres.execute(
            "UPDATE alert_destinations SET name = name WHERE id = $1", chance.choice(found).id
        )
    await alerted.make_alerts("old", ROUNDS * 100, days_ago=500)
    await alerted.postgres.execute(
        "INSERT INTO alert_deliveries (alert, destination) SELECT a.id, t.id FROM alerts a, alert_destinations t"
        " ORDER BY random()"
    )
    monkeypatch.setattr(retention, "BATCH", 100)
    testing, switching, removing, fanning = others

    async def test(_: int) -> None:
        async with testing.transaction():
            tested, at = await destinations.for_test(testing, alerted.tag, chance.choice(found).id)
        await deliveries.took_something(testing, tested[0].id, at)

    async def switch(number: int) -> None:
        async with switching.transaction():
            of = found[number % len(found)].id
            await destinations.amend(switching, alerted.tag, of, {"enabled": chance.random() < 0.5}, SEALING)

    async def remove(_: int) -> None:
        await retention.run_once(Context(removing, alerted.world.redis, alerted.world.layout), 400)

    async def fan_out(number: int) -> None:
        await alerted.make_alerts(f"new{number}-", 5, fanned_out=False)
        await deliveries.fan_out(fanning)

    async def often(what: Callable[[int], Awaitable[None]]) -> None:
        for number in range(ROUNDS):
            await what(number)

    await asyncio.gather(*(often(what) for what in (test, switch, remove, fan_out)))
    assert await alerted.postgres.fetchval("SELECT count(*) FROM alerts WHERE fanned_out_at IS NULL") == 0
    assert await alerted.postgres.fetchval("SELECT count(*) FROM alerts") == 5 * ROUNDS


async def test_what_a_receiver_took_is_written_down_though_its_row_was_locked_for_long(
    alerted: Alerted, others: list[asyncpg.Connection]
) -> None:
    other = others[0]
    await alerted.postgres.execute("SET lock_timeout = '300ms'")
    async with receiving() as receiver:
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        assert await deliveries.fan_out(alerted.postgres) == 1
        async with other.transaction():
            await other.execute("SELECT FROM alert_destinations WHERE id = $1 FOR UPDATE", destination.id)
            telling = asyncio.create_task(alerted.tell())
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not telling.done()
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.4)  # longer than the job waits for a lock
        assert await telling == Told(delivered=1)
    assert len(receiver.taken) == 1
