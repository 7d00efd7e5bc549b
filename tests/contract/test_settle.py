"""settle: a hold becomes its cost and one event, exactly once, whoever sends it and however often."""

import pytest
import redis

from gateway.contract.ids import LEVELS
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget
from tests.contract.desk import Desk, rules_of, workload

NOW_MS = 1_710_504_000_000
DAY_MS = 86_400_000
NEXT_MIDNIGHT_MS = NOW_MS + DAY_MS // 2
BUILDER = workload()
EVENT = '{"request_id":"r1","path":"/é|%s\\u0000"}'


@pytest.mark.parametrize("cost", [0, 1, 40, 41, 10_000])
def test_a_hold_becomes_its_cost_at_all_three_levels_and_one_event(clocked: Desk, cost: int) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    assert clocked.settle(BUILDER, hold, cost, EVENT) == 1
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(cost, 0)] * 3
    assert clocked.events(BUILDER) == [EVENT]
    assert clocked.client.zcard(clocked.holds(BUILDER)) == 0


@pytest.mark.parametrize("due", [False, True])
def test_settling_again_changes_nothing(clocked: Desk, due: bool) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40, ttl_ms=0)
    clocked.settle(BUILDER, hold, 30, EVENT)
    before = clocked.everything()
    assert clocked.settle(BUILDER, hold, 99, "{}", due=due) == 0
    assert clocked.everything() == before


@pytest.mark.parametrize("junk", ["", "|", "r9|x|y|z|models|5|1|0|0|0", "%d+", "(" * 50])
def test_what_was_never_held_settles_nothing(clocked: Desk, junk: str) -> None:
    clocked.publish_all(BUILDER)
    clocked.admitted(BUILDER, 40)
    before = clocked.everything()
    assert clocked.settle(BUILDER, junk, 5) == 0
    assert clocked.everything() == before


def test_one_settlement_leaves_the_other_holds_alone(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    first, second = clocked.admitted(BUILDER, 40), clocked.admitted(BUILDER, 7, request="r2")
    clocked.settle(BUILDER, first, 25)
    assert clocked.counters(BUILDER, "account") == (25, 7)
    clocked.settle(BUILDER, second, 9)
    assert clocked.counters(BUILDER, "account") == (34, 0)


def test_what_is_not_due_is_left_alone_until_its_millisecond(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40, ttl_ms=1_000)
    clocked.set_time(NOW_MS + 999, 999)
    before = clocked.everything()
    assert clocked.settle(BUILDER, hold, 40, EVENT, due=True) == -1
    assert clocked.everything() == before
    clocked.set_time(NOW_MS + 1_000)
    assert clocked.settle(BUILDER, hold, 40, EVENT, due=True) == 1
    assert clocked.counters(BUILDER, "key") == (40, 0)


def test_a_gateway_may_settle_after_the_deadline_if_nobody_was_quicker(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40, ttl_ms=1_000)
    clocked.set_time(NOW_MS + DAY_MS)
    assert clocked.settle(BUILDER, hold, 12) == 1


def test_a_hold_of_an_ended_window_settles_without_touching_the_new_one(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=Budget(Microcredits(100), "daily"))
    old = clocked.admitted(BUILDER, 60)
    clocked.set_time(NEXT_MIDNIGHT_MS)
    new = clocked.admitted(BUILDER, 100, request="r2")
    assert clocked.settle(BUILDER, old, 60, EVENT) == 1
    assert clocked.counters(BUILDER, "account") == (0, 100)
    assert clocked.counters(BUILDER, "key") == (60, 100)
    assert clocked.events(BUILDER) == [EVENT]
    assert clocked.settle(BUILDER, new, 90) == 1
    assert clocked.counters(BUILDER, "account") == (90, 0)


def test_a_hold_settles_into_its_window_as_long_as_nobody_was_admitted_to_the_next(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=Budget(Microcredits(100), "daily"))
    old = clocked.admitted(BUILDER, 60)
    clocked.set_time(NEXT_MIDNIGHT_MS)
    assert clocked.settle(BUILDER, old, 100) == 1
    assert clocked.counters(BUILDER, "account") == (100, 0)
    clocked.admitted(BUILDER, 100, request="r2")
    assert clocked.counters(BUILDER, "account") == (0, 100)


@pytest.mark.parametrize("level", LEVELS)
def test_a_record_that_is_gone_takes_no_counters_but_the_event_is_written(clocked: Desk, level: str) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    gone = BUILDER.records(clocked.layout)[LEVELS.index(level)]
    clocked.client.delete(gone)
    assert clocked.settle(BUILDER, hold, 30, EVENT) == 1
    assert clocked.client.exists(gone) == 0
    assert clocked.events(BUILDER) == [EVENT]
    assert [clocked.counters(BUILDER, other) for other in LEVELS if other != level] == [(30, 0)] * 2


def test_a_cost_beyond_the_limit_is_booked_whole(clocked: Desk) -> None:
    """The request has been served; what it cost is the truth, and the next one is refused."""
    clocked.publish_all(BUILDER, key=Budget(Microcredits(100)))
    hold = clocked.admitted(BUILDER, 100)
    clocked.settle(BUILDER, hold, 250)
    assert clocked.counters(BUILDER, "key") == (250, 0)
    assert clocked.admit(BUILDER, 0, request="r2") == ["budget", "key", 100, 250, 0, 0]


def test_a_full_redis_admits_nothing_and_still_settles_what_is_in_flight(clocked: Desk) -> None:
    """At maxmemory a script is stopped at its first write that needs memory; settle starts with one that frees some."""
    clocked.publish_all(BUILDER)
    hold, other = clocked.admitted(BUILDER, 40), clocked.admitted(BUILDER, 10, request="r2")
    before = clocked.everything()
    clocked.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.OutOfMemoryError):
            clocked.admit(BUILDER, 1, request="r3")
        with pytest.raises(redis.OutOfMemoryError):
            clocked.extend(BUILDER, other, 1)
        after_refusals = clocked.everything()
        assert clocked.settle(BUILDER, hold, 30, EVENT) == 1
    finally:
        clocked.client.config_set("maxmemory", "0")
    assert after_refusals == before
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(30, 10)] * 3
    assert clocked.events(BUILDER) == [EVENT]


def test_a_free_hold_that_came_to_cost_something_is_booked(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 0)
    clocked.settle(BUILDER, hold, 1)
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(1, 0)] * 3


def test_a_record_written_again_under_a_living_hold_never_holds_less_than_nothing(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=Budget(Microcredits(100)))
    hold = clocked.admitted(BUILDER, 40)
    clocked.client.delete(BUILDER.records(clocked.layout)[1])
    clocked.publish(rules_of("account", BUILDER, Budget(Microcredits(100))))
    clocked.admitted(BUILDER, 10)
    clocked.settle(BUILDER, hold, 40)
    assert clocked.counters(BUILDER, "account") == (40, 0)
    assert clocked.counters(BUILDER, "key")[1] == 10
