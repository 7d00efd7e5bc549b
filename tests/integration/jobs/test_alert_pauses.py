"""Receivers of alerts that fail: they are left alone, ever longer, and lose nothing; an alert that is refused waits alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from control.domain import deliveries
from control.domain.alerts import deliveries_of as told_of
from control.jobs.alerts import Told
from tests.integration.jobs.alert_world import Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import receiving


@pytest.fixture
async def alerted(world: World) -> Alerted:
    return await alerted_in(world)


async def test_a_dead_receiver_loses_none_and_is_asked_ever_more_seldom(alerted: Alerted) -> None:
    async with receiving() as receiver:
        receiver.answer = 500
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in (50, 80, 100)))
        assert await alerted.tell() == Told(fanned_out=3, failed=3)

        for attempt in range(2, 13):
            failing_for = timedelta(seconds=10 * 2.0**attempt)
            await alerted.postgres.execute(
                "UPDATE alert_destinations SET failing_since = now() - $1::interval", failing_for
            )
            assert await alerted.tell() == Told(), "nothing is sent before its time"
            await alerted.let_it_be_due()
            assert await alerted.tell() == Told(failed=1), "a failing one is asked with one alert"
            shown = await alerted.destination(destination)
            assert shown.paused_until is not None
            rests_s = (shown.paused_until - datetime.now(UTC)).total_seconds()
            most_s = deliveries.rest_s(failing_for.total_seconds(), 0)
            assert 0.8 * most_s - 30 <= rests_s <= most_s + 30
        attempts = sorted(row["attempts"] for row in await alerted.deliveries())
        assert attempts == [4, 5, 5], "each of what waits is tried in its turn"
        assert {(row["status"], row["last_error"]) for row in await alerted.deliveries()} == {
            ("pending", "it answered 500")
        }
        assert (await alerted.destination(destination)).pending == 3
        assert alerted.metric("alert_deliveries_pending") == 3

        receiver.answer = 204
        await alerted.let_it_be_due()
        assert (await alerted.tell()).delivered == 3

    ids = sorted(row["id"] for row in await alerted.alerts())
    assert sorted(each.id for each in receiver.taken) == ids
    assert {each.id for each in receiver.refused} == set(ids), "one id at every attempt"
    shown = await alerted.destination(destination)
    assert (shown.failing_since, shown.paused_until, shown.last_error, shown.pending) == (None, None, None, 0)


async def test_when_a_failing_receiver_is_back_all_that_waits_for_it_follows(alerted: Alerted) -> None:
    async with receiving() as receiver:
        receiver.answer = 503
        await alerted.add(url=receiver.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in range(1, 21)))
        for _ in range(5):
            await alerted.tell()
            await alerted.let_it_be_due()
        receiver.answer = 200
        assert await alerted.tell() == Told(delivered=20)


async def test_an_alert_that_is_refused_while_others_are_taken_is_put_off_alone_ever_longer(
    alerted: Alerted,
) -> None:
    async with receiving() as receiver:
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing(1))
        receiver.answer = 400
        await alerted.tell()
        (poison,) = [row["alert"] for row in await alerted.deliveries()]
        for refusals in range(1, 12):
            await alerted.let_it_be_due()
            receiver.answer = 200
            await alerted.postgres.execute(
                "UPDATE alert_deliveries SET next_attempt_at = now() + interval '1 hour' WHERE alert = $1",
                poison,
            )
            await alerted.cross(alerted.crossing(1 + refusals))
            assert (await alerted.tell()).delivered == 1
            await alerted.let_it_be_due()
            receiver.answer = 400
            assert await alerted.tell() == Told(failed=1)

            shown = await alerted.destination(destination)
            assert (shown.failing_since, shown.paused_until) == (None, None), "it is well"
            (row,) = [row for row in await alerted.deliveries() if row["alert"] == poison]
            paused_s = (row["next_attempt_at"] - row["last_attempt_at"]).total_seconds()
            assert deliveries.pause_s(refusals, 1) <= paused_s <= deliveries.pause_s(refusals, 0) + 30


@pytest.mark.parametrize("waiting", [1, 50])
async def test_a_receiver_that_asks_for_time_gets_it_whatever_else_waits_for_it(
    alerted: Alerted, waiting: int
) -> None:
    async with receiving() as receiver:
        receiver.answer, receiver.headers = 429, {"Retry-After": "600"}
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in range(1, waiting + 1)))
        before = datetime.now(UTC)
        for _ in range(3):
            await alerted.tell()
        assert len(receiver.refused) <= deliveries.PER_DESTINATION_MAX, "those that were on their way at once"

        paused_until = (await alerted.destination(destination)).paused_until
        assert paused_until is not None
        assert paused_until - before >= timedelta(seconds=590)
        told = await told_of(alerted.postgres, [row["id"] for row in await alerted.alerts()])
        next_at = {delivery.next_attempt_at for each in told.values() for delivery in each}
        assert next_at == {paused_until}, "what is shown is when it really comes"


async def test_a_success_that_began_before_a_refusal_does_not_end_the_pause_that_was_asked_for(
    alerted: Alerted,
) -> None:
    async with receiving() as receiver:
        receiver.one_at_a_time, receiver.takes_s = 429, 0.2
        receiver.headers = {"Retry-After": "3600"}
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in range(1, 31)))
        for _ in range(3):
            await alerted.tell()
        assert len(receiver.all) == deliveries.PER_DESTINATION_MAX

    paused_until = (await alerted.destination(destination)).paused_until
    assert paused_until is not None
    assert paused_until - datetime.now(UTC) > timedelta(minutes=55)


async def test_a_success_that_began_after_the_failures_ends_the_spell(alerted: Alerted) -> None:
    async with receiving() as receiver:
        receiver.answer, receiver.headers = 503, {"Retry-After": "3600"}
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        await alerted.tell()
        failing_since = (await alerted.destination(destination)).failing_since
        assert failing_since is not None
        for attempted_at, ends in ((failing_since - timedelta(seconds=1), False), (datetime.now(UTC), True)):
            await deliveries.took_something(alerted.postgres, destination.id, attempted_at)
            shown = await alerted.destination(destination)
            assert (shown.failing_since is None, shown.paused_until is None) == (ends, ends)


async def test_failures_of_long_ago_say_nothing_of_a_destination_that_nobody_has_tried_since(
    alerted: Alerted,
) -> None:
    """What waited for it may have been removed, or the jobs were not running."""
    async with receiving() as receiver:
        receiver.answer = 503
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        await alerted.postgres.execute(
            "UPDATE alert_destinations SET failing_since = now() - interval '9 days', failures = 50,"
            " paused_until = now() - interval '8 days'"
        )
        assert await alerted.tell() == Told(fanned_out=1, failed=1)

    shown = await alerted.destination(destination)
    assert shown.is_enabled
    assert shown.failing_since is not None
    assert datetime.now(UTC) - shown.failing_since < timedelta(hours=1)
