"""Budgets: when a change starts a fresh window, and where a budget stands."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from control.domain.budgets import BudgetPatch, amended, standing
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, Counters

NOW_MS = int(datetime(2031, 3, 15, 12, tzinfo=UTC).timestamp() * 1000)
TODAY_MS = int(datetime(2031, 3, 15, tzinfo=UTC).timestamp() * 1000)
MONTHLY = Budget(Microcredits(5), "monthly", 10, 77)


def counters(window_ms: int, spent: int, held: int = 0) -> Counters:
    return Counters(window_ms, Microcredits(spent), Microcredits(held))


@pytest.mark.parametrize(
    "patch", [{}, {"limit": Microcredits(9)}, {"limit": None}, {"period": "monthly"}, {"billing_day": 10}]
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
