"""What the tests of alerts share: one workload, its limits, and what was told of them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget
from tests.contract.desk import Desk, Workload, rules_of, workload

NOW_MS = 1_710_504_000_000
HOUR_MS = 3_600_000
MIDNIGHT_MS = NOW_MS - 12 * HOUR_MS
BUILDER = workload()

every_level = pytest.mark.parametrize("level", LEVELS)


def limited(amount: int | None, period: Any = "never", **more: Any) -> Budget:
    return Budget(None if amount is None else Microcredits(amount), period, **more)


def spend(desk: Desk, cost: int, *, of: Workload = BUILDER) -> None:
    number = len(desk.stream(of))
    assert desk.settle(of, desk.admitted(of, request=f"r{number}"), cost, f'{{"n":{number}}}') == 1


def told(desk: Desk) -> list[int]:
    """The thresholds, in the order in which they were told."""
    return [alert.threshold for alert in desk.alerts(BUILDER)]


def change(desk: Desk, level: Level, budget: Budget, version: int = 2) -> None:
    assert desk.publish(rules_of(level, BUILDER, budget, version)) == 1
