"""Windows of a budget: when one run of a period starts and ends, in UTC. Pure; the clock comes in as an argument.

`scripts/window.lua` computes the same inside Redis, where windows are rolled; a property test holds the two together.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal

Period = Literal["never", "hourly", "daily", "weekly", "monthly"]
PERIODS: Final[tuple[Period, ...]] = ("never", "hourly", "daily", "weekly", "monthly")

NEVER_ENDS_MS: Final = 9_007_199_254_740_991
"""End of a window that has none: 2^53 - 1, the largest whole number that Lua holds exactly."""

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 86_400_000
_EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Window:
    """[start_ms, end_ms) in milliseconds since 1970 UTC; end_ms is NEVER_ENDS_MS where the period never ends."""

    start_ms: int
    end_ms: int

    @property
    def resets_at(self) -> datetime | None:
        """When the next window begins; None if never."""
        return None if self.end_ms == NEVER_ENDS_MS else datetime.fromtimestamp(self.end_ms / 1000, UTC)


def window_at(period: Period, at_ms: int, *, billing_day: int = 1, since_ms: int = 0) -> Window:
    """The window that holds `at_ms`.

    `billing_day` (1 to 31) starts the months and is clipped to the last day of short ones. `since_ms` is when the period
    was last set: a window never starts before it, so changing the period starts a fresh one.
    """
    start_ms, end_ms = _calendar_window(period, at_ms, billing_day)
    return Window(max(start_ms, since_ms), end_ms)


def _calendar_window(period: Period, at_ms: int, billing_day: int) -> tuple[int, int]:
    if period == "never":
        return 0, NEVER_ENDS_MS
    if period == "hourly":
        start_ms = at_ms - at_ms % _HOUR_MS
        return start_ms, start_ms + _HOUR_MS
    day = _EPOCH + timedelta(days=at_ms // _DAY_MS)
    if period == "daily":
        return _midnight_ms(day), _midnight_ms(day) + _DAY_MS
    if period == "weekly":
        monday = day - timedelta(days=day.weekday())
        return _midnight_ms(monday), _midnight_ms(monday) + 7 * _DAY_MS
    return _month(day, billing_day)


def _month(day: date, billing_day: int) -> tuple[int, int]:
    this = _anchor(day.year, day.month, billing_day)
    if day >= this:
        return _midnight_ms(this), _midnight_ms(_anchor(*_next_month(day.year, day.month), billing_day))
    return _midnight_ms(_anchor(*_previous_month(day.year, day.month), billing_day)), _midnight_ms(this)


def _anchor(year: int, month: int, billing_day: int) -> date:
    return date(year, month, min(billing_day, calendar.monthrange(year, month)[1]))


def _next_month(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)


def _previous_month(year: int, month: int) -> tuple[int, int]:
    return (year - 1, 12) if month == 1 else (year, month - 1)


def _midnight_ms(day: date) -> int:
    return (day - _EPOCH).days * _DAY_MS
