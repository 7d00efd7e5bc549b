"""What became of a goal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal: what was wanted, what was measured (None: not measured), and whether it holds."""

    goal: str
    measured: float | None
    holds: bool | None
    remark: str = ""

    def line(self) -> str:
        if self.measured is None:
            return f"  not measured  {self.goal}"
        return f"  {'met' if self.holds else 'MISSED':<12}  {self.goal}: {self.measured:,.2f}{self.remark}"


def at_most(goal: str, measured: float | None, bound: float) -> Verdict:
    return Verdict(goal, measured, None if measured is None else measured <= bound)


def at_least(goal: str, measured: float | None, bound: float) -> Verdict:
    return Verdict(goal, measured, None if measured is None else measured >= bound)
