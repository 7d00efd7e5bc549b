"""The random walk of test_against_model: what chance may do, to Redis and to the model alike, and how the two are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.contract.grants import Grant
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.periods import NEVER_ENDS_MS
from gateway.contract.records import COUNTER_FIELDS, Budget, KeyRules, OrganizationRules, Pace
from tests.contract.chances import (
    BUSY,
    LIMITS,
    OBSERVED,
    OPENING,
    PREPAID,
    STARTS_AT_MS,
    WORKLOADS,
    amounts,
    changes,
    grants_after_ms,
    lifetimes_ms,
    nearly,
    one_in_ten,
    paces,
    passing_us,
    requests,
    settlements,
    some,
    workloads,
)
from tests.contract.desk import (
    Answer,
    Desk,
    Request,
    Rules,
    Settlement,
    Workload,
    hold_of,
    is_alert,
    read_alert,
    rules_of,
)
from tests.contract.line import NO_EXPIRY_MS, end_of, expiring, with_grant
from tests.contract.model import Model

# Everything that Redis holds of the records and holds, and the events since those named, in one call.
STORED: Final = """
local found, holds, events = {}, {}, {}
for index, name in ipairs(KEYS) do
  found[index] = redis.call('HMGET', name, 'version', 'VERSION_AND_COUNTERS')
