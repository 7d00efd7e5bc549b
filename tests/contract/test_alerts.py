"""Alerts: a settlement that takes what is spent to a threshold says so, once a threshold, entity and window."""

from dataclasses import replace

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.grants import Grant
from gateway.contract.ids import LEVELS, AccountId, Level
from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.contract.records import Budget
from gateway.contract.usage_event import AlertCrossing
from tests.contract.alert_desk import (
    BUILDER,
    MIDNIGHT_MS,
    NOW_MS,
    change,
    every_level,
    limited,
    spend,
    told,
)
from tests.contract.desk import Desk, Settlement, rules_of, workload


@every_level
def test_by_default_80_and_100_percent_are_told_each_with_all_there_is_to_know(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(1_000, "daily")})
    spend(clocked, 799)
    assert told(clocked) == []
    clocked.set_time(NOW_MS + 5, 999)
    spend(clocked, 1)
    clocked.set_time(NOW_MS + 7)
    spend(clocked, 250)
    own_id = {"key": BUILDER.key, "account": BUILDER.account, "organization": BUILDER.tag}[level]
    first = AlertCrossing(
        organization=BUILDER.tag, level=level, id=own_id, window_ms=MIDNIGHT_MS, threshold=80, limit=1_000, spent=800,
        at_ms=NOW_MS + 5,
    )  # fmt: skip
    assert clocked.alerts(BUILDER) == [first, replace(first, threshold=100, spent=1_050, at_ms=NOW_MS + 7)]


def test_an_alert_of_a_member_names_the_organization_too(clocked: Desk) -> None:
    member = replace(BUILDER, account=AccountId(f"mb_{BUILDER.tag}0000000001"))
    clocked.publish_all(member, account=limited(10))
    spend(clocked, 10, of=member)
    assert {(alert.organization, alert.id) for alert in clocked.alerts(member)} == {
        (BUILDER.tag, member.account)
    }


def test_a_settlement_that_crosses_at_all_levels_tells_each(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100), account=limited(110), organization=limited(1_000))
    spend(clocked, 100)
    crossings = [(alert.level, alert.threshold) for alert in clocked.alerts(BUILDER)]
    assert crossings == [("key", 80), ("key", 100), ("account", 80)]


@pytest.mark.parametrize("limit", [1, 3, 7, 101, 1_000_003, 999_999_999_999_999, AMOUNT_MAX])
@pytest.mark.parametrize("threshold", [1, 33, 80, 99, 100, 101, 900])
def test_a_threshold_is_crossed_at_its_very_microcredit(clocked: Desk, limit: int, threshold: int) -> None:
    at = -(-limit * threshold // 100)
    clocked.publish_all(BUILDER, key=limited(limit, alerts=(threshold,), enforcement="observe"))
    if at > 1:
        spend(clocked, at - 1)
        assert told(clocked) == []
        answer = clocked.admit(BUILDER, request="last")
        hold = answer[1] if isinstance(answer, list) else answer
        assert clocked.settle(BUILDER, str(hold), 1) == 1
    else:
        spend(clocked, 1)
    assert told(clocked) == [threshold]


def test_any_list_of_thresholds_is_told_each_once_as_it_is_reached(valkey: redis.Redis) -> None:
    """Whatever the limit, the thresholds and the costs; in the end those are told that lie at or below what is spent."""

    @settings(max_examples=60, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        limit=st.integers(1, 200) | st.integers(1, AMOUNT_MAX // 2),
        thresholds=st.sets(st.integers(1, 1_000), max_size=8).map(sorted),
        shares=st.lists(st.integers(0, 100), min_size=1, max_size=12),
    )
    def each_once(limit: int, thresholds: list[int], shares: list[int]) -> None:
        valkey.flushdb()
        desk = Desk(valkey, clock=True)
        desk.set_time(NOW_MS)
        desk.publish_all(BUILDER, account=limited(limit, alerts=tuple(thresholds), enforcement="observe"))
        spent, reached = 0, list[int]()
        for number, share in enumerate(shares):
            cost = limit * share // 100
            answer = desk.admit(BUILDER, request=f"r{number}")
            hold = str(answer[1] if isinstance(answer, list) else answer)
            assert desk.settle(BUILDER, hold, cost) == 1
            spent += cost
            now_reached = [
                threshold for threshold in thresholds if spent > 0 and 100 * spent >= threshold * limit
            ]
            assert told(desk) == reached + now_reached[len(reached) :] == now_reached
            reached = now_reached

    each_once()


@every_level
def test_what_was_told_is_not_told_again_however_much_is_settled(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, enforcement="observe")})
    holds = []
    for number in range(100):
        answer = clocked.admit(BUILDER, 3, request=f"r{number}")
        holds.append(str(answer[1] if isinstance(answer, list) else answer))
    for hold in holds:
        clocked.settle(BUILDER, hold, 3)
    assert told(clocked) == [80, 100]


