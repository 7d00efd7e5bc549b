"""When a delivery is tried again, and what a failure leads to: the rules alone, without a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.domain.deliveries import FAILURES_MIN, pause_s, rest_s, verdict

NOW = datetime(2031, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_the_pauses_double_from_five_seconds_to_an_hour() -> None:
    pauses = [pause_s(attempts, jitter=0) for attempts in range(1, 14)]

    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_jitter_takes_a_fifth_at_most_and_an_hour_is_never_passed(attempts: int, jitter: float) -> None:
    without = pause_s(attempts, 0)

    assert without * 0.8 <= pause_s(attempts, jitter) <= without <= 3600


def test_a_destination_that_fails_is_left_alone_for_as_long_as_it_has_been_failing() -> None:
    at_s, attempts_at_s = 0.0, []
    while at_s < DAY.total_seconds():
        attempts_at_s.append(at_s)
        at_s += rest_s(at_s, jitter=0)

    assert attempts_at_s[:6] == [0, 5, 10, 20, 40, 80]
    assert {later - sooner for sooner, later in pairwise(attempts_at_s[11:])} == {3600}
    assert len(attempts_at_s) < 40, "of a whole day"


@given(st.floats(0, 1e6), st.floats(0, 1), st.none() | st.floats(0, 1e6))
def test_a_destination_rests_between_four_seconds_and_an_hour_and_as_long_as_it_asks_within_that(
    failing_for_s: float, jitter: float, asked_s: float | None
) -> None:
    rests_s = rest_s(failing_for_s, jitter, asked_s)

    assert 4 <= rests_s <= 3600
    assert rests_s >= min(asked_s or 0, 3600)


@pytest.mark.parametrize(
    ("failing_for", "failures", "tried_for", "has_taken_others", "decided"),
    [
        (timedelta(0), 1, timedelta(0), False, "retry"),
        (DAY - timedelta(seconds=1), 1000, DAY - timedelta(seconds=1), False, "retry"),
        (DAY, 1000, DAY, False, "disable"),
        (DAY, 1000, timedelta(0), False, "disable"),
        (DAY, FAILURES_MIN, DAY, False, "disable"),
        (DAY, FAILURES_MIN - 1, DAY, False, "retry"),  # nobody tried in between: that is no day of failures
        (timedelta(0), 1, DAY, True, "give up"),
        (timedelta(0), 1, DAY - timedelta(seconds=1), True, "retry"),
        (
            timedelta(hours=20),
            30,
            DAY,
            False,
            "retry",
        ),  # it took others before, and nothing since: it may be down
    ],
)
def test_what_a_failure_leads_to(
    failing_for: timedelta, failures: int, tried_for: timedelta, has_taken_others: bool, decided: str
) -> None:
    found = verdict(
        NOW, NOW - failing_for, failures, NOW - tried_for, has_taken_others=has_taken_others, is_gone=False
    )

    assert found == decided


def test_a_receiver_that_says_that_it_is_gone_is_disabled_at_once() -> None:
    assert verdict(NOW, NOW, 1, NOW, has_taken_others=True, is_gone=True) == "disable"