end
for index = 1, #ARGV, 2 do
  local part = redis.call('ZRANGE', 'tk:{' .. ARGV[index] .. '}:holds', 0, -1, 'WITHSCORES')
  for place = 1, #part do holds[#holds + 1] = part[place] end
  events[#events + 1] = redis.call('XRANGE', 'tk:{' .. ARGV[index] .. '}:events', '(' .. ARGV[index + 1], '+')
end
return {found, holds, events}
""".replace("VERSION_AND_COUNTERS", "', '".join(COUNTER_FIELDS))


class Contract(RuleBasedStateMachine):
    """Redis on one side, the model on the other."""

    client: ClassVar[redis.Redis]
    happened: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.desk = Desk(self.client, clock=True)
        self.model = Model(0)
        self._move_clock_to(STARTS_AT_MS)
        self.seen: list[tuple[Workload, str]] = []  # every form of every hold, also those that are gone
        self.requests = 0
        self.published: dict[str, Rules] = {}
        self.line: list[Grant] = []  # of the prepaid organization
        for of in WORKLOADS:
            for level in LEVELS:
                budget = Budget(
                    OPENING[level], "daily", enforcement="observe" if of in OBSERVED[level] else "enforce"
                )
                rules = rules_of(level, of, Budget() if of.tag == PREPAID else budget)
                name = self.desk.record(rules)
                if name not in self.published:
                    self._publish(name, rules, spent=5)
        self.names = list(self.published)
        self.prepaid = self.desk.layout.organization(WORKLOADS[-1].tag)
        shards = sorted({self.desk.layout.shard_of(of.tag) for of in WORKLOADS})
        assert len(shards) == 2
        self.last_event = dict.fromkeys(shards, "0-0")
        self.rows_seen = self.crossings_seen = 0
        self._start_a_line()
        self._grant(200, NO_EXPIRY_MS)

    # One request, or several.

    @rule(of=workloads, amount=amounts, ttl_ms=lifetimes_ms)
    def admit(self, of: Workload, amount: int, ttl_ms: int) -> None:
        self._admit([(of, amount, False)], ttl_ms)

    @rule(of=workloads, amount=amounts, wrong=one_in_ten)
    def admit_again(self, of: Workload, amount: int, wrong: bool) -> None:
        """Two rules of one kind: chance picks rules evenly, and admissions are what everything else needs."""
        self._admit([(of, amount, wrong)], 60_000)

    @rule(near=workloads, batch=st.lists(requests, min_size=2, max_size=6), ttl_ms=lifetimes_ms)
    def admit_a_batch(self, near: Workload, batch: Sequence[tuple[int, int, bool]], ttl_ms: int) -> None:
        near_by = [of for of in WORKLOADS if self._shard(of) == self._shard(near)]
        self._admit(
            [(near_by[index % len(near_by)], amount, wrong) for index, amount, wrong in batch], ttl_ms
        )
        self.happened["batch of admit"] += 1

    def _admit(self, wanted: Sequence[tuple[Workload, int, bool]], ttl_ms: int) -> None:
        lost = self.model.records[self.prepaid].lost
        batch = []
        for of, amount, wrong in wanted:
            self.requests += 1
            batch.append(Request(of, amount, f"r{self.requests}", bytes(32) if wrong else None))
        names = [request.of.records(self.desk.layout) for request in batch]
        expected = self.model.admit_many(list(zip(batch, names, strict=True)), ttl_ms)
        answers = self.desk.admit_many(batch, ttl_ms=ttl_ms)
        assert answers == expected
        for request, answer in zip(batch, answers, strict=True):
            self._note("admit", answer)
            hold = hold_of(answer)
            if hold is not None:
                self.seen.append((request.of, hold))
        self.happened["loss booked"] += self.model.records[self.prepaid].lost > lost
        self.happened["operation"] += 1

    @rule(index=some, cost=amounts, in_flight=st.sampled_from([True, True, True, False]))
    def settle(self, index: int, cost: int, in_flight: bool) -> None:
        self._settle(self._chosen([(index, cost, in_flight)]), due=False)

    @rule(near=workloads, batch=st.lists(settlements, min_size=2, max_size=6))
    def settle_a_batch(self, near: Workload, batch: Sequence[tuple[int, int, bool]]) -> None:
        """Some of them twice, and some that are gone."""
        chosen = self._chosen(batch, self._shard(near))
        self.happened["batch of settle"] += len(chosen) > 1
        self._settle(chosen, due=False)

    @rule(
        near=workloads,
        batch=st.lists(settlements, min_size=1, max_size=4),
        early_ms=nearly,
    )
    def expire(self, near: Workload, batch: Sequence[tuple[int, int, bool]], early_ms: int) -> None:
        """As the expire job does, but a millisecond before the deadline of the first, at it, or after it."""
        chosen = self._chosen(batch, self._shard(near))
        if chosen and chosen[0].hold in self.model.holds:
            deadline_ms = self.model.holds[chosen[0].hold].deadline_ms
            self._move_clock_to(max(self.model.now_ms, deadline_ms - early_ms))
        self.happened["batch of expire"] += len(chosen) > 1
        self._settle(chosen, due=True)

    def _settle(self, batch: Sequence[Settlement], *, due: bool) -> None:
        if not batch:
            return
        expected = self.model.settle_many(batch, due=due)
        answers = self.desk.settle_many(batch, due=due)
        assert answers == expected
        for answer in answers:
            self._note("expire" if due else "settle", answer)
        self.happened["operation"] += 1

    @rule(index=some, added=amounts, ttl_ms=lifetimes_ms, in_flight=st.sampled_from([True] * 4 + [False]))
    def extend(self, index: int, added: int, ttl_ms: int, in_flight: bool) -> None:
        for chosen in self._chosen([(index, 0, in_flight)]):
            self._extend(chosen.of, chosen.hold, added, ttl_ms)

    def _extend(self, of: Workload, hold: str, added: int, ttl_ms: int) -> None:
        lost = self.model.records[self.prepaid].lost
        expected = self.model.extend(hold, added, ttl_ms)
        answer = self.desk.extend(of, hold, added, ttl_ms=ttl_ms)
        assert answer == expected
        self._note("extend", answer)
        moved = isinstance(answer, str) and hold.rsplit("|", 3)[1:] != answer.rsplit("|", 3)[1:]
        self.happened["extend moved"] += moved
        self.happened["loss found by a top-up"] += self.model.records[self.prepaid].lost > lost
        self.happened["operation"] += 1
        if isinstance(answer, str) and answer != hold:
            self.seen.append((of, answer))

    # Rules change.

    @rule(of=workloads, level=st.sampled_from(LEVELS), change=changes, afresh=st.booleans())
    def change_a_budget(self, of: Workload, level: Level, change: dict[str, Any], afresh: bool) -> None:
        name = of.records(self.desk.layout)[LEVELS.index(level)]
        if name == self.prepaid and not change.keys() <= {"enforcement", "alerts"}:
            return
        if "period" in change and afresh:
            change = {**change, "since_ms": self.model.now_ms}
        old = self.published[name]
        self._publish(name, replace(old, version=old.version + 1, budget=replace(old.budget, **change)))
        self._did(f"edit {' '.join(sorted(change.keys() - {'billing_day', 'since_ms'}))}")

    @rule(of=workloads, pace=paces, level=st.sampled_from(LEVELS[:2]))
    def change_the_pace(self, of: Workload, pace: Pace, level: Level) -> None:
        name = of.records(self.desk.layout)[LEVELS.index(level)]
        old = self.published[name]
        assert not isinstance(old, OrganizationRules)
        self._publish(name, replace(old, version=old.version + 1, pace=pace))
        self._did("edit pace")

    @rule(index=some, status=st.sampled_from(["active", "active", "inactive"]))
    def change_the_status(self, index: int, status: str) -> None:
        name = self.names[index % len(self.names)]
        old = self.published[name]
        status = "disabled" if isinstance(old, KeyRules) and status == "inactive" else status
        self._publish(name, replace(old, version=old.version + 1, status=status))  # type: ignore[arg-type]
        self._did("edit status")

    @rule()
    def put_everything_right(self) -> None:
        """Without this most walks end among closed accounts and keys without a place, where nothing happens."""
        for name, old in self.published.items():
            changes: dict[str, Any] = {"expires_at_ms": None} if isinstance(old, KeyRules) else {}
            if not isinstance(old, OrganizationRules) and old.pace.in_flight == 0:
                changes["pace"] = Pace()
            self._publish(name, replace(old, version=old.version + 1, status="active", **changes))

    @rule(of=workloads, after_ms=st.sampled_from([0, 1, 60_000, 86_400_000]))
    def set_an_expiry(self, of: Workload, after_ms: int) -> None:
        name = self.desk.layout.key(of.key)
        old = self.published[name]
        assert isinstance(old, KeyRules)
        self._publish(name, replace(old, version=old.version + 1, expires_at_ms=self.model.now_ms + after_ms))
        self._did("edit expiry")

    @rule(index=some, behind=st.integers(0, 2), limit=st.sampled_from(LIMITS), own=st.booleans())
    def publish_too_late(self, index: int, behind: int, limit: int | None, own: bool) -> None:
        """What is known to be lost in the record's own window is taken all the same."""
        name = self.names[index % len(self.names)]
        newest, record = self.published[name], self.model.records[name]
        budget = Budget(None if limit is None else Microcredits(limit), "hourly")
        stale = replace(newest, version=newest.version - behind, budget=budget)
        is_prepaid = name == self.prepaid
        self._publish(name, stale, record.window_ms if own and is_prepaid else 77, 77, record.lost + 3)
        self.published[name] = newest
        self._did("edit late")

    # Prepaid credits.

    @rule(amount=st.sampled_from([1, 20, 60, 100]), after_ms=grants_after_ms, afresh=one_in_ten)
    def grant(self, amount: int, after_ms: int | None, afresh: bool) -> None:
        if afresh:
            self._start_a_line()
        self._grant(amount, NO_EXPIRY_MS if after_ms is None else self.model.now_ms + after_ms)
        self._did("new line" if afresh else "grant")

    def _grant(self, amount: int, expires_at_ms: int) -> None:
        record = self.model.records[self.prepaid]
        gone = self.model.spent(self.prepaid, record.window_ms) + record.lost
        self.line = with_grant(self.line, amount, expires_at_ms, gone=gone, now_ms=self.model.now_ms)
        self._publish_the_line(end_of(self.line))

    def _publish_the_line(self, limit: int, **changes: Any) -> None:
        old = self.published[self.prepaid]
        assert isinstance(old, OrganizationRules)
        budget = replace(old.budget, limit=Microcredits(limit), period="never", **changes)
        self._publish(
            self.prepaid, replace(old, version=old.version + 1, budget=budget, grants=expiring(self.line))
        )

    @rule(amount=amounts, late_ms=nearly, tops_up=st.sampled_from([True, True, False]), closes=st.booleans())
    def a_grant_expires(self, amount: int, late_ms: int, tops_up: bool, closes: bool) -> None:
        """Somebody looks, and what has nothing more to lose may be left out of the rules from then on."""
        if not expiring(self.line):
            self._grant(60, self.model.now_ms + 1_000)
        self._admit([(BUSY[-1], 1, False)], 90_000)
        self._move_clock_to(max(self.model.now_ms, self.line[0].expires_at_ms + late_ms))
        running = [form for form in self.seen if form[1] in self.model.holds and form[0].tag == PREPAID]
        if tops_up and running:
            self._extend(*running[-1], amount, 60_000)
        else:
            self._admit([(BUSY[-1], amount, False)], 60_000)
        record, limit = self.model.records[self.prepaid], end_of(self.line)
        booked = self.model.spent(self.prepaid, record.window_ms) + record.lost
        closed = [g for g in self.line if g.expires_at_ms <= self.model.now_ms and g.end <= booked]
        if closes and closed:
            self.line = [grant for grant in self.line if grant not in closed]
            self._publish_the_line(limit)
            self._did("grant closed")

    def _start_a_line(self) -> None:
        self.line = []
        self._publish_the_line(0, since_ms=self.model.now_ms)

    # Time passes.

    @rule(us=passing_us)
    def time_passes(self, us: int) -> None:
        self._set_clock(max(STARTS_AT_MS * 1_000, self.model.now_us + us))
        self._did("back" if us < 0 else "on")

    @rule(of=workloads, level=st.sampled_from(LEVELS), late_ms=nearly)
    def a_window_ends(self, of: Workload, level: Level, late_ms: int) -> None:
        name = of.records(self.desk.layout)[LEVELS.index(level)]
        _, end_ms = self.model.current_window(name)
        if end_ms != NEVER_ENDS_MS:
            self._move_clock_to(max(self.model.now_ms, end_ms + late_ms))
            self._did("roll")

    def _move_clock_to(self, at_ms: int) -> None:
        """To some microsecond of that millisecond: what counts for windows and deadlines is the millisecond."""
        self._set_clock(at_ms * 1_000 + at_ms // 7 % 1_000)

    def _set_clock(self, at_us: int) -> None:
        self.model.now_us = at_us
        self.desk.set_time(at_us // 1_000, at_us % 1_000)

    # What is common to them.

    def _publish(self, name: str, rules: Rules, window_ms: int = 0, spent: int = 0, lost: int = 0) -> None:
        self.published[name] = rules
        expected = self.model.publish(name, rules, window_ms, spent, lost)
        assert self.desk.publish(rules, window=window_ms, spent=spent, lost=lost) == expected

    def _note(self, what: str, answer: Answer) -> None:
        word = answer[0] if isinstance(answer, list) else "done" if isinstance(answer, str) else answer
        self.happened[f"{what} {word}"] += 1

    def _did(self, what: str) -> None:
        self.happened[what] += 1
        self.happened["operation"] += 1

    def _shard(self, of: Workload) -> int:
        return self.desk.layout.shard_of(of.tag)

    def _chosen(self, wanted: Sequence[tuple[int, int, bool]], shard: int | None = None) -> list[Settlement]:
        """(index, cost, whether it is to be in flight) as settlements, as far as there are such holds."""
        found: list[Settlement] = []
        for index, cost, in_flight in wanted:
            forms = [
                form
                for form in self.seen
                if (form[1] in self.model.holds) is in_flight and shard in (None, self._shard(form[0]))
            ]
            if forms:
                event = f'{{"n":{len(self.model.rows) + len(found)}}}'
                found.append(Settlement(*forms[index % len(forms)], cost, event))
        return found

    @invariant()
    def what_is_stored_is_what_the_model_adds_up(self) -> None:
        arguments = [text for shard, last in self.last_event.items() for text in (f"{shard:02d}", last)]
        records, holds, streams = self.client.eval(STORED, len(self.names), *self.names, *arguments)
        for name, values in zip(self.names, records, strict=True):
            record, window_ms = self.model.records[name], self.model.records[name].window_ms
            expected: list[int | Fraction] = [
                record.rules.version, window_ms, record.seen_end_ms, self.model.spent(name, window_ms),
                self.model.held(name, window_ms), self.model.in_flight(name), record.due_us, record.observed[window_ms],
                record.lost, record.told,
            ]  # fmt: skip
            assert [int(value) for value in values] == expected, (name, stated(values), stated(expected))
        stored = {member.decode(): int(score) for member, score in zip(holds[::2], holds[1::2], strict=True)}
        assert stored == {packed: hold.deadline_ms for packed, hold in self.model.holds.items()}
        self._compare_what_was_appended(streams)

    def _compare_what_was_appended(self, streams: Sequence[Sequence[Any]]) -> None:
        appended: list[str] = []
        for shard, entries in zip(self.last_event, streams, strict=True):
            for entry_id, (_, event) in entries:
                self.last_event[shard] = entry_id.decode()
                appended.append(event.decode())
        rows = sorted(row.event for row in self.model.rows[self.rows_seen :])
        assert sorted(event for event in appended if not is_alert(event)) == rows
        told = Counter(self.model.crossings[self.crossings_seen :])
        assert Counter(read_alert(event) for event in appended if is_alert(event)) == told
        for crossing in told:
            level: Level = crossing.level
            self.happened[f"alert {level}"] += 1
            self.happened["alert prepaid"] += crossing.id == PREPAID
        self.rows_seen, self.crossings_seen = len(self.model.rows), len(self.model.crossings)

    def teardown(self) -> None:
        """Everything in flight is settled: nothing stays held or in flight anywhere."""
        operations = self.happened["operation"]
        for of, hold in list(self.seen):
            self._settle([Settlement(of, hold, 3)], due=False)
        self.happened["operation"] = operations  # chance had no hand in these
        self.what_is_stored_is_what_the_model_adds_up()
        assert {self.client.hget(name, "held") for name in self.names} == {b"0"}
        assert {self.client.hget(name, "in_flight") for name in self.names} == {b"0"}


def stated(values: Sequence[Any]) -> dict[str, int]:
    """What differs is to be seen at a glance."""
    return dict(zip(("version", *COUNTER_FIELDS), map(int, values), strict=True))
