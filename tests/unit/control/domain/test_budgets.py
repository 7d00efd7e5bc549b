"""Budgets: when a change starts a fresh window, and where a budget stands."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from control.domain.budgets import BudgetPatch, PacePatch, amended, amended_pace, standing
from control.domain.refusals import Invalid
from gateway.contract.grants import Grant
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, Counters, Pace

NOW_MS = int(datetime(2031, 3, 15, 12, tzinfo=UTC).timestamp() * 1000)
TODAY_MS = int(datetime(2031, 3, 15, tzinfo=UTC).timestamp() * 1000)
MONTHLY = Budget(Microcredits(5), "monthly", 10, 77)


def counters(window_ms: int, spent: int, held: int = 0) -> Counters:
    return Counters(window_ms, Microcredits(spent), Microcredits(held))


@pytest.mark.parametrize(
    "patch",
    [
        {},
        {"limit": Microcredits(9)},
        {"limit": None},
        {"period": "monthly"},
        {"billing_day": 10},
        {"enforcement": "observe"},
        {"alerts": (50,)},
    ],
)
def test_a_change_that_leaves_the_period_alone_keeps_the_window(patch: BudgetPatch) -> None:
    assert amended(MONTHLY, patch, NOW_MS).since_ms == 77


@pytest.mark.parametrize("patch", [{"period": "daily"}, {"period": "never"}, {"billing_day": 11}])
def test_a_new_period_or_a_new_billing_day_starts_a_fresh_window(patch: BudgetPatch) -> None:
    assert amended(MONTHLY, patch, NOW_MS).since_ms == NOW_MS


def test_a_new_billing_day_means_nothing_to_a_budget_that_is_not_monthly() -> None:
    assert amended(Budget(None, "daily", 1, 77), {"billing_day": 5}, NOW_MS) == Budget(None, "daily", 5, 77)


def test_a_budget_stands_at_its_counters() -> None:
    shown = standing(Budget(Microcredits(100), "daily"), counters(TODAY_MS, 30, 20), NOW_MS)

    assert (shown.spent, shown.held, shown.remaining) == (30, 20, 50)
    assert shown.resets_at == datetime(2031, 3, 16, tzinfo=UTC)


def test_counters_of_an_ended_window_count_for_nothing() -> None:
    shown = standing(Budget(Microcredits(100), "daily"), counters(TODAY_MS - 1, 30, 20), NOW_MS)

    assert (shown.spent, shown.held, shown.remaining) == (0, 0, 100)


def test_counters_from_before_the_period_was_changed_count_for_nothing() -> None:
    budget = Budget(Microcredits(100), "never", since_ms=NOW_MS - 1)

    assert standing(budget, counters(0, 30), NOW_MS).spent == 0
    assert standing(budget, counters(NOW_MS - 1, 30), NOW_MS).spent == 30


def test_what_remains_is_never_below_nothing_and_unlimited_has_no_rest() -> None:
    assert standing(Budget(Microcredits(10)), counters(0, 30), NOW_MS).remaining == 0
    assert standing(Budget(None), counters(0, 30), NOW_MS).remaining is None


def test_a_record_that_redis_does_not_have_has_spent_nothing() -> None:
    assert standing(Budget(Microcredits(10)), None, NOW_MS).remaining == 10


def test_what_prepaid_credits_lost_is_off_the_limit_booked_or_not() -> None:
    budget, grants = Budget(Microcredits(150)), (Grant(NOW_MS, Microcredits(100)),)
    found = Counters(0, Microcredits(30), Microcredits(0), lost=Microcredits(0))

    before = standing(budget, found, NOW_MS - 1, grants)
    after = standing(budget, found, NOW_MS, grants)
    booked = standing(budget, replace(found, lost=Microcredits(90)), NOW_MS, grants)

    assert (before.limit, before.lost, before.remaining) == (150, 0, 120)
    assert (after.limit, after.lost, after.remaining) == (80, 70, 50)
    assert (booked.limit, booked.lost, booked.remaining) == (60, 90, 30)


def test_what_was_lost_on_a_former_line_counts_for_nothing() -> None:
    found = Counters(0, Microcredits(30), Microcredits(0), lost=Microcredits(90))

    assert standing(Budget(Microcredits(50), since_ms=NOW_MS), found, NOW_MS, ()).remaining == 50
    assert standing(Budget(Microcredits(50)), found, NOW_MS).remaining == 20


def test_requests_under_way_know_no_windows_and_observed_ones_do() -> None:
    found = Counters(TODAY_MS - 1, Microcredits(0), Microcredits(0), in_flight=3, observed=9)

    shown = standing(Budget(None, "daily"), found, NOW_MS)
    assert (shown.in_flight, shown.observed) == (3, 0)
    assert standing(Budget(None, "never"), found, NOW_MS).observed == 9


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({}, Pace(60, 5, 7)),
        ({"per_minute": 30}, Pace(30, 5, 7)),
        ({"burst": None}, Pace(60, None, 7)),
        ({"in_flight": 0}, Pace(60, 5, 0)),
        ({"per_minute": None}, Pace(None, None, 7)),
        ({"per_minute": None, "burst": None, "in_flight": None}, Pace()),
    ],
)
def test_a_pace_changes_where_it_is_said_and_a_burst_goes_with_its_rate(
    patch: PacePatch, expected: Pace
) -> None:
    assert amended_pace(Pace(60, 5, 7), patch) == expected


def test_a_burst_without_a_rate_is_refused() -> None:
    with pytest.raises(Invalid, match="requests_per_minute"):
        amended_pace(Pace(), {"burst": 5})
    with pytest.raises(Invalid, match="requests_per_minute"):
        amended_pace(Pace(60, 5), {"per_minute": None, "burst": 5})
