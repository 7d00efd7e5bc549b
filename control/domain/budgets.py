"""Budgets and paces as the control plane keeps and shows them. Pure; clocks come in as arguments.

The rules themselves (`Budget`, `Pace`) and their windows are part of the contract; the counters are Redis's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypedDict

from asyncpg import Record

from control.domain.refusals import Invalid
from gateway.contract.grants import Grant, lost_by
from gateway.contract.money import Microcredits
from gateway.contract.periods import Period, window_at
from gateway.contract.records import Budget, Counters, Enforcement, Pace


class BudgetPatch(TypedDict, total=False):
    """What of a budget is to change; a missing entry stays as it is."""

    limit: Microcredits | None
    period: Period
    billing_day: int
    enforcement: Enforcement
    alerts: tuple[int, ...]


class PacePatch(TypedDict, total=False):
    """What of a pace is to change; a missing entry stays as it is."""

    per_minute: int | None
    burst: int | None
    in_flight: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a budget stands in its current window. `remaining` is None if unlimited, `resets_at` if it never ends.

    `limit` is the effective one: what prepaid credits lost (`lost`) is off. `observed` are requests of this window that a level
    that observes let through, `in_flight` those under way.
    """

    spent: Microcredits
    held: Microcredits
    remaining: Microcredits | None
    resets_at: datetime | None
    limit: Microcredits | None = None
    lost: Microcredits = Microcredits(0)
    observed: int = 0
    in_flight: int = 0


def amended(budget: Budget, patch: BudgetPatch, now_ms: int) -> Budget:
    """The budget after the patch. A new period starts a fresh window, as does a new billing day where it matters."""
    new = replace(
        budget,
        limit=patch.get("limit", budget.limit),
        period=patch.get("period", budget.period),
        billing_day=patch.get("billing_day", budget.billing_day),
        enforcement=patch.get("enforcement", budget.enforcement),
        alerts=patch.get("alerts", budget.alerts),
    )
    restarts = new.period != budget.period or (
        new.period == "monthly" and new.billing_day != budget.billing_day
    )
    return replace(new, since_ms=now_ms) if restarts else new


def amended_pace(pace: Pace, patch: PacePatch) -> Pace:
    """The pace after the patch. A burst goes with the rate that it belongs to. Raises Invalid for one without a rate."""
    per_minute = patch.get("per_minute", pace.per_minute)
    burst = patch.get("burst", pace.burst if per_minute is not None else None)
    return checked_pace(Pace(per_minute, burst, patch.get("in_flight", pace.in_flight)))


def checked_pace(pace: Pace) -> Pace:
    """Raises Invalid for a burst without a rate."""
    if pace.burst is not None and pace.per_minute is None:
        raise Invalid.field(
            "burst", "says how many of a minute's requests may come at once: set requests_per_minute as well"
        )
    return pace


def standing(
    budget: Budget, counters: Counters | None, now_ms: int, grants: Sequence[Grant] | None = None
) -> Standing:
    """Where the budget stands at `now_ms` (Redis's clock). Counters of a window that has ended count for nothing.

    `grants` are those of a prepaid organization that will expire; None for everything else, which never loses any.
    """
    window = window_at(budget.period, now_ms, billing_day=budget.billing_day, since_ms=budget.since_ms)
    current = counters if counters is not None and counters.window_ms >= window.start_ms else None
    spent, held = (current.spent, current.held) if current is not None else (Microcredits(0), Microcredits(0))
    lost, limit = Microcredits(0), budget.limit
    if grants is not None and limit is not None:
        lost = lost_by(grants, now_ms, spent + held, current.lost if current is not None else 0)
        limit = Microcredits(max(0, limit - lost))
    return Standing(
        spent=spent,
        held=held,
        remaining=None if limit is None else Microcredits(max(0, limit - spent - held)),
        resets_at=window.resets_at,
        limit=limit,
        lost=lost,
        observed=current.observed if current is not None else 0,
        in_flight=counters.in_flight if counters is not None else 0,
    )


def budget_of_row(row: Record) -> Budget:
    """Out of a row with limit_microcredits, reset_period, billing_day, period_since_ms, enforcement and alert_thresholds."""
    return Budget(
        limit=row["limit_microcredits"],
        period=row["reset_period"],
        billing_day=row["billing_day"],
        since_ms=row["period_since_ms"],
        enforcement=row["enforcement"],
        alerts=tuple(row["alert_thresholds"]),
    )


def pace_of_row(row: Record) -> Pace:
    """Out of a row with requests_per_minute, burst and requests_in_flight."""
    return Pace(row["requests_per_minute"], row["burst"], row["requests_in_flight"])
