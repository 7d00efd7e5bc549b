"""What the scripts promise, in plain Python: the test of the contract runs both side by side.

The model keeps no counters where it can do without. It keeps what they are *about*: the holds in flight and the ledger
rows, each with the windows in which it was admitted, and who was let through under observation. What a level has spent and
holds, and what is in flight, is added up from those whenever it is asked for, so equality with Redis is promise P2 ("the
counters equal the sums of the rows") and not the same arithmetic done twice. Paces are fractions, thresholds are compared
with fractions, and a batch is nothing but its requests, one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil
from typing import Final

from gateway.contract.ids import LEVELS, Level
from gateway.contract.periods import NEVER_ENDS_MS, window_at
from gateway.contract.records import KeyRules, OrganizationRules, Pace
from gateway.contract.usage_event import AlertCrossing
from tests.contract.desk import Answer, Request, Rules, Settlement

Names = tuple[str, str, str]

MINUTE_US: Final = 60_000_000


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
    due_us: Fraction = Fraction(0)
    """When the next request would come, if all that were let in had come evenly."""
    observed: Counter[int] = field(default_factory=Counter)
    """Requests let through that the level would have refused, by window."""
    lost: int = 0
    """Credits of this window's expired grants, as of the last look."""
    told: int = 0
    """The percent of the limit up to which somebody has been told in this window."""
    is_over: bool = False
    """These rules came when `window_ms` was no more: nothing of it is held against them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One ledger row, as far as budgets are concerned."""

    records: Names
    windows: tuple[int, int, int]
    cost: int
    event: str


