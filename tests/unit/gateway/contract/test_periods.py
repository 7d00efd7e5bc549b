"""Windows of a budget, against a model that knows nothing but the calendar and walks it one step at a time."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.periods import NEVER_ENDS_MS, PERIODS, Period, Window, window_at

INSTANTS = st.integers(31 * 24, 1_148_000).flatmap(
    lambda hour: st.integers(0, 3_599_999).map(
        lambda ms: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=hour, milliseconds=ms)
    )
)
"""February 1970 to December 2100, whole milliseconds."""
BILLING_DAYS = st.integers(1, 31)


def _ms(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _at(text: str) -> int:
    return _ms(datetime.fromisoformat(text).replace(tzinfo=UTC))


def _starts_window(at: datetime, period: Period, billing_day: int) -> bool:
    """Whether a window of this period starts at `at`, a full hour."""
    if period == "hourly":
        return True
    if at.hour:
        return False
    if period == "daily":
        return True
    if period == "weekly":
        return at.strftime("%a") == "Mon"
    is_last_of_month = (at + timedelta(days=1)).month != at.month
    return at.day == billing_day or (is_last_of_month and at.day < billing_day)


def _walked_window(at: datetime, period: Period, billing_day: int) -> Window:
    step = timedelta(hours=1) if period == "hourly" else timedelta(days=1)
    start = at.replace(minute=0, second=0, microsecond=0)
    if period != "hourly":
        start = start.replace(hour=0)
    while not _starts_window(start, period, billing_day):
        start -= step
    end = start + step
    while not _starts_window(end, period, billing_day):
        end += step
    return Window(_ms(start), _ms(end))


@given(INSTANTS, st.sampled_from([period for period in PERIODS if period != "never"]), BILLING_DAYS)
def test_a_window_is_the_one_that_walking_the_calendar_finds(
    at: datetime, period: Period, billing_day: int
) -> None:
    assert window_at(period, _ms(at), billing_day=billing_day) == _walked_window(at, period, billing_day)


@given(INSTANTS, st.sampled_from(PERIODS), BILLING_DAYS)
def test_windows_hold_their_instant_and_follow_one_another_without_gap(
    at: datetime, period: Period, billing_day: int
) -> None:
    window = window_at(period, _ms(at), billing_day=billing_day)
    assert window.start_ms <= _ms(at) < window.end_ms
    assert window_at(period, window.start_ms, billing_day=billing_day) == window
    assert window_at(period, window.end_ms - 1, billing_day=billing_day).start_ms == window.start_ms
    if period != "never":
        assert window_at(period, window.end_ms, billing_day=billing_day).start_ms == window.end_ms


@given(INSTANTS, st.sampled_from(PERIODS), BILLING_DAYS, st.integers(0, 2**42))
def test_since_moves_only_a_start_that_lies_before_it(
    at: datetime, period: Period, billing_day: int, ago_ms: int
) -> None:
    since_ms = max(0, _ms(at) - ago_ms)
    without = window_at(period, _ms(at), billing_day=billing_day)
    window = window_at(period, _ms(at), billing_day=billing_day, since_ms=since_ms)
    assert window == Window(max(without.start_ms, since_ms), without.end_ms)
    assert window.start_ms <= _ms(at)


def test_never_is_one_window_without_an_end() -> None:
    window = window_at("never", _at("2030-05-05"))
    assert window == Window(0, NEVER_ENDS_MS)
    assert window.resets_at is None
    assert window_at("never", _at("2030-05-05"), since_ms=_at("2029-01-01")).start_ms == _at("2029-01-01")


def test_weeks_start_on_monday_midnight_utc() -> None:
    assert window_at("weekly", _at("2024-12-31T12:00")) == Window(_at("2024-12-30"), _at("2025-01-06"))
    assert window_at("weekly", _at("2024-12-29T23:59:59.999")).end_ms == _at("2024-12-30")


@pytest.mark.parametrize(
    ("at", "billing_day", "start", "end"),
    [
        ("2024-02-29T12:00", 1, "2024-02-01", "2024-03-01"),
        ("2023-02-27T23:59:59.999", 31, "2023-01-31", "2023-02-28"),
        ("2023-02-28T00:00", 31, "2023-02-28", "2023-03-31"),
        ("2024-02-28T23:59:59.999", 31, "2024-01-31", "2024-02-29"),
        ("2024-02-29T00:00", 31, "2024-02-29", "2024-03-31"),
        ("2024-02-29T00:00", 29, "2024-02-29", "2024-03-29"),
        ("2023-03-01T00:00", 29, "2023-02-28", "2023-03-29"),
        ("2023-04-30T00:00", 31, "2023-04-30", "2023-05-31"),
        ("2024-01-10T00:00", 15, "2023-12-15", "2024-01-15"),
        ("2023-12-31T23:59:59.999", 15, "2023-12-15", "2024-01-15"),
        ("2023-12-31T23:59:59.999", 31, "2023-12-31", "2024-01-31"),
        ("2100-02-28T01:00", 30, "2100-02-28", "2100-03-30"),  # 2100 is not a leap year
        ("2000-02-29T01:00", 30, "2000-02-29", "2000-03-30"),  # 2000 was one
    ],
)
def test_months_start_on_the_billing_day_or_on_the_last_day_of_a_shorter_month(
    at: str, billing_day: int, start: str, end: str
) -> None:
    assert window_at("monthly", _at(at), billing_day=billing_day) == Window(_at(start), _at(end))


def test_a_billing_day_of_31_gives_twelve_windows_a_year_each_one_a_month_end() -> None:
    at, starts = _at("2023-01-31"), []
    while at < _at("2024-01-31"):
        starts.append(datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%d"))
        at = window_at("monthly", at, billing_day=31).end_ms
    assert starts == [
        "01-31", "02-28", "03-31", "04-30", "05-31", "06-30", "07-31", "08-31", "09-30", "10-31", "11-30", "12-31",
    ]  # fmt: skip


def test_an_hour_and_a_day_end_one_millisecond_after_their_last() -> None:
    assert window_at("hourly", _at("2024-03-31T01:59:59.999")) == Window(
        _at("2024-03-31T01:00"), _at("2024-03-31T02:00")
    )
    assert window_at("daily", _at("2024-12-31T23:59:59.999")) == Window(_at("2024-12-31"), _at("2025-01-01"))


def test_resets_at_is_the_end_of_the_window_in_utc() -> None:
    assert window_at("monthly", _at("2024-02-10")).resets_at == datetime(2024, 3, 1, tzinfo=UTC)
