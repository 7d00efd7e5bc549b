"""Pace: so many requests a minute, so many of them at once, and so many at the same time, for a key and for an account."""

from itertools import pairwise

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, Pace
from tests.contract.desk import Answer, Desk, Request, hold_of, key_rules, rules_of, workload

NOW_MS = 1_710_504_000_000
MINUTE_MS = 60_000
BUILDER = workload()
SIBLING = workload(key=1)

paced_levels = pytest.mark.parametrize("level", LEVELS[:2])


def paced(desk: Desk, level: Level, pace: Pace) -> None:
    desk.publish_all(BUILDER)
    desk.publish(rules_of(level, BUILDER, pace=pace, version=2))


def passes(answer: Answer) -> bool:
    return hold_of(answer) is not None


def assert_refused_without_a_trace(desk: Desk, expected: Answer) -> None:
    before = desk.everything()
    assert desk.admit(BUILDER, 1, request="refused") == expected
    assert desk.everything() == before


# Requests a minute.


@paced_levels
def test_first_a_whole_burst_passes_and_then_one_request_an_interval(clocked: Desk, level: Level) -> None:
    paced(clocked, level, Pace(60, 5))
    admitted = [passes(clocked.admit(BUILDER, request=f"r{number}")) for number in range(7)]
    assert admitted == [True] * 5 + [False] * 2
    for second in range(1, 5):
        clocked.set_time(NOW_MS + second * 1_000)
        assert passes(clocked.admit(BUILDER, request=f"s{second}"))
        assert_refused_without_a_trace(clocked, ["rate", level, 60, 5, 1_000])


@paced_levels
def test_without_a_burst_of_its_own_a_whole_minutes_requests_may_come_at_once(
    clocked: Desk, level: Level
) -> None:
    paced(clocked, level, Pace(3))
    assert [passes(clocked.admit(BUILDER, request=f"r{n}")) for n in range(3)] == [True] * 3
    assert_refused_without_a_trace(clocked, ["rate", level, 3, 3, 20_000])


@paced_levels
@pytest.mark.parametrize(
    "pace", [Pace(1, 1), Pace(7, 2), Pace(60, 3), Pace(900, 1), Pace(7_000, 4), Pace(999_999, 2)]
)
def test_waiting_as_long_as_is_answered_passes_and_a_millisecond_less_does_not(
    clocked: Desk, level: Level, pace: Pace
) -> None:
    paced(clocked, level, pace)
    clocked.set_time(NOW_MS, 417)
    answer = clocked.admit_many([Request(BUILDER, 0, f"r{number}") for number in range(5)])[-1]
    assert isinstance(answer, list)
    assert answer[:4] == ["rate", level, pace.per_minute, pace.burst]
    retry_after_ms = int(answer[4])
    assert retry_after_ms >= 1
    clocked.set_time(NOW_MS + retry_after_ms - 1, 417)
    assert not passes(clocked.admit(BUILDER, request="early"))
    clocked.set_time(NOW_MS + retry_after_ms, 417)
    assert passes(clocked.admit(BUILDER, request="in time"))


