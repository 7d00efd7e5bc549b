"""extend: a running request keeps its hold, adds to it while there is room, and is told when it must stop."""

import pytest

from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, Hold
from tests.contract.desk import Answer, Desk, key_rules, rules_of, with_status, workload

NOW_MS = 1_710_504_000_000
DAY_MS = 86_400_000
NEXT_MIDNIGHT_MS = NOW_MS + DAY_MS // 2
BUILDER = workload()

every_level = pytest.mark.parametrize("level", LEVELS)


def limited(amount: int, period: str = "never") -> Budget:
    return Budget(Microcredits(amount), period)  # type: ignore[arg-type]


def assert_refused_without_a_trace(desk: Desk, hold: str, added: int, expected: Answer) -> None:
    before = desk.everything()
    assert desk.extend(BUILDER, hold, added, ttl_ms=999_999) == expected
    assert desk.everything() == before


def test_extending_by_nothing_only_moves_the_deadline(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(40))
    hold = clocked.admitted(BUILDER, 40, ttl_ms=1_000)
    clocked.set_time(NOW_MS + 500)
    assert clocked.extend(BUILDER, hold, 0, ttl_ms=1_000) == hold
    assert clocked.client.zscore(clocked.holds(BUILDER), hold) == NOW_MS + 1_500
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(0, 40)] * 3


def test_a_top_up_replaces_the_hold_by_one_that_says_the_whole_amount(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    grown = clocked.extend(BUILDER, hold, 25, ttl_ms=7_000)
    assert isinstance(grown, str)
    old, new = Hold.unpack(hold.encode()), Hold.unpack(grown.encode())
    assert (new.amount, new.request_id, new.admitted_at_ms, new.windows) == (
        65,
        "r1",
        old.admitted_at_ms,
        old.windows,
    )
    assert clocked.client.zrange(clocked.holds(BUILDER), 0, -1, withscores=True) == [
        (grown.encode(), NOW_MS + 7_000)
    ]
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(0, 65)] * 3


def test_only_the_newest_form_of_a_hold_can_be_settled(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    grown = clocked.extend(BUILDER, hold, 25)
    assert isinstance(grown, str)
    assert clocked.settle(BUILDER, hold, 1) == 0
    assert clocked.extend(BUILDER, hold, 1) == ["gone"]
    assert clocked.settle(BUILDER, grown, 50) == 1
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(50, 0)] * 3
    assert len(clocked.events(BUILDER)) == 1


def test_a_settled_hold_is_gone(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    clocked.settle(BUILDER, hold, 40)
    assert_refused_without_a_trace(clocked, hold, 0, ["gone"])
    assert_refused_without_a_trace(clocked, hold, 5, ["gone"])


@every_level
def test_a_top_up_reaches_a_limit_exactly_and_never_passes_it(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "daily")})
    hold = clocked.admitted(BUILDER, 40)
    assert_refused_without_a_trace(clocked, hold, 61, ["budget", level, 100, 0, 40, NEXT_MIDNIGHT_MS])
    grown = clocked.extend(BUILDER, hold, 60)
    assert isinstance(grown, str)
    assert_refused_without_a_trace(clocked, grown, 1, ["budget", level, 100, 0, 100, NEXT_MIDNIGHT_MS])
    assert clocked.extend(BUILDER, grown, 0) == grown


@every_level
def test_a_top_up_does_not_pass_a_limit_that_was_published_while_the_request_ran(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(1_000, "daily")})
    hold = clocked.admitted(BUILDER, 40)
    clocked.publish(rules_of(level, BUILDER, limited(100, "daily"), version=2))
    assert_refused_without_a_trace(clocked, hold, 61, ["budget", level, 100, 0, 40, NEXT_MIDNIGHT_MS])
    assert isinstance(clocked.extend(BUILDER, hold, 60), str)


@every_level
@pytest.mark.parametrize("is_opened", [False, True])
def test_a_top_up_after_the_window_ended_moves_the_whole_request_into_the_new_one(
    clocked: Desk, level: Level, is_opened: bool
) -> None:
    """Whether or not somebody else has been admitted to the new window meanwhile."""
    clocked.publish_all(BUILDER, **{level: limited(100, "daily")})
    hold = clocked.admitted(BUILDER, 40)
    clocked.set_time(NEXT_MIDNIGHT_MS)
    others = 30 if is_opened else 0
    if is_opened:
        clocked.admitted(BUILDER, others, request="other")
    no = ["budget", level, 100, 0, others, NEXT_MIDNIGHT_MS + DAY_MS]
    assert_refused_without_a_trace(clocked, hold, 61 - others, no)
    grown = clocked.extend(BUILDER, hold, 60 - others)
    assert isinstance(grown, str)
    assert clocked.counters(BUILDER, level) == (0, 100)
    assert_refused_without_a_trace(clocked, grown, 1, [*no[:4], 100, no[5]])
    assert clocked.settle(BUILDER, grown, 65 - others) == 1
    assert clocked.counters(BUILDER, level) == (65 - others, others)
    windows = Hold.unpack(grown.encode()).windows
    assert windows[LEVELS.index(level)] == NEXT_MIDNIGHT_MS
    assert [each for at, each in zip(LEVELS, windows, strict=True) if at != level] == [0, 0]


