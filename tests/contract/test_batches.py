"""Batches: what is admitted or settled together is no other than what is admitted or settled one by one."""

from collections.abc import Sequence
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.grants import Grant
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, Pace
from tests.contract.desk import Desk, Request, Settlement, hold_of, is_alert, read_alert, rules_of, workload

NOW_MS = 1_710_504_000_000
BUILDER = workload()
CROWD = [workload(account=account, key=key) for account in (0, 1) for key in (0, 1)]

every_level = pytest.mark.parametrize("level", LEVELS)
quickly = settings(
    max_examples=120, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
amounts = st.sampled_from([0, 0, 1, 7, 20, 40])
asked = st.lists(st.tuples(st.integers(0, 3), amounts, st.integers(0, 9)), min_size=1, max_size=12)


def crowded(client: redis.Redis) -> Desk:
    """Four keys of two accounts with a bound of every kind, some of which only observe; a grant has just expired."""
    client.flushdb()
    desk = Desk(client, clock=True)
    desk.set_time(NOW_MS)
    for of in CROWD:
        budget = Budget(
            Microcredits(60),
            "daily",
            enforcement="observe" if of is CROWD[1] else "enforce",
            alerts=(10, 50, 80),
        )
        desk.publish(rules_of("key", of, budget, pace=Pace(7, 3, 4)))
    desk.publish(rules_of("account", CROWD[0], Budget(Microcredits(70)), pace=Pace(in_flight=6)))
    observing = Budget(Microcredits(50), enforcement="observe")
    desk.publish(rules_of("account", CROWD[2], observing, pace=Pace(60, 2)))
    grants = (Grant(NOW_MS, Microcredits(30)), Grant(NOW_MS + 1, Microcredits(60)))
    desk.publish(rules_of("organization", CROWD[0], Budget(Microcredits(150)), grants=grants), spent=5)
    return desk


def contents(desk: Desk) -> dict[str, Any]:
    """Records and holds, field by field; what is cached of an alert's place is no part of it."""
    client, names = desk.client, {name for of in CROWD for name in of.records(desk.layout)}
    found: dict[str, Any] = {name: client.hgetall(name) for name in names}
    for fields in found.values():
        fields.pop(b"alert_at", None)
    found["holds"] = client.zrange(desk.holds(BUILDER), 0, -1, withscores=True)
    found["events"] = desk.events(BUILDER)
    return found


def asked_of(wanted: Sequence[tuple[int, int, int]]) -> list[Request]:
    """One in ten with a wrong digest."""
    return [
        Request(CROWD[index], amount, f"r{number}", None if chance else bytes(32))
        for number, (index, amount, chance) in enumerate(wanted)
    ]


def test_a_batch_of_admissions_is_no_other_than_its_requests_one_by_one(valkey: redis.Redis) -> None:
    kinds: set[str] = set()

    @quickly
    @given(asked)
    def same(wanted: list[tuple[int, int, int]]) -> None:
        requests = asked_of(wanted)
        desk = crowded(valkey)
        together, after = desk.admit_many(requests), contents(desk)
        desk = crowded(valkey)
        assert [desk.admit_many([request])[0] for request in requests] == together
        assert contents(desk) == after
        kinds.update(str(answer[0]) if isinstance(answer, list) else "admitted" for answer in together)

    same()
    assert kinds == {"placed", "observed", "digest", "budget", "rate", "in_flight"}


def test_a_batch_of_settlements_is_no_other_than_its_settlements_one_by_one(valkey: redis.Redis) -> None:
    """But for alerts, which all tell what is spent in the end: the same thresholds are told, each once."""
    thresholds: set[int] = set()

    def booked(
        wanted: list[tuple[int, int, int]], chosen: list[tuple[int, int]], due: bool, size: int
    ) -> tuple[list[int], dict[str, Any], list[tuple[str, int]]]:
        desk = crowded(valkey)
        answers = desk.admit_many(asked_of(wanted))
        holds = [
            (CROWD[index], hold_of(answer)) for (index, _, _), answer in zip(wanted, answers, strict=True)
        ]
        placed = [(of, hold) for of, hold in holds if hold is not None]
        batch = [
            Settlement(*placed[index % len(placed)], cost, f'{{"n":{number}}}')
            for number, (index, cost) in enumerate(chosen if placed else [])
        ]
        desk.set_time(NOW_MS + 60_000)
        found = [
            answer
            for start in range(0, len(batch), size)
            for answer in desk.settle_many(batch[start : start + size], due=due)
        ]
        told = sorted((alert.id, alert.threshold) for alert in desk.alerts(BUILDER))
        return found, contents(desk), told

    @quickly
    @given(asked, st.lists(st.tuples(st.integers(0, 5), amounts), min_size=1, max_size=12), st.booleans())
    def same(wanted: list[tuple[int, int, int]], chosen: list[tuple[int, int]], due: bool) -> None:
        together = booked(wanted, chosen, due, len(chosen))
        assert together == booked(wanted, chosen, due, 1)
        thresholds.update(threshold for _, threshold in together[2])

    same()
    assert thresholds == {10, 50, 80, 100}


def test_of_a_batch_the_first_get_what_is_left_and_the_others_are_told_so(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, organization=Budget(Microcredits(100)))
    answers = clocked.admit_many([Request(BUILDER, 30, f"r{number}") for number in range(5)])
    assert [isinstance(answer, str) for answer in answers] == [True, True, True, False, False]
    assert answers[3:] == [["budget", "organization", 100, 0, 90, 0]] * 2
    assert clocked.counters(BUILDER, "organization") == (0, 90)
    assert clocked.client.zcard(clocked.holds(BUILDER)) == 3


def test_a_smaller_request_after_one_that_was_refused_may_still_fit(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=Budget(Microcredits(100)))
    answers = clocked.admit_many([Request(BUILDER, amount, f"r{amount}") for amount in (70, 40, 30, 1)])
    assert [isinstance(answer, str) for answer in answers] == [True, False, True, False]
    assert clocked.counters(BUILDER, "key") == (0, 100)


def test_a_whole_batch_that_nobody_waits_for_any_more_leaves_no_hold(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    before = clocked.everything()
    batch = [Request(BUILDER, 5, f"r{number}") for number in range(3)]
    assert clocked.admit_many(batch, until_ms=NOW_MS - 1) == [["late"]] * 3
    assert clocked.everything() == before


@every_level
def test_a_record_that_is_missing_or_broken_hurts_only_its_own_requests(clocked: Desk, level: Level) -> None:
    gone, broken, whole = workload(key=1, account=1), workload("Cask13"), BUILDER
    if level == "organization":
        gone = workload("Cask24")
    for of in (gone, broken, whole):
        clocked.publish_all(of)
    place = LEVELS.index(level)
    clocked.client.delete(gone.records(clocked.layout)[place])
    clocked.client.set(broken.records(clocked.layout)[place], "no record")
    batch = [Request(of, 10, f"r{number}") for number, of in enumerate((broken, whole, gone, whole, broken))]
    answers = clocked.admit_many(batch)
    assert [answers[index] for index in (0, 2, 4)] == [
        ["broken", level],
        ["missing", level],
        ["broken", level],
    ]
    assert all(isinstance(answers[index], str) for index in (1, 3))
    assert [clocked.counters(whole, each) for each in LEVELS] == [(0, 20)] * 3
    for of in (broken, gone):
        intact = [
            each
            for each in LEVELS
            if each != level and (each, level, of) != ("organization", "account", gone)
        ]
        expected = 20 if of.tag == whole.tag else 0
        assert [clocked.counters(of, each)[1] for each in intact] == [
            expected if each == "organization" else 0 for each in intact
        ]


@every_level
def test_a_record_that_broke_under_a_hold_takes_no_counters_and_all_others_do(
    clocked: Desk, level: Level
) -> None:
    broken, whole = workload("Cask13"), BUILDER
    for of in (broken, whole):
        clocked.publish_all(of)
    first, second = clocked.admitted(broken, 10), clocked.admitted(whole, 20, request="r2")
    clocked.client.set(broken.records(clocked.layout)[LEVELS.index(level)], "no record")
    batch = [Settlement(broken, first, 7, '{"n":1}'), Settlement(whole, second, 8, '{"n":2}')]
    assert clocked.settle_many(batch) == [1, 1]
    assert clocked.events(whole) == ['{"n":1}', '{"n":2}']
    assert [clocked.counters(whole, each) for each in LEVELS] == [(8, 0)] * 3
    assert [clocked.counters(broken, each) for each in LEVELS if each != level] == [(7, 0)] * 2
    assert clocked.client.zcard(clocked.holds(whole)) == 0


def test_a_hold_that_is_twice_in_a_batch_is_settled_once_by_the_first(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold, other = clocked.admitted(BUILDER, 10), clocked.admitted(BUILDER, 10, request="r2")
    batch = [
        Settlement(BUILDER, hold, 3, '{"n":1}'),
        Settlement(BUILDER, other, 5, '{"n":2}'),
        Settlement(BUILDER, hold, 9, '{"n":3}'),
    ]
    assert clocked.settle_many(batch) == [1, 1, 0]
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(8, 0)] * 3
    assert [clocked.counter(BUILDER, level, "in_flight") for level in LEVELS] == [0, 0, 0]
    assert clocked.events(BUILDER) == ['{"n":1}', '{"n":2}']


def test_of_a_batch_only_what_is_due_expires(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    holds = [clocked.admitted(BUILDER, 10, request=f"r{ttl_ms}", ttl_ms=ttl_ms) for ttl_ms in (1, 2, 3)]
    clocked.set_time(NOW_MS + 2)
    batch = [Settlement(BUILDER, hold, 10) for hold in (*holds, "r9|gone")]
    assert clocked.settle_many(batch, due=True) == [1, 1, -1, 0]
    assert clocked.counters(BUILDER, "account") == (20, 10)


def test_a_batch_in_which_nothing_is_to_be_settled_changes_nothing(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 10)
    before = clocked.everything()
    batch = [Settlement(BUILDER, hold, 10), Settlement(BUILDER, "r9|gone", 10)]
    assert clocked.settle_many(batch, due=True) == [-1, 0]
    assert clocked.everything() == before


def test_what_a_batch_appends_is_its_usage_events_in_order_and_then_its_alerts(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=Budget(Microcredits(100), alerts=(50, 90)))
    holds = [clocked.admitted(BUILDER, 30, request=f"r{number}") for number in range(3)]
    batch = [Settlement(BUILDER, hold, 30, f'{{"n":{number}}}') for number, hold in enumerate(holds)]
    assert clocked.settle_many(batch) == [1, 1, 1]
    appended = clocked.stream(BUILDER)
    assert appended[:3] == ['{"n":0}', '{"n":1}', '{"n":2}']
    told = [read_alert(event) for event in appended[3:] if is_alert(event)]
    assert [(alert.level, alert.threshold, alert.spent) for alert in told] == [
        ("account", 50, 90),
        ("account", 90, 90),
    ]
    assert len(appended) == 5


def test_a_batch_as_large_as_the_gateway_sends_is_admitted_and_settled(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    holds = clocked.admit_many([Request(BUILDER, 1, f"r{number}") for number in range(500)])
    assert all(isinstance(hold, str) for hold in holds)
    assert clocked.settle_many([Settlement(BUILDER, str(hold), 2) for hold in holds]) == [1] * 500
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(1_000, 0)] * 3
    assert len(clocked.events(BUILDER)) == 500
