"""Alerts and windows: what one window has spent is told of in that window, and held against no other's limit."""

import pytest

from gateway.contract.ids import Level
from gateway.contract.records import Budget
from tests.contract.alert_desk import BUILDER, HOUR_MS, NOW_MS, change, every_level, limited, spend, told
from tests.contract.desk import Desk


@every_level
def test_a_new_window_arms_its_thresholds_again(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "hourly")})
    for hour in range(3):
        clocked.set_time(NOW_MS + hour * HOUR_MS)
        spend(clocked, 85)
    found = [(alert.window_ms, alert.threshold) for alert in clocked.alerts(BUILDER)]
    assert found == [(NOW_MS + hour * HOUR_MS, 80) for hour in range(3)]


def test_a_clock_that_steps_back_into_an_ended_window_tells_nothing_again(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "hourly"))
    spend(clocked, 85)
    clocked.set_time(NOW_MS + HOUR_MS)
    spend(clocked, 85)
    clocked.set_time(NOW_MS + HOUR_MS - 1)
    spend(clocked, 1)
    assert told(clocked) == [80, 80]


def test_a_hold_of_an_ended_window_crosses_nothing_in_the_new_one(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "hourly"))
    old = clocked.admitted(BUILDER, 90)
    clocked.set_time(NOW_MS + HOUR_MS)
    spend(clocked, 10)
    clocked.settle(BUILDER, old, 90)
    assert told(clocked) == []


def test_a_hold_that_settles_before_anybody_opens_the_new_window_crosses_in_its_own(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "hourly"))
    old = clocked.admitted(BUILDER, 90)
    clocked.set_time(NOW_MS + HOUR_MS + 1)
    clocked.settle(BUILDER, old, 90)
    assert [(alert.window_ms, alert.threshold) for alert in clocked.alerts(BUILDER)] == [(NOW_MS, 80)]


def test_a_period_that_starts_afresh_arms_its_thresholds_again(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100, "monthly"))
    spend(clocked, 85)
    change(clocked, "key", limited(100, "daily", since_ms=NOW_MS))
    spend(clocked, 85)
    assert [alert.threshold for alert in clocked.alerts(BUILDER)] == [80, 80]
    assert clocked.alerts(BUILDER)[1].window_ms == NOW_MS


every_fresh_window = pytest.mark.parametrize(
    ("fresh", "is_by_time"),
    [
        (limited(100, "hourly", since_ms=NOW_MS + 1_000), False),
        (limited(0, "never", since_ms=NOW_MS + 1_000), False),
        (limited(100, "monthly"), True),
    ],
    ids=["another period", "prepaid, and nothing granted yet", "ended by time"],
)


@every_level
@every_fresh_window
def test_what_an_old_window_has_spent_is_not_held_against_the_limit_of_a_fresh_one(
    clocked: Desk, level: Level, fresh: Budget, is_by_time: bool
) -> None:
    """Requests that were in flight at the change end in the old window, and nobody has opened the new one yet."""
    clocked.publish_all(BUILDER, **{level: limited(1_000, "monthly")})
    spend(clocked, 500)
    in_flight = [clocked.admitted(BUILDER, request=f"in flight {number}") for number in range(3)]
    clocked.set_time(NOW_MS + (40 * 24 * HOUR_MS if is_by_time else 1_000))
    change(clocked, level, fresh)
    for number, hold in enumerate(in_flight):
        clocked.settle(BUILDER, hold, 1)
        change(clocked, level, fresh, version=3 + number)
    assert told(clocked) == []


@every_level
def test_a_fresh_window_is_told_of_as_soon_as_somebody_is_admitted_to_it(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(1_000, "monthly")})
    spend(clocked, 900)
    clocked.set_time(NOW_MS + 1_000)
    change(clocked, level, limited(100, "hourly", since_ms=NOW_MS + 1_000))
    spend(clocked, 80)
    found = [(alert.window_ms, alert.threshold, alert.limit) for alert in clocked.alerts(BUILDER)]
    assert found[1:] == [(NOW_MS + 1_000, 80, 100)]


def test_an_old_window_lowers_nothing_of_what_was_told_in_it(clocked: Desk) -> None:
    """A change back, before anybody was admitted in between, finds the window as it was."""
    clocked.publish_all(BUILDER, key=limited(100, "daily"))
    spend(clocked, 85)
    running = clocked.admitted(BUILDER)
    change(clocked, "key", limited(1_000_000, "hourly", since_ms=NOW_MS))
    change(clocked, "key", limited(100, "daily"), version=3)
    clocked.settle(BUILDER, running, 1)
    assert told(clocked) == [80]


@every_level
def test_a_clock_that_steps_back_into_the_window_after_a_change_of_rules_silences_nothing(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "hourly")})
    clocked.admitted(BUILDER)
    clocked.set_time(NOW_MS + HOUR_MS)
    change(clocked, level, limited(50, "hourly"))
    clocked.set_time(NOW_MS + HOUR_MS - 1)
    spend(clocked, 40)
    assert told(clocked) == [80]
