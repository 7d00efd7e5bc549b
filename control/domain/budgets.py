"""Budgets as the control plane keeps and shows them. Pure; clocks come in as arguments.

The rule itself (`Budget`) and its windows are part of the contract; the counters are Redis's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypedDict

from asyncpg import Record

from gateway.contract.money import Microcredits
from gateway.contract.periods import Period, window_at
from gateway.contract.records import Budget, Counters


class BudgetPatch(TypedDict, total=False):
    """What of a budget is to change; a missing entry stays as it is."""

    limit: Microcredits | None
    period: Period
    billing_day: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a budget stands in its current window. `remaining` is None if unlimited, `resets_at` if it never ends."""

    spent: Microcredits
    held: Microcredits
    remaining: Microcredits | None
    resets_at: datetime | None


def amended(budget: Budget, patch: BudgetPatch, now_ms: int) -> Budget:
    """The budget after the patch. A new period starts a fresh window, as does a new billing day where it matters."""
    new = replace(
        budget,
        limit=patch.get("limit", budget.limit),
        period=patch.get("period", budget.period),
        billing_day=patch.get("billing_day", budget.billing_day),
    )
    restarts = new.period != budget.period or (
        new.period == "monthly" and new.billing_day != budget.billing_day
    )
    return replace(new, since_ms=now_ms) if restarts else new


def standing(budget: Budget, counters: Counters | None, now_ms: int) -> Standing:
    """Where the budget stands at `now_ms` (Redis's clock). Counters of a window that has ended count for nothing."""
    window = window_at(budget.period, now_ms, billing_day=budget.billing_day, since_ms=budget.since_ms)
    current = counters is not None and counters.window_ms >= window.start_ms
    spent, held = (counters.spent, counters.held) if counters is not None and current else (0, 0)
    remaining = None if budget.limit is None else Microcredits(max(0, budget.limit - spent - held))
    return Standing(Microcredits(spent), Microcredits(held), remaining, window.resets_at)


def budget_of_row(row: Record) -> Budget:
    """Out of a row with limit_microcredits, reset_period, billing_day and period_since_ms."""
    return Budget(row["limit_microcredits"], row["reset_period"], row["billing_day"], row["period_since_ms"])
