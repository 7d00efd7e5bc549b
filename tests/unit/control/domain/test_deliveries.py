"""When a delivery is tried again, and what a failure leads to: the rules alone, without a clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.domain.deliveries import FAILURES_MIN, pause_s, verdict

NOW = datetime(2031, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_the_pauses_double_from_five_seconds_to_an_hour() -> None:
    pauses = [pause_s(attempts, jitter=0) for attempts in range(1, 14)]

    assert pauses == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_jitter_takes_a_fifth_at_most_and_an_hour_is_never_passed(attempts: int, jitter: float) -> None:
    without = pause_s(attempts, 0)

    assert without * 0.8 <= pause_s(attempts, jitter) <= without <= 3600


@pytest.mark.parametrize(("asked_s", "waited_s"), [(None, 5), (1, 5), (60, 60), (86_400, 3600)])
def test_a_receiver_that_asks_for_time_gets_up_to_an_hour(asked_s: float | None, waited_s: float) -> None:
    assert pause_s(1, 0, asked_s) == waited_s


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
