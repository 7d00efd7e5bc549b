"""Retention: what ended long ago goes, in small steps; what keeps an alert from being told twice stays."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from control.jobs import retention
from tests.integration.jobs.alert_world import Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import receiving


@pytest.fixture
async def alerted(world: World) -> Alerted:
    return await alerted_in(world)


async def test_alerts_of_windows_that_ended_long_ago_are_removed_and_others_stay(alerted: Alerted) -> None:
    for period, days_ago in (("hourly", 401), ("monthly", 500), ("daily", 399), ("never", 5_000)):
        await alerted.make_alerts(period, 1, period=period, days_ago=days_ago)

    assert await retention.run_once(alerted.world.context, 400) == 2
    assert await retention.run_once(alerted.world.context, 400) == 0
    assert {row["reset_period"] for row in await alerted.alerts()} == {"daily", "never"}


async def test_many_are_removed_in_steps_with_their_deliveries(alerted: Alerted) -> None:
    await alerted.make_alerts("old", 2 * retention.BATCH + 5, days_ago=500)
    async with receiving() as receiver:
        destination = await alerted.add(url=receiver.url)
    await alerted.postgres.execute(
        "INSERT INTO alert_deliveries (alert, destination, status) SELECT id, $1, 'delivered' FROM alerts",
        destination.id,
    )
    with capture_logs() as lines:
        removed = [await retention.run_once(alerted.world.context, 400) for _ in range(4)]

    assert removed == [retention.BATCH, retention.BATCH, 5, 0]
    assert await alerted.deliveries() == []
    assert lines == []


async def test_it_is_said_how_many_were_never_told_to_somebody(alerted: Alerted) -> None:
    await alerted.make_alerts("old", 3, days_ago=500)
    for number in range(2):
        destination = await alerted.add(url=f"http://127.0.0.1:1/{number}")
        await alerted.postgres.execute(
            "INSERT INTO alert_deliveries (alert, destination) SELECT id, $1 FROM alerts ORDER BY id LIMIT 2",
            destination.id,
        )
    with capture_logs() as lines:
        assert await retention.run_once(alerted.world.context, 400) == 3
    assert lines == [{"event": "alerts_removed_untold", "log_level": "warning", "count": 2, "days": 400}]