@every_level
def test_streams_that_run_over_a_windows_end_come_to_no_more_than_the_limit(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "hourly")})
    holds = [clocked.admitted(BUILDER, 10, request=f"r{number}") for number in range(10)]
    for hour in (1, 2, 3):
        clocked.set_time(NOW_MS + hour * 3_600_000)
        for _ in range(50):
            for index, hold in enumerate(holds):
                answer = clocked.extend(BUILDER, hold, 3)
                holds[index] = answer if isinstance(answer, str) else hold
            spent, held = clocked.counters(BUILDER, level)
            assert (spent, held <= 100) == (0, True)
    for hold in holds:
        clocked.settle(BUILDER, hold, Hold.unpack(hold.encode()).amount)
    assert sum(clocked.counters(BUILDER, level)) <= 100


@every_level
def test_a_request_that_needs_no_more_stays_in_the_window_in_which_it_was_admitted(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "daily")})
    hold = clocked.admitted(BUILDER, 40)
    clocked.set_time(NEXT_MIDNIGHT_MS)
    clocked.admitted(BUILDER, 80, request="other")
    assert clocked.extend(BUILDER, hold, 0) == hold
    assert clocked.settle(BUILDER, hold, 40) == 1
    assert clocked.counters(BUILDER, level) == (0, 80)


@every_level
def test_a_top_up_that_opens_a_window_arms_its_thresholds(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "daily")})
    hold = clocked.admitted(BUILDER, 5)
    assert clocked.settle(BUILDER, clocked.admitted(BUILDER, 5, request="first"), 85) == 1
    clocked.set_time(NEXT_MIDNIGHT_MS)
    grown = clocked.extend(BUILDER, hold, 80)
    assert isinstance(grown, str)
    clocked.settle(BUILDER, grown, 85)
    assert [(alert.threshold, alert.window_ms) for alert in clocked.alerts(BUILDER)] == [
        (80, NEXT_MIDNIGHT_MS - DAY_MS), (80, NEXT_MIDNIGHT_MS),
    ]  # fmt: skip


@pytest.mark.parametrize("added", [0, 1])
@pytest.mark.parametrize(
    ("level", "status"),
    [("key", "disabled"), ("key", "revoked"), ("account", "inactive"), ("organization", "deleted")],
)  # fmt: skip
def test_a_request_of_a_revoked_key_or_closed_account_is_told_so(
    clocked: Desk, level: Level, status: str, added: int
) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    clocked.publish(with_status(rules_of(level, BUILDER), status))
    assert_refused_without_a_trace(clocked, hold, added, ["status", level, status])
    assert clocked.settle(BUILDER, hold, 40) == 1


def test_a_request_outlives_its_keys_expiry_by_no_extension(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.publish(key_rules(BUILDER, version=2, expires_at_ms=NOW_MS + 1_000))
    hold = clocked.admitted(BUILDER, 40)
    clocked.set_time(NOW_MS + 999, 999)
    assert clocked.extend(BUILDER, hold, 0) == hold
    clocked.set_time(NOW_MS + 1_000)
    assert_refused_without_a_trace(clocked, hold, 0, ["expired", NOW_MS + 1_000])


@every_level
def test_a_record_that_is_not_there_is_named(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40)
    clocked.client.delete(BUILDER.records(clocked.layout)[LEVELS.index(level)])
    assert_refused_without_a_trace(clocked, hold, 0, ["missing", level])
    assert_refused_without_a_trace(clocked, hold, 1, ["missing", level])


def test_an_extended_hold_is_not_expired_at_its_old_deadline(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    hold = clocked.admitted(BUILDER, 40, ttl_ms=1_000)
    clocked.set_time(NOW_MS + 900)
    clocked.extend(BUILDER, hold, 0, ttl_ms=1_000)
    clocked.set_time(NOW_MS + 1_899, 999)
    assert clocked.settle(BUILDER, hold, due=True) == -1
    clocked.set_time(NOW_MS + 1_900)
    assert clocked.settle(BUILDER, hold, due=True) == 1
