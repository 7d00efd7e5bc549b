"""Whatever happens in whatever order, the scripts and the model agree on every answer and on all that is stored.

Two organizations of two accounts of two keys share one Redis. Chance admits, settles, settles again, expires, extends,
edits rules, publishes late and moves the clock, also back; after every step counters, holds and events are compared.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gateway.contract.ids import LEVELS
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, KeyRules
from tests.contract.desk import Answer, Desk, Rules, Workload, rules_of, workload
from tests.contract.model import Model

STARTS_AT_MS = 1_709_164_740_000  # 2024-02-28 23:59 UTC: the day before a leap day
EXAMPLES, STEPS = 260, 80
WHAT_MUST_HAPPEN = (
    "admit done", "admit budget", "admit status", "admit expired", "admit digest", "settle 1", "settle 0", "expire 1",
    "expire 0", "expire -1", "extend done", "extend gone", "extend budget",
)  # fmt: skip

WORKLOADS = [
    workload(tag, account, key) for tag in ("Acme01", "Bolt02") for account in (0, 1) for key in (0, 1)
]
LIMITS = [None, 0, 1, 40, 100, 250]

workloads = st.sampled_from(WORKLOADS)
amounts = st.sampled_from([0, 0, 1, 7, 10, 25, 40, 100])
lifetimes_ms = st.sampled_from([1, 1_000, 60_000, 90_000_000])
some = st.integers(0, 999)
# Minutes, hours, days and months that end; a clock that is set back by a little and by a day.
passing_ms = st.sampled_from(
    [1, 999, 59_999, 60_000, 3_600_000, 86_400_000, 7 * 86_400_000, 31 * 86_400_000, -1, -60_000, -86_400_000]
)
budgets = st.builds(
    Budget,
    st.sampled_from(LIMITS),
    st.sampled_from(["never", "hourly", "daily", "weekly", "monthly"]),
    st.sampled_from([1, 15, 29, 31]),
    st.just(0),
)

# Everything that Redis holds of the records, the holds and the events, in one call.
STORED = """
local found = {}
for index = 3, #KEYS do
  found[#found + 1] = redis.call('HMGET', KEYS[index], 'version', 'window', 'window_end', 'spent', 'held')
end
local holds, events = {}, {}
for shard in string.gmatch(ARGV[1], '%S+') do
  local part = redis.call('ZRANGE', 'tk:{' .. shard .. '}:holds', 0, -1, 'WITHSCORES')
  for index = 1, #part do holds[#holds + 1] = part[index] end
  events[#events + 1] = redis.call('XLEN', 'tk:{' .. shard .. '}:events')
end
return {found, holds, events}
"""


class Contract(RuleBasedStateMachine):
    """Redis on one side, the model on the other."""

    client: ClassVar[redis.Redis]
    happened: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.desk = Desk(self.client, clock=True)
        self.model = Model(STARTS_AT_MS)
        self.desk.set_time(STARTS_AT_MS)
        self.seen: list[tuple[Workload, str]] = []  # every form of every hold, also those that are gone
        self.requests = 0
        self.published: dict[str, Rules] = {}
        for of in WORKLOADS:
            for level in LEVELS:
                rules = rules_of(
                    level,
                    of,
                    Budget(Microcredits({"key": 60, "account": 100, "organization": 150}[level]), "daily"),
                )
                name = self.desk.record(rules)
                if name not in self.published:
                    self._publish(name, rules, spent=5)
        self.names = list(self.published)

    def _publish(self, name: str, rules: Rules, window_ms: int = 0, spent: int = 0) -> None:
        self.published[name] = rules
        expected = self.model.publish(name, rules, window_ms, spent)
        assert self.desk.publish(rules, window=window_ms, spent=spent) == expected

    def _note(self, what: str, answer: Answer) -> None:
        self.happened[
            f"{what} {answer[0] if isinstance(answer, list) else 'done' if isinstance(answer, str) else answer}"
        ] += 1

    def _chosen(self, index: int, *, in_flight: bool) -> tuple[Workload, str] | None:
        forms = [form for form in self.seen if (form[1] in self.model.holds) is in_flight]
        return forms[index % len(forms)] if forms else None

    @rule(of=workloads, amount=amounts, ttl_ms=lifetimes_ms)
    def admit(self, of: Workload, amount: int, ttl_ms: int) -> None:
        self._admit(of, amount, ttl_ms, of.digest)

    @rule(of=workloads, amount=amounts)
    def admit_again(self, of: Workload, amount: int) -> None:
        self._admit(of, amount, 60_000, of.digest)

    @rule(of=workloads, amount=amounts)
    def admit_once_more(self, of: Workload, amount: int) -> None:
        """Three rules of one kind: chance picks rules evenly, and admissions are what everything else needs."""
        wrong = self.requests % 5 == 0
        self._admit(of, amount, 1_000, bytes(32) if wrong else of.digest)

    def _admit(self, of: Workload, amount: int, ttl_ms: int, digest: bytes) -> None:
        self.requests += 1
        request = f"r{self.requests}"
        expected = self.model.admit(of, of.records(self.desk.layout), amount, request, ttl_ms, digest)
        answer = self.desk.admit(of, amount, request=request, ttl_ms=ttl_ms, digest=digest)
        assert answer == expected
        self._note("admit", answer)
        if isinstance(answer, str):
            self.seen.append((of, answer))

    @rule(index=some, cost=amounts, in_flight=st.sampled_from([True, True, True, False]))
    def settle(self, index: int, cost: int, in_flight: bool) -> None:
        chosen = self._chosen(index, in_flight=in_flight)
        if chosen is not None:
            self._settle(*chosen, cost, due=False)

    @rule(
        index=some,
        cost=amounts,
        early_ms=st.sampled_from([-1, 0, 0, 1]),
        in_flight=st.sampled_from([True, True, False]),
    )
    def expire(self, index: int, cost: int, early_ms: int, in_flight: bool) -> None:
        """As the expire job does, but a millisecond before the deadline, at it, or after it."""
        chosen = self._chosen(index, in_flight=in_flight)
        if chosen is None:
            return
        if in_flight:
            self._move_clock_to(max(self.model.now_ms, self.model.holds[chosen[1]].deadline_ms - early_ms))
        self._settle(*chosen, cost, due=True)

    def _settle(self, of: Workload, hold: str, cost: int, *, due: bool) -> None:
        event = f'{{"n":{len(self.model.rows)}}}'
        expected = self.model.settle(hold, cost, event, due=due)
        answer = self.desk.settle(of, hold, cost, event, due=due)
        assert answer == expected
        self._note("expire" if due else "settle", answer)

    @rule(
        index=some,
        added=amounts,
        ttl_ms=lifetimes_ms,
        in_flight=st.sampled_from([True, True, True, True, False]),
    )
    def extend(self, index: int, added: int, ttl_ms: int, in_flight: bool) -> None:
        chosen = self._chosen(index, in_flight=in_flight)
        if chosen is None:
            return
        of, hold = chosen
        expected = self.model.extend(hold, added, ttl_ms)
        answer = self.desk.extend(of, hold, added, ttl_ms=ttl_ms)
        assert answer == expected
        self._note("extend", answer)
        if isinstance(answer, str) and answer != hold:
            self.seen.append((of, answer))

    @rule(index=some, limit=st.sampled_from(LIMITS))
    def change_the_limit(self, index: int, limit: int | None) -> None:
        name = self.names[index % len(self.names)]
        old = self.published[name]
        budget = replace(old.budget, limit=None if limit is None else Microcredits(limit))
        self._publish(name, replace(old, version=old.version + 1, budget=budget))

    @rule(index=some, budget=budgets, afresh=st.booleans())
    def change_the_period(self, index: int, budget: Budget, afresh: bool) -> None:
        name = self.names[index % len(self.names)]
        old = self.published[name]
        budget = replace(budget, since_ms=self.model.now_ms if afresh else old.budget.since_ms)
        self._publish(name, replace(old, version=old.version + 1, budget=budget))

    @rule(index=some, status=st.sampled_from(["active", "active", "inactive"]))
    def change_the_status(self, index: int, status: str) -> None:
        name = self.names[index % len(self.names)]
        old = self.published[name]
        status = "disabled" if isinstance(old, KeyRules) and status == "inactive" else status
        self._publish(name, replace(old, version=old.version + 1, status=status))  # type: ignore[arg-type]

    @rule()
    def put_everything_right(self) -> None:
        """Without this most walks end among closed accounts, where nothing happens."""
        for name, old in self.published.items():
            changes: dict[str, Any] = {"expires_at_ms": None} if isinstance(old, KeyRules) else {}
            self._publish(name, replace(old, version=old.version + 1, status="active", **changes))

    @rule(of=workloads, after_ms=st.sampled_from([0, 1, 60_000, 86_400_000]))
    def set_an_expiry(self, of: Workload, after_ms: int) -> None:
        name = self.desk.layout.key(of.key)
        old = self.published[name]
        assert isinstance(old, KeyRules)
        self._publish(name, replace(old, version=old.version + 1, expires_at_ms=self.model.now_ms + after_ms))

    @rule(index=some, behind=st.integers(0, 2), limit=st.sampled_from(LIMITS))
    def publish_too_late(self, index: int, behind: int, limit: int | None) -> None:
        name = self.names[index % len(self.names)]
        newest = self.published[name]
        budget = Budget(None if limit is None else Microcredits(limit), "hourly")
        self._publish(name, replace(newest, version=newest.version - behind, budget=budget), 77, 77)
        self.published[name] = newest

    @rule(ms=passing_ms)
    def time_passes(self, ms: int) -> None:
        self._move_clock_to(max(STARTS_AT_MS, self.model.now_ms + ms))

    def _move_clock_to(self, at_ms: int) -> None:
        """To some microsecond of that millisecond: what counts is the millisecond."""
        self.model.now_ms = at_ms
        self.desk.set_time(at_ms, at_ms // 7 % 1_000)

    @invariant()
    def what_is_stored_is_what_the_model_adds_up(self) -> None:
        self.happened["step"] += 1
        layout = self.desk.layout
        shards = sorted({layout.shard_of(of.tag) for of in WORKLOADS})
        assert len(shards) == 2
        keys = ["tk:clock", "tk:clock", *self.names]
        records, holds, events = self.client.eval(
            STORED, len(keys), *keys, " ".join(f"{shard:02d}" for shard in shards)
        )
        for name, (version, window, window_end, spent, held) in zip(self.names, records, strict=True):
            record = self.model.records[name]
            assert (int(version), int(window)) == (record.rules.version, record.window_ms), name
            assert int(window_end) == record.seen_end_ms, name
            assert int(spent) == self.model.spent(name, record.window_ms), name
            assert int(held) == self.model.held(name, record.window_ms), name
        stored = {member.decode(): int(score) for member, score in zip(holds[::2], holds[1::2], strict=True)}
        assert stored == {packed: hold.deadline_ms for packed, hold in self.model.holds.items()}
        assert sum(events) == len(self.model.rows)

    def teardown(self) -> None:
        """Everything in flight is settled: nothing stays held anywhere, and the stream holds one event a row."""
        for of, hold in list(self.seen):
            self._settle(of, hold, 3, due=False)
        self.what_is_stored_is_what_the_model_adds_up()
        assert {self.client.hget(name, "held") for name in self.names} == {b"0"}
        written = [event for of in (WORKLOADS[0], WORKLOADS[-1]) for event in self.desk.events(of)]
        assert sorted(written) == sorted(row.event for row in self.model.rows)


@pytest.mark.slow
def test_the_scripts_and_the_model_agree_whatever_happens_in_whatever_order(valkey: redis.Redis) -> None:
    Contract.client = valkey
    Contract.happened = Counter()
    run_state_machine_as_test(
        Contract,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, derandomize=True, database=None, deadline=None,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    # A walk that never meets a refusal or a settlement proves nothing about it.
    assert Contract.happened["step"] >= 15_000, Contract.happened
    for what in WHAT_MUST_HAPPEN:
        assert Contract.happened[what] >= 20, (what, Contract.happened)
