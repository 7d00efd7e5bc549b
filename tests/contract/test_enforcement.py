"""Enforcement: a level that only observes counts what it would have refused, and refuses nothing."""

from typing import Any

import pytest

from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.contract.records import Budget, Pace
from tests.contract.desk import Answer, Desk, Request, key_rules, rules_of, with_status, workload

NOW_MS = 1_710_504_000_000
HOUR_MS = 3_600_000
BUILDER = workload()

every_level = pytest.mark.parametrize("level", LEVELS)
paced_levels = pytest.mark.parametrize("level", LEVELS[:2])


def observing(limit: int | None = None, **more: Any) -> Budget:
    return Budget(None if limit is None else Microcredits(limit), enforcement="observe", **more)


def observed(answer: Answer) -> list[str | int]:
    """What an admitted request was observed to pass, level by level."""
    assert isinstance(answer, list), answer
    assert answer[0] == "observed"
    return answer[2:]


def publish(desk: Desk, level: Level, budget: Budget, pace: Pace | None = None, version: int = 2) -> None:
    assert desk.publish(rules_of(level, BUILDER, budget, version, pace=pace)) == 1


@every_level
def test_a_request_over_an_observed_limit_is_let_through_counted_and_held(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: observing(100)})
    clocked.admitted(BUILDER, 80)
    assert clocked.counter(BUILDER, level, "observed") == 0
    answer = clocked.admit(BUILDER, 21, request="r2")
    assert observed(answer) == [level, "budget"]
    assert clocked.counter(BUILDER, level, "observed") == 1
    assert clocked.counters(BUILDER, level) == (0, 101)
    assert isinstance(answer, list)
    assert clocked.client.zscore(clocked.holds(BUILDER), str(answer[1])) is not None
    assert clocked.settle(BUILDER, str(answer[1]), 500) == 1
    assert clocked.counters(BUILDER, level) == (500, 80)
    assert observed(clocked.admit(BUILDER, request="r3")) == [level, "budget"]
    assert clocked.counter(BUILDER, level, "observed") == 2


@every_level
@pytest.mark.parametrize("limit", [0, 1, AMOUNT_MAX])
def test_an_observed_limit_never_refuses_however_far_it_is_passed(
    clocked: Desk, level: Level, limit: int
) -> None:
    clocked.publish_all(BUILDER, **{level: observing(limit)})
    for number in range(4):
        answer = clocked.admit(BUILDER, AMOUNT_MAX, request=f"r{number}")
        assert isinstance(answer, str) or observed(answer) == [level, "budget"]
    assert clocked.counter(BUILDER, level, "observed") == (3 if limit == AMOUNT_MAX else 4)


@paced_levels
def test_an_observed_rate_lets_through_and_burns_nothing_for_what_it_would_have_refused(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER)
    publish(clocked, level, observing(), Pace(60, 2))
    answers = clocked.admit_many([Request(BUILDER, 0, f"r{number}") for number in range(5)])
    assert [isinstance(answer, str) for answer in answers] == [True, True, False, False, False]
    assert [observed(answer) for answer in answers[2:]] == [[level, "rate"]] * 3
    assert clocked.counter(BUILDER, level, "observed") == 3
    assert clocked.counter(BUILDER, level, "in_flight") == 5
    clocked.set_time(NOW_MS + 1_000)
    clocked.admitted(BUILDER, request="in time")


@paced_levels
@pytest.mark.parametrize("most", [0, 2])
def test_observed_places_let_through_and_count_all_that_is_in_flight(
    clocked: Desk, level: Level, most: int
) -> None:
    clocked.publish_all(BUILDER)
    publish(clocked, level, observing(), Pace(in_flight=most))
    answers = clocked.admit_many([Request(BUILDER, 0, f"r{number}") for number in range(4)])
    assert [answer[0] for answer in answers if isinstance(answer, list)] == ["placed"] * most + [
        "observed"
    ] * (4 - most)
    assert [observed(answer) for answer in answers[most:]] == [[level, "in_flight"]] * (4 - most)
    assert clocked.counter(BUILDER, level, "in_flight") == 4


def test_every_level_and_every_reason_is_named_and_each_level_counts_the_request_once(clocked: Desk) -> None:
    for level in LEVELS:
        clocked.publish(rules_of(level, BUILDER, observing(0), pace=Pace(in_flight=0)))
    expected = [
        "key",
        "in_flight",
        "account",
        "in_flight",
        "key",
        "budget",
        "account",
        "budget",
        "organization",
        "budget",
    ]
    assert observed(clocked.admit(BUILDER, 1)) == expected
    assert [clocked.counter(BUILDER, level, "observed") for level in LEVELS] == [1, 1, 1]