@dataclass(frozen=True, slots=True)
class Held:
    records: Names
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

    now_us: int
    records: dict[str, Record] = field(default_factory=dict)
    holds: dict[str, Held] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    crossings: list[AlertCrossing] = field(default_factory=list)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1_000

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

    def in_flight(self, name: str) -> int:
        """Organizations have no pace: nobody counts theirs."""
        if isinstance(self.records[name].rules, OrganizationRules):
            return 0
        return sum(name in hold.records for hold in self.holds.values())

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

    def lost(self, name: str) -> int:
        """What a look now finds lost: what of the expired grants nobody has used or holds. It only grows within a window."""
        record = self.records[name]
        window_ms, _ = self.current_window(name)
        lost = record.lost if window_ms == record.window_ms else 0
        if isinstance(record.rules, OrganizationRules) and record.rules.budget.limit is not None:
            used = self.spent(name, window_ms) + self.held(name, window_ms)
            expired = (grant.end for grant in record.rules.grants if grant.expires_at_ms <= self.now_ms)
            lost = max([lost, *(end - used for end in expired)])
        return lost

    # The scripts.

    def admit_many(self, batch: Sequence[tuple[Request, Names]], ttl_ms: int) -> list[Answer]:
        return [self.admit(request, names, ttl_ms) for request, names in batch]

    def admit(self, request: Request, names: Names, ttl_ms: int) -> Answer:
        if names[0] not in self.records:
            return ["missing", "key"]
        if request.digest is not None and request.digest != request.of.digest:
            return ["digest"]
        refusal = self._refuse_by_rules(names)
        if refusal is not None:
            return refusal
        observed: list[tuple[Level, str]] = []
        for level, no in self._lacks(names, request.amount):
            if self.records[names[LEVELS.index(level)]].rules.budget.enforcement == "enforce":
                return [no[0], level, *no[1:]]
            observed.append((level, str(no[0])))
        hold = self._let_in(request, names, ttl_ms, {level for level, _ in observed})
        if observed:
            return ["observed", hold, *(word for pair in observed for word in pair)]
        is_bounded = any(self._pace(name).in_flight is not None for name in names)
        return ["placed", hold] if is_bounded else hold

    def settle_many(self, batch: Sequence[Settlement], *, due: bool) -> list[int]:
        """Thresholds are looked at when all are booked: each that a batch crosses tells what is spent in the end."""
        answers, booked = [], set[str]()
        for settlement in batch:
            placed = self.holds.get(settlement.hold)
            if placed is None:
                answers.append(0)
            elif due and self.now_ms < placed.deadline_ms:
                answers.append(-1)
            else:
                answers.append(1)
                self._look_for_losses(placed.records[2])
                del self.holds[settlement.hold]
                self.rows.append(Row(placed.records, placed.windows, settlement.cost, settlement.event))
                if placed.amount or settlement.cost:
                    pairs = zip(placed.records, placed.windows, strict=True)
                    booked |= {name for name, window in pairs if self.records[name].window_ms == window}
        for name in booked:
            self._tell(name)
        return answers

    def extend(self, hold: str, added: int, ttl_ms: int) -> Answer:
        placed = self.holds.get(hold)
        if placed is None:
            return ["gone"]
        refusal = self._refuse_by_rules(placed.records)
        if refusal is not None:
            return refusal
        if not added:
            self.holds[hold] = replace(placed, deadline_ms=self.now_ms + ttl_ms)
            return hold
        windows = []
        for level, name, own_ms in zip(LEVELS, placed.records, placed.windows, strict=True):
            record, limit, used = self.records[name], self._limit(name), sum(self._used(name))
            window_ms, _ = self.current_window(name)
            moves = window_ms > min(own_ms, record.window_ms)
            needed = placed.amount + added if moves else added
            is_enforced = record.rules.budget.enforcement == "enforce"
            if is_enforced and limit is not None and used + needed > limit:
                no = self._budget_refusal(name, limit)
                return [no[0], level, *no[1:]]
            windows.append(window_ms if moves else own_ms)
        for name in placed.records:
            self._open_window(name)
        del self.holds[hold]
        first, second, third = windows
        grown = replace(
            placed,
            amount=placed.amount + added,
            deadline_ms=self.now_ms + ttl_ms,
            windows=(first, second, third),
        )
        self.holds[str(grown)] = grown
        return str(grown)

    def _open_window(self, name: str) -> None:
        """Whoever is topped up sees what is lost, and opens the present window if nobody has yet."""
        record, (window_ms, end_ms) = self.records[name], self.current_window(name)
        is_enforced = record.rules.budget.enforcement == "enforce"
        lost = self.lost(name) if is_enforced else 0
        if window_ms > record.window_ms:
            record.window_ms, record.seen_end_ms, record.lost = window_ms, end_ms, lost
            record.told, record.is_over = 0, False
        elif is_enforced:
            self._lose(name, lost)

    def publish(self, name: str, rules: Rules, window_ms: int, spent: int, lost: int) -> int:
        record = self.records.get(name)
        if record is None:
            self.records[name] = Record(rules, window_ms, spent, window_ms, lost=lost)
            return 1
        if window_ms == record.window_ms:
            self._lose(name, lost)
        if rules.version <= record.rules.version:
            return 0
        record.rules, record.seen_end_ms = rules, 0
        limit = rules.budget.limit
        record.is_over = self.current_window(name)[0] != record.window_ms
        if record.is_over:
            return 1
        if limit is None:
            record.told = 0
        elif limit > record.lost:
            share = Fraction(100 * self.spent(name, record.window_ms), limit - record.lost)
            record.told = min(record.told, int(share))
        return 1

    def _look_for_losses(self, name: str) -> None:
        record = self.records[name]
        if self.current_window(name)[0] == record.window_ms:
            self._lose(name, self.lost(name))

    def _lose(self, name: str, lost: int) -> None:
        """Whoever finds a loss in the record's window says with it that this window is the current one."""
        record = self.records[name]
        if lost > record.lost:
            record.lost, record.is_over = lost, False

    # How admit judges.

    def _refuse_by_rules(self, names: Names) -> Answer | None:
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

    def _lacks(self, names: Names, amount: int) -> list[tuple[Level, list[str | int]]]:
        """What speaks against a request, level by level: first how fast requests come, then what they cost."""
        found: list[tuple[Level, list[str | int]]] = []
        for level, name in zip(LEVELS[:2], names[:2], strict=True):
            pace = self._pace(name)
            wait_us = self._wait_us(name)
            if wait_us > 0 and pace.per_minute is not None:
                found.append((level, ["rate", pace.per_minute, self._burst(pace), ceil(wait_us / 1_000)]))
            elif pace.in_flight is not None and self.in_flight(name) >= pace.in_flight:
                found.append((level, ["in_flight", pace.in_flight, self.in_flight(name)]))
        for level, name in zip(LEVELS, names, strict=True):
            limit, used = self._limit(name), sum(self._used(name))
            if limit is not None and (used >= limit or used + amount > limit):
                found.append((level, self._budget_refusal(name, limit)))
        return found

    def _let_in(self, request: Request, names: Names, ttl_ms: int, observing: set[Level]) -> str:
        for level, name in zip(LEVELS, names, strict=True):
            record = self.records[name]
            lost = self.lost(name)
            window_ms, end_ms = self.current_window(name)
            if window_ms != record.window_ms:
                record.told = 0
            record.window_ms, record.seen_end_ms, record.lost = window_ms, end_ms, lost
            record.is_over = False
            record.observed[window_ms] += level in observing
            interval_us = self._interval_us(name)
            if interval_us and self._wait_us(name) == 0:
                record.due_us = self.now_us + self._owed_us(name) + interval_us
        first, second, third = (self.records[name].window_ms for name in names)
        deadline_ms = self.now_ms + ttl_ms
        hold = Held(names, (first, second, third), request.head, request.amount, self.now_ms, deadline_ms)
        self.holds[str(hold)] = hold
        return str(hold)

    def _used(self, name: str) -> tuple[int, int]:
        """(spent, held) in the window that is current now."""
        window_ms, _ = self.current_window(name)
        return self.spent(name, window_ms), self.held(name, window_ms)

    def _limit(self, name: str) -> int | None:
        limit = self.records[name].rules.budget.limit
        return None if limit is None else max(0, limit - self.lost(name))

    def _budget_refusal(self, name: str, limit: int) -> list[str | int]:
        _, end_ms = self.current_window(name)
        return ["budget", limit, *self._used(name), 0 if end_ms == NEVER_ENDS_MS else end_ms]

    # Paces.

    def _pace(self, name: str) -> Pace:
        rules = self.records[name].rules
        return Pace() if isinstance(rules, OrganizationRules) else rules.pace

    @staticmethod
    def _burst(pace: Pace) -> int:
        assert pace.per_minute is not None
        return pace.per_minute if pace.burst is None else pace.burst

    def _interval_us(self, name: str) -> Fraction:
        """From one request to the next if they come evenly; 0 without a rate."""
        per_minute = self._pace(name).per_minute
        return Fraction(MINUTE_US, per_minute) if per_minute else Fraction(0)

    def _owed_us(self, name: str) -> Fraction:
        """The time that what was let in takes, if it comes evenly. The present pace lets nobody owe more than a whole burst:
        what is more was owed to another pace, or by a clock that was ahead, and then there is room for one request."""
        interval_us, burst = self._interval_us(name), self._burst(self._pace(name))
        owed_us = max(self.records[name].due_us - self.now_us, Fraction(0))
        return owed_us if owed_us <= burst * interval_us else (burst - 1) * interval_us

    def _wait_us(self, name: str) -> Fraction:
        """How long a request would have to wait: until no more than a whole burst, with itself, is owed."""
        if self._pace(name).per_minute is None:
            return Fraction(0)
        interval_us, burst = self._interval_us(name), self._burst(self._pace(name))
        return max(self._owed_us(name) + interval_us - burst * interval_us, Fraction(0))

    # Alerts.

    def _tell(self, name: str) -> None:
        """Whoever listens hears of each threshold that is reached, and of none below what was told already."""
        record = self.records[name]
        spent, budget = self.spent(name, record.window_ms), record.rules.budget
        if record.is_over or budget.limit is None or spent == 0:
            return
        limit = max(0, budget.limit - record.lost)
        for threshold in budget.alerts:
            if threshold > record.told and 100 * spent >= threshold * limit:
                level: Level = "organization" if isinstance(record.rules, OrganizationRules) else "account"
                level = "key" if isinstance(record.rules, KeyRules) else level
                own_id = record.rules.tag if isinstance(record.rules, OrganizationRules) else record.rules.id
                crossing = AlertCrossing(
                    organization=self._tag(record.rules), level=level, id=own_id, window_ms=record.window_ms,
                    threshold=threshold, limit=limit, spent=spent, at_ms=self.now_ms,
                )  # fmt: skip
                self.crossings.append(crossing)
                record.told = threshold

    @staticmethod
    def _tag(rules: Rules) -> str:
        if isinstance(rules, OrganizationRules):
            return rules.tag
        return rules.organization_tag if isinstance(rules, KeyRules) else rules.id[3:9]
