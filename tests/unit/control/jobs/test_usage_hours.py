"""Bounds of a report are whole hours, in UTC, that hold what was asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from control.domain.usage import hour_ceiling, hour_floor

ZONES = [UTC, timezone(timedelta(hours=5, minutes=45))]
INSTANTS = st.builds(datetime.fromtimestamp, st.floats(86_400, 4e9, allow_nan=False), st.sampled_from(ZONES))


@given(INSTANTS)
def test_an_instant_lies_between_its_floor_and_its_ceiling(at: datetime) -> None:
    floor, ceiling = hour_floor(at), hour_ceiling(at)
    assert floor <= at <= ceiling
    assert ceiling - floor in (timedelta(0), timedelta(hours=1))
    for bound in (floor, ceiling):
        assert bound.utcoffset() == timedelta(0)
        assert (bound.minute, bound.second, bound.microsecond) == (0, 0, 0)


@given(INSTANTS)
def test_a_whole_hour_is_its_own_bound(at: datetime) -> None:
    floor = hour_floor(at)
    assert hour_floor(floor) == hour_ceiling(floor) == floor
