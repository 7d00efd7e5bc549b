"""Periods as Redis counts them: where windows begin and end, by the calendar in UTC, to the millisecond."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from control.embedded import EmbeddedRedis
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.periods import PERIODS, Period, window_at
from gateway.contract.records import Budget, Hold
from tests.contract.desk import Desk, rules_of, workload

BUILDER = workload()
HOUR_MS = 3_600_000

every_level = pytest.mark.parametrize("level", LEVELS)


def ms(text: str) -> int:
    """Of a moment in UTC, as in 2024-02-29 12:00."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000)


def limited(limit: int | None, period: Period = "never", billing_day: int = 1, since_ms: int = 0) -> Budget:
    return Budget(None if limit is None else Microcredits(limit), period, billing_day, since_ms)


WINDOWS: list[tuple[Period, int, str, str, str]] = [
    # period, billing day, any moment in the window, its start, its end
    ("hourly", 1, "2024-03-15 12:34", "2024-03-15 12:00", "2024-03-15 13:00"),
    ("hourly", 1, "2023-12-31 23:59", "2023-12-31 23:00", "2024-01-01 00:00"),
    ("daily", 1, "2024-03-15 12:00", "2024-03-15 00:00", "2024-03-16 00:00"),
    ("daily", 1, "2024-02-28 23:59", "2024-02-28 00:00", "2024-02-29 00:00"),
    ("daily", 1, "2024-02-29 00:00", "2024-02-29 00:00", "2024-03-01 00:00"),
    ("daily", 1, "2023-02-28 12:00", "2023-02-28 00:00", "2023-03-01 00:00"),
    ("daily", 1, "2023-12-31 12:00", "2023-12-31 00:00", "2024-01-01 00:00"),
    ("weekly", 1, "2024-03-15 12:00", "2024-03-11 00:00", "2024-03-18 00:00"),
    ("weekly", 1, "2024-03-17 23:59", "2024-03-11 00:00", "2024-03-18 00:00"),
    ("weekly", 1, "2024-03-18 00:00", "2024-03-18 00:00", "2024-03-25 00:00"),
    ("weekly", 1, "2025-01-01 00:00", "2024-12-30 00:00", "2025-01-06 00:00"),
    ("weekly", 1, "2024-02-29 12:00", "2024-02-26 00:00", "2024-03-04 00:00"),
    ("monthly", 1, "2024-03-15 12:00", "2024-03-01 00:00", "2024-04-01 00:00"),
    ("monthly", 1, "2023-12-31 23:59", "2023-12-01 00:00", "2024-01-01 00:00"),
    ("monthly", 15, "2024-12-31 23:59", "2024-12-15 00:00", "2025-01-15 00:00"),
    ("monthly", 15, "2025-01-14 23:59", "2024-12-15 00:00", "2025-01-15 00:00"),
    ("monthly", 31, "2024-02-15 12:00", "2024-01-31 00:00", "2024-02-29 00:00"),
    ("monthly", 31, "2024-02-29 00:00", "2024-02-29 00:00", "2024-03-31 00:00"),
    ("monthly", 31, "2023-02-15 12:00", "2023-01-31 00:00", "2023-02-28 00:00"),
    ("monthly", 31, "2023-02-28 00:00", "2023-02-28 00:00", "2023-03-31 00:00"),
    ("monthly", 31, "2024-04-30 00:00", "2024-04-30 00:00", "2024-05-31 00:00"),
    ("monthly", 30, "2023-02-28 12:00", "2023-02-28 00:00", "2023-03-30 00:00"),
    ("monthly", 29, "2023-02-28 12:00", "2023-02-28 00:00", "2023-03-29 00:00"),
    ("monthly", 29, "2024-02-28 12:00", "2024-01-29 00:00", "2024-02-29 00:00"),
    ("monthly", 31, "2100-02-28 12:00", "2100-02-28 00:00", "2100-03-31 00:00"),
    ("monthly", 31, "2000-02-29 12:00", "2000-02-29 00:00", "2000-03-31 00:00"),
]


@every_level
@pytest.mark.parametrize(("period", "billing_day", "moment", "start", "end"), WINDOWS)
def test_a_window_begins_and_ends_at_the_very_millisecond(
    clocked: Desk, level: Level, period: Period, billing_day: int, moment: str, start: str, end: str
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, period, billing_day)})
    place = LEVELS.index(level)
    clocked.set_time(ms(start) - 1, 999)
    before = Hold.unpack(clocked.admitted(BUILDER, 100).encode())
    assert before.windows[place] < ms(start)
    for at_ms in (ms(start), ms(moment)):
        clocked.set_time(at_ms)
        hold = Hold.unpack(clocked.admitted(BUILDER, 50, request=f"r{at_ms}").encode())
        assert hold.windows[place] == ms(start)
        if at_ms == ms(moment) == ms(start):
            break
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 0, request="free") if ms(moment) == ms(start) and False else "", 0)
    clocked.set_time(ms(end) - 1, 999)
    assert clocked.admit(BUILDER, 101, request="late") == [
        "budget", level, 100, 0, clocked.counters(BUILDER, level)[1], ms(end),
    ]  # fmt: skip
    clocked.set_time(ms(end))
    fresh = Hold.unpack(clocked.admitted(BUILDER, 100, request="fresh").encode())
    assert fresh.windows[place] == ms(end)
    assert clocked.counters(BUILDER, level) == (0, 100)