def test_no_thresholds_and_no_limit_tell_nothing(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100, alerts=()), account=limited(None))
    spend(clocked, 1_000)
    assert told(clocked) == []


@every_level
@pytest.mark.parametrize("budget", [limited(None), limited(100, alerts=())])
def test_a_level_that_has_nothing_to_tell_is_looked_at_once(
    clocked: Desk, level: Level, budget: Budget
) -> None:
    """Settlements after the first are spared the question."""
    clocked.publish_all(BUILDER, **{level: budget})
    spend(clocked, 1)
    assert clocked.client.hget(BUILDER.records(clocked.layout)[LEVELS.index(level)], "alert_at") == b""


@every_level
def test_a_level_that_only_observes_is_told_of_too_and_past_100_percent(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, alerts=(100, 150), enforcement="observe")})
    spend(clocked, 120)
    assert told(clocked) == [100]
    hold = clocked.admit(BUILDER, request="more")
    assert isinstance(hold, list)
    clocked.settle(BUILDER, str(hold[1]), 30)
    assert told(clocked) == [100, 150]


def test_an_expired_hold_can_cross_a_threshold(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, organization=limited(100))
    hold = clocked.admitted(BUILDER, 90, ttl_ms=1_000)
    clocked.set_time(NOW_MS + 1_000)
    assert clocked.settle(BUILDER, hold, 90, due=True) == 1
    assert told(clocked) == [80]


# Rules change.


@every_level
@pytest.mark.parametrize(
    ("raised", "armed"),
    [(100, []), (101, [100]), (124, [100]), (126, [80, 100]), (200, [80, 100]), (None, [])],
)
def test_a_raised_limit_arms_those_thresholds_that_lie_ahead_again(
    clocked: Desk, level: Level, raised: int | None, armed: list[int]
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100)})
    running = clocked.admitted(BUILDER)
    spend(clocked, 100)
    assert told(clocked) == [80, 100]
    change(clocked, level, limited(raised))
    clocked.settle(BUILDER, running, raised or 1_000)
    assert told(clocked) == [80, 100, *armed]


def test_a_raise_arms_nothing_that_was_never_told(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100))
    spend(clocked, 50)
    change(clocked, "key", limited(200))
    spend(clocked, 50)
    assert told(clocked) == []
    spend(clocked, 60)
    assert told(clocked) == [80]


def test_a_lowered_limit_can_be_crossed_by_the_next_settlement(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(1_000))
    running = clocked.admitted(BUILDER)
    spend(clocked, 90)
    change(clocked, "account", limited(100))
    assert told(clocked) == [], "nobody has settled yet"
    clocked.settle(BUILDER, running, 1)
    assert [(alert.threshold, alert.limit, alert.spent) for alert in clocked.alerts(BUILDER)] == [
        (80, 100, 91)
    ]


def test_a_lowered_limit_tells_nothing_that_was_told(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100))
    running = clocked.admitted(BUILDER)
    spend(clocked, 85)
    change(clocked, "account", limited(90))
    clocked.settle(BUILDER, running, 1)
    assert told(clocked) == [80]
    change(clocked, "account", limited(80), version=3)
    assert clocked.admit(BUILDER, request="refused") == ["budget", "account", 80, 86, 0, 0]


def test_a_free_settlement_tells_nothing(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(1_000))
    free, running = clocked.admitted(BUILDER), clocked.admitted(BUILDER, request="r2")
    spend(clocked, 90)
    change(clocked, "account", limited(100))
    clocked.settle(BUILDER, free, 0)
    assert told(clocked) == []
    clocked.settle(BUILDER, running, 1)
    assert told(clocked) == [80]


@every_level
def test_a_limit_of_zero_arms_nothing_again(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100)})
    first, second = clocked.admitted(BUILDER, 5), clocked.admitted(BUILDER, 5, request="second")
    spend(clocked, 85)
    change(clocked, level, limited(0))
    clocked.settle(BUILDER, first, 5)
    clocked.settle(BUILDER, second, 5)
    assert [(alert.threshold, alert.limit) for alert in clocked.alerts(BUILDER)] == [(80, 100), (100, 0)]