@pytest.mark.parametrize(("observes", "enforces"), [(a, b) for a in LEVELS for b in LEVELS if a != b])
def test_what_another_level_refuses_is_refused_and_counted_by_none(
    clocked: Desk, observes: Level, enforces: Level
) -> None:
    clocked.publish_all(BUILDER, **{observes: observing(0), enforces: Budget(Microcredits(10))})
    before = clocked.everything()
    assert clocked.admit(BUILDER, 11) == ["budget", enforces, 10, 0, 0, 0]
    assert clocked.everything() == before
    assert observed(clocked.admit(BUILDER, 10)) == [observes, "budget"]


@every_level
def test_what_was_observed_is_of_its_window_and_survives_a_change_of_rules(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: observing(0, period="hourly")})
    clocked.admit_many([Request(BUILDER, 1, f"r{number}") for number in range(3)])
    publish(clocked, level, observing(1, period="hourly"))
    assert clocked.counter(BUILDER, level, "observed") == 3
    clocked.set_time(NOW_MS + HOUR_MS)
    clocked.admitted(BUILDER, 1, request="r4")
    assert clocked.counter(BUILDER, level, "observed") == 0
    clocked.admit(BUILDER, 1, request="r5")
    assert clocked.counter(BUILDER, level, "observed") == 1


@every_level
def test_a_new_window_of_a_level_that_enforces_again_has_nothing_observed(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: observing(0, period="hourly")})
    clocked.admit(BUILDER, 1)
    publish(clocked, level, Budget(Microcredits(10), "hourly"))
    clocked.set_time(NOW_MS + HOUR_MS)
    clocked.admitted(BUILDER, 1, request="r2")
    assert clocked.counter(BUILDER, level, "observed") == 0


@every_level
def test_enforcement_changes_for_the_very_next_request(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: Budget(Microcredits(10))})
    assert clocked.admit(BUILDER, 11) == ["budget", level, 10, 0, 0, 0]
    publish(clocked, level, observing(10))
    assert observed(clocked.admit(BUILDER, 11, request="r2")) == [level, "budget"]
    publish(clocked, level, Budget(Microcredits(10)), version=3)
    assert clocked.admit(BUILDER, 0, request="r3") == ["budget", level, 10, 0, 11, 0]


@every_level
def test_observing_is_no_pardon_for_a_record_that_is_not_active_or_not_there(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: observing(0)})
    status = "disabled" if level == "key" else "inactive"
    clocked.publish(with_status(rules_of(level, BUILDER, observing(0)), status))
    assert clocked.admit(BUILDER) == ["status", level, status]
    clocked.client.delete(BUILDER.records(clocked.layout)[LEVELS.index(level)])
    assert clocked.admit(BUILDER) == ["missing", level]


def test_observing_is_no_pardon_for_a_wrong_token_or_an_expired_key(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.publish(key_rules(BUILDER, version=2, budget=observing(0), expires_at_ms=NOW_MS))
    assert clocked.admit(BUILDER, digest=bytes(32)) == ["digest"]
    assert clocked.admit(BUILDER) == ["expired", NOW_MS]


@every_level
def test_a_top_up_is_never_refused_by_a_level_that_observes(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: observing(50)})
    grown = clocked.extend(BUILDER, clocked.admitted(BUILDER, 40), 1_000)
    assert isinstance(grown, str)
    assert clocked.counters(BUILDER, level) == (0, 1_040)


@pytest.mark.parametrize(("observes", "enforces"), [(a, b) for a in LEVELS for b in LEVELS if a != b])
def test_a_top_up_is_refused_by_a_level_that_enforces_whatever_the_others_observe(
    clocked: Desk, observes: Level, enforces: Level
) -> None:
    clocked.publish_all(BUILDER, **{observes: observing(50), enforces: Budget(Microcredits(100))})
    hold = clocked.admitted(BUILDER, 40)
    assert clocked.extend(BUILDER, hold, 61) == ["budget", enforces, 100, 0, 40, 0]
    assert isinstance(clocked.extend(BUILDER, hold, 60), str)


@every_level
def test_a_request_that_was_admitted_under_observation_cannot_be_topped_up_once_the_level_enforces(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: observing(50)})
    answer = clocked.admit(BUILDER, 60)
    assert observed(answer) == [level, "budget"]
    assert isinstance(answer, list)
    publish(clocked, level, Budget(Microcredits(50)))
    assert clocked.extend(BUILDER, str(answer[1]), 1) == ["budget", level, 50, 0, 60, 0]
    assert clocked.extend(BUILDER, str(answer[1]), 0) == answer[1]