def test_never_more_than_the_burst_and_the_rate_pass_in_any_interval(valkey: redis.Redis) -> None:
    """Whatever the rate, also where a minute does not divide into whole microseconds, and however the requests come."""
    waits_us = st.integers(0, 3) | st.integers(0, 200) | st.integers(0, 200_000) | st.integers(0, 30_000_000)

    @settings(max_examples=60, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        per_minute=st.sampled_from([1, 7, 59, 601, 7_001, 99_999, 508_475, 990_000, 1_000_000]),
        burst=st.integers(1, 4),
        waits=st.lists(st.tuples(st.integers(1, 4), waits_us), min_size=5, max_size=25),
    )
    def bounded(per_minute: int, burst: int, waits: list[tuple[int, int]]) -> None:
        valkey.flushdb()
        desk = Desk(valkey, clock=True)
        paced(desk, "key", Pace(per_minute, burst))
        at_us, times = NOW_MS * 1_000, []
        for number, (count, wait_us) in enumerate(waits):
            at_us += wait_us
            desk.set_time(at_us // 1_000, at_us % 1_000)
            answers = desk.admit_many([Request(BUILDER, 0, f"r{number}-{each}") for each in range(count)])
            times += [at_us for answer in answers if passes(answer)]
        for first, start_us in enumerate(times):
            for last in range(first, len(times)):
                # count <= burst + rate * time, in whole numbers
                span_us = times[last] - start_us
                assert (last - first + 1 - burst) * 60_000_000 <= per_minute * span_us

    bounded()


@pytest.mark.parametrize("per_minute", [990_000, 508_475, 7])
def test_as_fast_as_it_lets_no_more_than_the_rate_pass_in_the_long_run(
    clocked: Desk, per_minute: int
) -> None:
    paced(clocked, "key", Pace(per_minute, 1))
    interval_us = 60_000_000 // per_minute  # rounded down: it knocks a little too early each time
    at_us, passed_at = NOW_MS * 1_000, []
    for number in range(600):
        clocked.set_time(at_us // 1_000, at_us % 1_000)
        if passes(clocked.admit(BUILDER, request=f"r{number}")):
            passed_at.append(at_us)
            at_us += interval_us
        else:
            at_us += 1
    assert len(passed_at) > 200
    span_us = passed_at[-1] - passed_at[0]
    assert (len(passed_at) - 1) * 60_000_000 <= per_minute * span_us
    # And hardly less: each waits two microseconds at most.
    assert max(after - before for before, after in pairwise(passed_at)) <= interval_us + 2


@paced_levels
def test_refused_requests_burn_neither_the_rate_nor_a_place(clocked: Desk, level: Level) -> None:
    paced(clocked, level, Pace(60, 1, 5))
    clocked.admitted(BUILDER)
    for number in range(1, 900):
        clocked.set_time(NOW_MS + number)
        assert not passes(clocked.admit(BUILDER, request=f"n{number}"))
    assert clocked.counter(BUILDER, level, "in_flight") == 1
    clocked.set_time(NOW_MS + 1_000)
    assert passes(clocked.admit(BUILDER, request="r2"))


@pytest.mark.parametrize("refused_by", ["budget", "status", "digest", "in_flight"])
def test_who_is_refused_for_another_reason_burns_no_rate_either(clocked: Desk, refused_by: str) -> None:
    clocked.publish_all(BUILDER, organization=Budget(Microcredits(100)))
    clocked.publish(rules_of("key", BUILDER, pace=Pace(60, 1), version=2))
    full = Pace(60, 1, 0 if refused_by == "in_flight" else None)
    clocked.publish(rules_of("account", BUILDER, pace=full, version=2))
    if refused_by == "status":
        clocked.publish(key_rules(BUILDER, version=3, status="disabled", pace=Pace(60, 1)))
    digest = bytes(32) if refused_by == "digest" else None
    answer = clocked.admit(BUILDER, 101 if refused_by == "budget" else 1, digest=digest)
    assert isinstance(answer, list)
    assert answer[0] == refused_by
    assert [clocked.counter(BUILDER, level, "tat") for level in LEVELS[:2]] == [0, 0]
    clocked.publish(rules_of("account", BUILDER, pace=Pace(60, 1), version=4))
    clocked.publish(rules_of("key", BUILDER, pace=Pace(60, 1), version=4))
    clocked.admitted(BUILDER, 1, request="r2")


def test_a_key_that_is_refused_by_its_account_burns_none_of_its_own_rate(clocked: Desk) -> None:
    for of in (BUILDER, SIBLING):
        clocked.publish_all(of)
        clocked.publish(rules_of("key", of, pace=Pace(60, 1), version=2))
    clocked.publish(rules_of("account", BUILDER, pace=Pace(1, 1), version=2))
    clocked.admitted(SIBLING)
    assert_refused_without_a_trace(clocked, ["rate", "account", 1, 1, MINUTE_MS])
    assert clocked.counter(BUILDER, "key", "tat") == 0


def test_keys_of_an_account_share_its_pace_and_other_accounts_have_their_own(clocked: Desk) -> None:
    others = workload(account=1)
    for of in (BUILDER, SIBLING, others):
        clocked.publish_all(of)
        clocked.publish(rules_of("account", of, pace=Pace(1, 2), version=2))
    clocked.admitted(BUILDER)
    clocked.admitted(SIBLING)
    assert clocked.admit(SIBLING, request="r2") == ["rate", "account", 1, 2, MINUTE_MS]
    clocked.admitted(others)


def test_the_key_is_asked_before_the_account_and_pace_before_credits(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    for level in LEVELS[:2]:
        budget = Budget(Microcredits(0))
        clocked.publish(rules_of(level, BUILDER, budget, pace=Pace(in_flight=0), version=2))
    assert clocked.admit(BUILDER) == ["in_flight", "key", 0, 0]
    clocked.publish(rules_of("key", BUILDER, Budget(Microcredits(0)), version=3))
    assert clocked.admit(BUILDER) == ["in_flight", "account", 0, 0]
    clocked.publish(rules_of("account", BUILDER, version=3))
    assert clocked.admit(BUILDER) == ["budget", "key", 0, 0, 0, 0]


@paced_levels
@pytest.mark.parametrize("raised", [Pace(6_000), Pace(60, 1)])
def test_the_first_request_after_a_rate_was_raised_passes_and_then_the_new_rate_counts(
    clocked: Desk, level: Level, raised: Pace
) -> None:
    paced(clocked, level, Pace(1, 60))
    clocked.admit_many([Request(BUILDER, 0, f"r{number}") for number in range(60)])
    assert_refused_without_a_trace(clocked, ["rate", level, 1, 60, MINUTE_MS])
    clocked.publish(rules_of(level, BUILDER, pace=raised, version=3))
    clocked.admitted(BUILDER, request="raised")
    assert raised.per_minute is not None
    interval_ms = MINUTE_MS // raised.per_minute
    for number in range(1, 4):
        burst = raised.burst or raised.per_minute
        assert_refused_without_a_trace(clocked, ["rate", level, raised.per_minute, burst, interval_ms])
        clocked.set_time(NOW_MS + number * interval_ms)
        clocked.admitted(BUILDER, request=f"n{number}")


@paced_levels
def test_a_lowered_rate_and_one_that_is_lifted_count_at_once(clocked: Desk, level: Level) -> None:
    paced(clocked, level, Pace(600, 10))
    clocked.admitted(BUILDER)
    clocked.publish(rules_of(level, BUILDER, pace=Pace(1, 1), version=3))
    clocked.admit(BUILDER, request="r2")
    answer = clocked.admit(BUILDER, request="r3")
    assert isinstance(answer, list)
    assert answer[:4] == ["rate", level, 1, 1]
    clocked.publish(rules_of(level, BUILDER, version=4))
    for number in range(20):
        clocked.admitted(BUILDER, request=f"n{number}")


@paced_levels
def test_a_clock_set_back_does_not_lock_anybody_out(clocked: Desk, level: Level) -> None:
    """What is owed is never more than a whole burst, whenever it was used."""
    paced(clocked, level, Pace(60, 2))
    clocked.set_time(NOW_MS + 86_400_000)
    clocked.admit_many([Request(BUILDER, 0, f"r{number}") for number in range(2)])
    clocked.set_time(NOW_MS)
    for second in range(3):
        clocked.set_time(NOW_MS + second * 1_000)
        clocked.admitted(BUILDER, request=f"b{second}")
        assert_refused_without_a_trace(clocked, ["rate", level, 60, 2, 1_000])


@paced_levels
def test_a_pace_knows_no_windows(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER)
    clocked.set_time(NOW_MS + 3_600_000 - 1)
    rules = rules_of(level, BUILDER, Budget(None, "hourly"), pace=Pace(1, 1, 5), version=2)
    clocked.publish(rules)
    clocked.admitted(BUILDER)
    clocked.set_time(NOW_MS + 3_600_000)
    assert_refused_without_a_trace(clocked, ["rate", level, 1, 1, MINUTE_MS - 1])
    assert clocked.counter(BUILDER, level, "in_flight") == 1


# Requests at the same time.


@pytest.mark.parametrize(
    ("key", "account", "is_bounded"),
    [(Pace(), Pace(), False), (Pace(60, 9), Pace(60, 9), False), (Pace(in_flight=9), Pace(), True),
     (Pace(), Pace(in_flight=9), True), (Pace(60, 9, 9), Pace(in_flight=9), True)],
)  # fmt: skip
def test_an_admission_says_whether_its_place_is_one_of_a_bounded_number(
    clocked: Desk, key: Pace, account: Pace, is_bounded: bool
) -> None:
    """Whoever has such a place gives it back before its client can ask for another."""
    clocked.publish_all(BUILDER)
    for level, pace in zip(LEVELS[:2], (key, account), strict=True):
        clocked.publish(rules_of(level, BUILDER, pace=pace, version=2))
    answer = clocked.admit(BUILDER)
    hold = hold_of(answer)
    assert hold is not None
    assert answer == (["placed", hold] if is_bounded else hold)
    clocked.publish(rules_of("organization", BUILDER, Budget(Microcredits(0), enforcement="observe"), 2))
    watched = clocked.admit(BUILDER, request="r2")
    assert isinstance(watched, list)
    assert [watched[0], *watched[2:]] == ["observed", "organization", "budget"]


@paced_levels
def test_so_many_at_the_same_time_and_not_one_more(clocked: Desk, level: Level) -> None:
    paced(clocked, level, Pace(in_flight=3))
    holds = [clocked.admitted(BUILDER, 1, request=f"r{number}") for number in range(3)]
    assert_refused_without_a_trace(clocked, ["in_flight", level, 3, 3])
    assert clocked.settle(BUILDER, holds[1], 1) == 1
    clocked.admitted(BUILDER, 1, request="r4")
    assert_refused_without_a_trace(clocked, ["in_flight", level, 3, 3])


@paced_levels
def test_a_place_is_freed_when_its_hold_expires(clocked: Desk, level: Level) -> None:
    paced(clocked, level, Pace(in_flight=1))
    hold = clocked.admitted(BUILDER, ttl_ms=1_000)
    clocked.set_time(NOW_MS + 1_000)
    assert_refused_without_a_trace(clocked, ["in_flight", level, 1, 1])
    assert clocked.settle(BUILDER, hold, due=True) == 1
    clocked.admitted(BUILDER, request="r2")


@paced_levels
def test_no_places_at_all_block_every_request(clocked: Desk, level: Level) -> None:
    paced(clocked, level, Pace(in_flight=0))
    assert_refused_without_a_trace(clocked, ["in_flight", level, 0, 0])


def test_a_topped_up_request_keeps_its_one_place(clocked: Desk) -> None:
    paced(clocked, "account", Pace(in_flight=1))
    grown = clocked.extend(BUILDER, clocked.admitted(BUILDER, 1), 5)
    assert isinstance(grown, str)
    assert clocked.counter(BUILDER, "account", "in_flight") == 1
    assert clocked.settle(BUILDER, grown, 6) == 1
    assert [clocked.counter(BUILDER, level, "in_flight") for level in LEVELS] == [0, 0, 0]


def test_settling_twice_frees_one_place(clocked: Desk) -> None:
    paced(clocked, "key", Pace(in_flight=2))
    first, _ = clocked.admitted(BUILDER), clocked.admitted(BUILDER, request="r2")
    assert [clocked.settle(BUILDER, first), clocked.settle(BUILDER, first)] == [1, 0]
    assert clocked.counter(BUILDER, "key", "in_flight") == 1


@paced_levels
def test_never_are_there_less_than_none_in_flight(clocked: Desk, level: Level) -> None:
    """A record that was written again while holds lived starts with nothing in flight."""
    clocked.publish_all(BUILDER)
    holds = [clocked.admitted(BUILDER, 1, request=f"r{number}") for number in range(2)]
    clocked.client.delete(BUILDER.records(clocked.layout)[LEVELS.index(level)])
    clocked.publish(rules_of(level, BUILDER, pace=Pace(in_flight=1)))
    for hold in holds:
        assert clocked.settle(BUILDER, hold, 1) == 1
    assert clocked.counter(BUILDER, level, "in_flight") == 0
    clocked.admitted(BUILDER, request="r3")
    assert_refused_without_a_trace(clocked, ["in_flight", level, 1, 1])


def test_a_hold_of_an_ended_window_still_has_its_place_and_frees_it(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=Budget(None, "hourly"))
    clocked.publish(rules_of("key", BUILDER, Budget(None, "hourly"), pace=Pace(in_flight=2), version=2))
    old = clocked.admitted(BUILDER, 5)
    clocked.set_time(NOW_MS + 3_600_000)
    clocked.admitted(BUILDER, 5, request="r2")
    assert_refused_without_a_trace(clocked, ["in_flight", "key", 2, 2])
    clocked.settle(BUILDER, old, 5)
    assert clocked.counter(BUILDER, "key", "in_flight") == 1


@paced_levels
def test_places_lowered_under_what_is_in_flight_open_when_enough_has_ended(
    clocked: Desk, level: Level
) -> None:
    paced(clocked, level, Pace(in_flight=3))
    holds = [clocked.admitted(BUILDER, request=f"r{number}") for number in range(3)]
    clocked.publish(rules_of(level, BUILDER, pace=Pace(in_flight=1), version=3))
    assert_refused_without_a_trace(clocked, ["in_flight", level, 1, 3])
    for hold in holds[:2]:
        clocked.settle(BUILDER, hold)
    assert_refused_without_a_trace(clocked, ["in_flight", level, 1, 1])
    clocked.settle(BUILDER, holds[2])
    clocked.admitted(BUILDER, request="r4")