def test_an_observed_limit_of_zero_is_crossed_by_the_first_cost_and_by_no_free_request(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(0, enforcement="observe"))
    for number, cost in enumerate((0, 0, 1, 1)):
        answer = clocked.admit(BUILDER, 0, request=f"r{number}")
        assert isinstance(answer, list)
        clocked.settle(BUILDER, str(answer[1]), cost)
        assert told(clocked) == ([80, 100] if number >= 2 else [])


def test_a_limit_that_was_lifted_and_set_again_is_told_of_again(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100))
    running = clocked.admitted(BUILDER)
    spend(clocked, 85)
    change(clocked, "key", limited(None))
    spend(clocked, 1)
    change(clocked, "key", limited(100), version=3)
    clocked.settle(BUILDER, running, 1)
    assert told(clocked) == [80, 80]


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [((80, 90, 100), [80, 90]), ((50, 80), [80]), ((85,), [80, 85]), ((), [80]), ((80, 96, 100), [80])],
)
def test_of_other_thresholds_those_are_told_that_lie_above_what_was_told(
    clocked: Desk, thresholds: tuple[int, ...], expected: list[int]
) -> None:
    clocked.publish_all(BUILDER, organization=limited(1_000))
    spend(clocked, 949)
    change(clocked, "organization", limited(1_000, alerts=thresholds))
    spend(clocked, 1)
    assert told(clocked) == expected


def test_a_change_of_other_rules_tells_nothing_again(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100))
    spend(clocked, 85)
    for version in range(2, 6):
        change(clocked, "key", limited(100), version)
        spend(clocked, 1)
    assert told(clocked) == [80]


# Prepaid credits.


def test_a_loss_brings_the_thresholds_nearer(clocked: Desk) -> None:
    grants = (Grant(NOW_MS + 1_000, Microcredits(100)),)
    clocked.publish_all(BUILDER)
    clocked.publish(rules_of("organization", BUILDER, limited(200), 2, grants=grants))
    spend(clocked, 10)
    clocked.set_time(NOW_MS + 1_000)
    spend(clocked, 77)
    assert (clocked.counter(BUILDER, "organization", "lost"), told(clocked)) == (90, [])
    spend(clocked, 1)
    assert [(alert.threshold, alert.limit, alert.spent) for alert in clocked.alerts(BUILDER)] == [
        (80, 110, 88)
    ]
    spend(clocked, 22)
    assert told(clocked) == [80, 100]


@pytest.mark.parametrize("finder", ["admit", "extend", "publish"])
def test_whoever_books_a_loss_the_next_settlement_goes_by_it(clocked: Desk, finder: str) -> None:
    grants = (Grant(NOW_MS + 1_000, Microcredits(100)),)
    clocked.publish_all(BUILDER)
    clocked.publish(rules_of("organization", BUILDER, limited(200), 2, grants=grants))
    spend(clocked, 10)
    running = clocked.admitted(BUILDER, 10, request="running")
    if finder == "publish":
        rules = rules_of("organization", BUILDER, limited(200), 2, grants=grants)
        assert clocked.publish(rules, window=0, spent=0, lost=80) == 0
    else:
        clocked.set_time(NOW_MS + 1_000)
        if finder == "admit":
            clocked.admitted(BUILDER, request="finder")
        else:
            running = str(clocked.extend(BUILDER, running, 2))
    assert clocked.counter(BUILDER, "organization", "lost") == 80
    assert clocked.settle(BUILDER, running, 86) == 1
    assert [(alert.threshold, alert.limit, alert.spent) for alert in clocked.alerts(BUILDER)] == [
        (80, 120, 96)
    ]


def test_another_grant_arms_the_thresholds_again(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, organization=limited(100))
    spend(clocked, 90)
    change(clocked, "organization", limited(200))
    spend(clocked, 60)
    assert told(clocked) == [80]
    spend(clocked, 10)
    assert [(alert.threshold, alert.limit) for alert in clocked.alerts(BUILDER)] == [(80, 100), (80, 200)]


def test_several_entities_that_cross_in_one_batch_are_each_told(clocked: Desk) -> None:
    crowd = [workload(key=key) for key in range(3)]
    for of in crowd:
        clocked.publish_all(of, key=limited(10))
    holds = [clocked.admitted(of, 9) for of in crowd]
    assert (
        clocked.settle_many([Settlement(of, hold, 9) for of, hold in zip(crowd, holds, strict=True)])
        == [1] * 3
    )
    assert [(alert.id, alert.threshold) for alert in clocked.alerts(BUILDER)] == [
        (of.key, 80) for of in crowd
    ]
