"""What the scripts promise, in plain Python: the test of the contract runs both side by side.

The model keeps no counters. It keeps what they are *about*: the holds in flight and the ledger rows, each with the
windows in which it was admitted. What a level has spent and holds is added up from those whenever it is asked for, so
equality with Redis is promise P2 ("the counters equal the sums of the rows") and not the same arithmetic done twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gateway.contract.ids import LEVELS
from gateway.contract.periods import NEVER_ENDS_MS, window_at
from gateway.contract.records import KeyRules
from tests.contract.desk import ROUTE, Answer, Rules, Workload


@dataclass(slots=True)
class Record:
    """Rules as last published, and the window in which the level was last admitted to."""

    rules: Rules
    window_ms: int
    opening_spent: int
    """What the publisher said was already spent in `opening_window_ms`, before this Redis saw a row."""
    opening_window_ms: int
    seen_end_ms: int = 0
    """Until then `window_ms` counts as current, should the clock step back; 0 makes the next admission look again."""


@dataclass(frozen=True, slots=True)
class Row:
    """One ledger row, as far as budgets are concerned."""

    records: tuple[str, str, str]
    windows: tuple[int, int, int]
    cost: int
    event: str


@dataclass(frozen=True, slots=True)
class Held:
    records: tuple[str, str, str]
    windows: tuple[int, int, int]
    head: str
    amount: int
    admitted_at_ms: int
    deadline_ms: int

    def __str__(self) -> str:
        return "|".join(map(str, (self.head, self.amount, self.admitted_at_ms, *self.windows)))


@dataclass(slots=True)
class Model:
    """Every method answers exactly what the script of that name answers."""

    now_ms: int
    records: dict[str, Record] = field(default_factory=dict)
    holds: dict[str, Held] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    # What a level has used, added up.

    def spent(self, name: str, window_ms: int) -> int:
        record = self.records[name]
        opening = record.opening_spent if record.opening_window_ms == window_ms else 0
        return opening + sum(
            row.cost for row in self.rows if (name, window_ms) in zip(row.records, row.windows, strict=True)
        )

    def held(self, name: str, window_ms: int) -> int:
        holds = self.holds.values()
        return sum(
            hold.amount for hold in holds if (name, window_ms) in zip(hold.records, hold.windows, strict=True)
        )

    def current_window(self, name: str) -> tuple[int, int]:
        """(start, end) of the window that an admission now would be in. It never moves back."""
        record = self.records[name]
        if self.now_ms < record.seen_end_ms:
            return record.window_ms, record.seen_end_ms
        budget = record.rules.budget
        window = window_at(
            budget.period, self.now_ms, billing_day=budget.billing_day, since_ms=budget.since_ms
        )
        return max(record.window_ms, window.start_ms), window.end_ms

    # The scripts.

    def admit(
        self, of: Workload, names: tuple[str, str, str], amount: int, request: str, ttl_ms: int, digest: bytes
    ) -> Answer:
        key = self.records.get(names[0])
        if key is None:
            return ["missing", "key"]
        if digest != of.digest:
            return ["digest"]
        refusal = self._refuse_by_rules(names)
        if refusal is not None:
            return refusal
        for level, name in zip(LEVELS, names, strict=True):
            window_ms, _ = self.current_window(name)
            used = self.spent(name, window_ms) + self.held(name, window_ms)
            limit = self.records[name].rules.budget.limit
            if limit is not None and (used >= limit or used + amount > limit):
                return self._budget_refusal(level, name)
        for name in names:
            record = self.records[name]
            record.window_ms, record.seen_end_ms = self.current_window(name)
        first, second, third = (self.records[name].window_ms for name in names)
        head = f"{request}|{of.key}|{of.account}|{of.tag}|{ROUTE}"
        hold = Held(names, (first, second, third), head, amount, self.now_ms, self.now_ms + ttl_ms)
        self.holds[str(hold)] = hold
        return str(hold)

    def settle(self, hold: str, cost: int, event: str, *, due: bool) -> int:
        placed = self.holds.get(hold)
        if placed is None:
            return 0
        if due and self.now_ms < placed.deadline_ms:
            return -1
        del self.holds[hold]
        self.rows.append(Row(placed.records, placed.windows, cost, event))
        return 1

    def extend(self, hold: str, added: int, ttl_ms: int) -> Answer:
        placed = self.holds.get(hold)
        if placed is None:
            return ["gone"]
        refusal = self._refuse_by_rules(placed.records)
        if refusal is not None:
            return refusal
        for level, name in zip(LEVELS, placed.records, strict=True):
            window_ms, _ = self.current_window(name)
            limit = self.records[name].rules.budget.limit
            if (
                added
                and limit is not None
                and self.spent(name, window_ms) + self.held(name, window_ms) + added > limit
            ):
                return self._budget_refusal(level, name)
        del self.holds[hold]
        grown = replace(placed, amount=placed.amount + added, deadline_ms=self.now_ms + ttl_ms)
        self.holds[str(grown)] = grown
        return str(grown)

    def publish(self, name: str, rules: Rules, window_ms: int, spent: int) -> int:
        record = self.records.get(name)
        if record is None:
            self.records[name] = Record(rules, window_ms, spent, window_ms)
            return 1
        if rules.version <= record.rules.version:
            return 0
        record.rules, record.seen_end_ms = rules, 0
        return 1

    def _refuse_by_rules(self, names: tuple[str, str, str]) -> Answer | None:
        for level, name in zip(LEVELS, names, strict=True):
            if name not in self.records:
                return ["missing", level]
        for level, name in zip(LEVELS, names, strict=True):
            status = self.records[name].rules.status
            if status != "active":
                return ["status", level, status]
        key = self.records[names[0]].rules
        assert isinstance(key, KeyRules)
        if key.expires_at_ms is not None and self.now_ms >= key.expires_at_ms:
            return ["expired", key.expires_at_ms]
        return None

    def _budget_refusal(self, level: str, name: str) -> Answer:
        window_ms, end_ms = self.current_window(name)
        limit = self.records[name].rules.budget.limit
        assert limit is not None
        resets_at_ms = 0 if end_ms == NEVER_ENDS_MS else end_ms
        return ["budget", level, limit, self.spent(name, window_ms), self.held(name, window_ms), resets_at_ms]
