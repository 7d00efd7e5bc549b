"""admit: one request goes in at all three levels, or at none and without a trace."""

from dataclasses import replace
from typing import Any

import pytest
from redis.crc import key_slot

from gateway.contract import records, scripts
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.contract.records import Budget, Hold
from tests.contract.desk import Answer, Desk, Request, key_rules, rules_of, with_status, workload

NOW_MS = 1_710_504_000_000  # where the `clocked` desk stands: 2024-03-15 12:00 UTC
DAY_MS = 86_400_000
MIDNIGHT_MS = NOW_MS - DAY_MS // 2
BUILDER = workload()

every_level = pytest.mark.parametrize("level", LEVELS)


def limited(amount: int, period: Any = "never", **more: Any) -> Budget:
    return Budget(Microcredits(amount), period, **more)


def assert_refused_without_a_trace(desk: Desk, expected: Answer, amount: int = 1, **how: Any) -> None:
    before = desk.everything()
    assert desk.admit(BUILDER, amount, **how) == expected
    assert desk.everything() == before


def test_an_admitted_request_holds_its_amount_at_all_three_levels(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100), account=limited(200), organization=limited(300))
    hold = clocked.admitted(BUILDER, 40, ttl_ms=5_000)
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(0, 40)] * 3
    assert clocked.client.zrange(clocked.holds(BUILDER), 0, -1, withscores=True) == [
        (hold.encode(), NOW_MS + 5_000)
    ]


def test_the_packed_hold_says_who_what_and_when(clocked: Desk) -> None:
    clocked.publish_all(
        BUILDER, account=limited(100, "daily"), organization=limited(100, "monthly", billing_day=31)
    )
    hold = Hold.unpack(clocked.admitted(BUILDER, 40, request="01J").encode())
    assert (hold.request_id, hold.route, hold.amount, hold.admitted_at_ms) == ("01J", "models", 40, NOW_MS)
    assert (hold.key_id, hold.account_id, hold.organization_tag) == (
        BUILDER.key,
        BUILDER.account,
        BUILDER.tag,
    )
    end_of_february_ms = MIDNIGHT_MS - 15 * DAY_MS
    assert hold.windows == (0, MIDNIGHT_MS, end_of_february_ms)


@every_level
def test_a_request_that_one_level_cannot_cover_is_refused_and_leaves_no_trace_at_any(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100, "daily")})
    clocked.admitted(BUILDER, 70)
    refusal = ["budget", level, 100, 0, 70, MIDNIGHT_MS + DAY_MS]
    assert_refused_without_a_trace(clocked, refusal, 31, request="r2")


def test_a_refused_first_request_of_a_window_does_not_even_roll_it(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, organization=limited(100, "daily"))
    assert_refused_without_a_trace(clocked, ["budget", "organization", 100, 0, 0, MIDNIGHT_MS + DAY_MS], 101)


@every_level
def test_a_request_that_reaches_a_limit_exactly_is_admitted_and_the_next_is_not(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100)})
    clocked.admitted(BUILDER, 60)
    clocked.admitted(BUILDER, 40, request="r2")
    assert_refused_without_a_trace(clocked, ["budget", level, 100, 0, 100, 0], 1, request="r3")


@every_level
def test_a_used_up_limit_refuses_a_free_request_too(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(100)})
    hold = clocked.admitted(BUILDER, 100)
    clocked.settle(BUILDER, hold, 100)
    assert_refused_without_a_trace(clocked, ["budget", level, 100, 100, 0, 0], 0)


@every_level
def test_a_limit_of_zero_blocks_even_a_free_request(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: limited(0)})
    assert_refused_without_a_trace(clocked, ["budget", level, 0, 0, 0, 0], 0)


@every_level
def test_no_limit_never_blocks(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: Budget(None, "daily")})
    for number in range(3):
        hold = clocked.admitted(BUILDER, AMOUNT_MAX, request=f"r{number}")
        assert clocked.settle(BUILDER, hold, AMOUNT_MAX) == 1
    assert clocked.counters(BUILDER, level) == (3 * AMOUNT_MAX, 0)


def test_free_requests_are_admitted_and_write_a_zero_and_not_a_minus_zero(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(100))
    for number in range(3):
        hold = clocked.admitted(BUILDER, 0, request=f"r{number}")
        assert hold.split("|")[5] == "0"
        assert clocked.extend(BUILDER, hold, 0) == hold
        assert clocked.settle(BUILDER, hold, 0) == 1
    for level in LEVELS:
        assert clocked.counters(BUILDER, level) == (0, 0)


def test_amounts_near_the_largest_stay_exact_to_the_microcredit(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(AMOUNT_MAX), account=limited(AMOUNT_MAX - 1))
    first = clocked.admitted(BUILDER, AMOUNT_MAX - 3)
    assert first.split("|")[5] == "999999999999997"
    assert_refused_without_a_trace(
        clocked, ["budget", "account", AMOUNT_MAX - 1, 0, AMOUNT_MAX - 3, 0], 3, request="r2"
    )
    clocked.admitted(BUILDER, 2, request="r2")
    assert clocked.counters(BUILDER, "key") == (0, AMOUNT_MAX - 1)
    assert clocked.settle(BUILDER, first, AMOUNT_MAX - 5) == 1
    assert clocked.counters(BUILDER, "key") == (AMOUNT_MAX - 5, 2)
    assert_refused_without_a_trace(
        clocked, ["budget", "account", AMOUNT_MAX - 1, AMOUNT_MAX - 5, 2, 0], 3, request="r3"
    )


@every_level
def test_a_record_that_is_not_there_is_named_and_nothing_is_admitted(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER)
    clocked.client.delete(BUILDER.records(clocked.layout)[LEVELS.index(level)])
    assert_refused_without_a_trace(clocked, ["missing", level])


def test_on_an_empty_redis_nothing_is_admitted(clocked: Desk) -> None:
    assert_refused_without_a_trace(clocked, ["missing", "key"])


@pytest.mark.parametrize(
    "digest", [b"", bytes(32), BUILDER.digest[:-1], BUILDER.digest + b"\0", BUILDER.digest.upper()]
)
def test_a_wrong_digest_is_refused_whatever_else_would_be_answered(clocked: Desk, digest: bytes) -> None:
    clocked.publish_all(BUILDER, key=limited(0))
    assert_refused_without_a_trace(clocked, ["digest"], digest=digest)


def test_a_record_that_has_no_digest_yet_admits_nobody_not_even_the_empty_digest(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.client.hdel(clocked.layout.key(BUILDER.key), "digest")
    assert_refused_without_a_trace(clocked, ["digest"])
    assert_refused_without_a_trace(clocked, ["digest"], digest=b"")


@pytest.mark.parametrize(
    ("level", "status"),
    [("key", "disabled"), ("key", "revoked"), ("account", "inactive"), ("account", "deleted"),
     ("organization", "inactive"), ("organization", "deleted")],
)  # fmt: skip
def test_a_record_that_is_not_active_refuses_the_very_next_request(
    clocked: Desk, level: Level, status: str
) -> None:
    clocked.publish_all(BUILDER)
    clocked.admitted(BUILDER, 1)
    clocked.publish(with_status(rules_of(level, BUILDER), status))
    assert_refused_without_a_trace(clocked, ["status", level, status], request="r2")


def test_a_key_expires_to_the_millisecond(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.publish(key_rules(BUILDER, version=2, expires_at_ms=NOW_MS + 1_000))
    clocked.set_time(NOW_MS + 999, 999)
    clocked.admitted(BUILDER)
    clocked.set_time(NOW_MS + 1_000)
    assert_refused_without_a_trace(clocked, ["expired", NOW_MS + 1_000], request="r2")


def test_a_window_ends_to_the_millisecond_and_the_new_one_is_empty(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "daily"))
    clocked.admitted(BUILDER, 100)
    clocked.set_time(MIDNIGHT_MS + DAY_MS - 1, 999)
    assert_refused_without_a_trace(
        clocked, ["budget", "account", 100, 0, 100, MIDNIGHT_MS + DAY_MS], request="r2"
    )
    clocked.set_time(MIDNIGHT_MS + DAY_MS)
    hold = clocked.admitted(BUILDER, 30, request="r2")
    assert clocked.counters(BUILDER, "account") == (0, 30)
    assert Hold.unpack(hold.encode()).windows == (0, MIDNIGHT_MS + DAY_MS, 0)
    assert clocked.counters(BUILDER, "key") == (0, 130)


def test_time_that_steps_back_does_not_re_open_a_window(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "hourly"))
    clocked.admitted(BUILDER, 90)
    clocked.set_time(NOW_MS - 1)  # the hour before
    assert_refused_without_a_trace(
        clocked, ["budget", "account", 100, 0, 90, NOW_MS + 3_600_000], 11, request="r2"
    )
    hold = clocked.admitted(BUILDER, 10, request="r2")
    assert Hold.unpack(hold.encode()).windows[1] == NOW_MS
    clocked.set_time(NOW_MS + 1)
    assert clocked.counters(BUILDER, "account") == (0, 100)
    assert_refused_without_a_trace(
        clocked, ["budget", "account", 100, 0, 100, NOW_MS + 3_600_000], request="r3"
    )


def test_time_that_steps_back_while_a_rule_changes_does_not_re_open_a_window(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "hourly"))
    clocked.admitted(BUILDER, 90)
    clocked.set_time(NOW_MS - 1)
    clocked.publish(rules_of("account", BUILDER, limited(95, "hourly"), version=2))
    assert clocked.admit(BUILDER, 6, request="r2") != clocked.admit(BUILDER, 5, request="r3")
    assert clocked.counters(BUILDER, "account") == (0, 95)
    clocked.set_time(NOW_MS + 1)
    assert_refused_without_a_trace(
        clocked, ["budget", "account", 95, 0, 95, NOW_MS + 3_600_000], request="r4"
    )


def test_organizations_and_accounts_do_not_see_each_others_holds(clocked: Desk) -> None:
    others = [workload(account=1), workload(key=1), workload("Bolt02")]
    for of in (BUILDER, *others):
        clocked.publish_all(of, key=limited(100))
    clocked.admitted(BUILDER, 100)
    for of in others:
        clocked.admitted(of, 100)
    assert clocked.counters(BUILDER, "account") == (0, 200)
    assert clocked.counters(BUILDER, "organization") == (0, 300)
    assert clocked.counters(others[2], "organization") == (0, 100)


def test_counters_are_read_back_by_the_codec_as_the_scripts_wrote_them(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=limited(100, "daily"))
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 5), 7)
    clocked.admitted(BUILDER, 3, request="r2")
    stored: Any = clocked.client.hmget(clocked.layout.account(BUILDER.account), list(records.COUNTER_FIELDS))
    assert records.read_counters(stored) == records.Counters(
        MIDNIGHT_MS, Microcredits(7), Microcredits(3), in_flight=1
    )


def test_key_facts_are_read_back_by_the_codec_as_publish_wrote_them(clocked: Desk) -> None:
    rules = key_rules(BUILDER)
    clocked.publish(rules)
    stored: Any = clocked.client.hmget(clocked.layout.key(BUILDER.key), list(records.IDENTITY_FIELDS))
    facts = records.read_key_facts(BUILDER.key, stored)
    assert facts is not None
    assert (facts.digest, facts.token_hash) == (BUILDER.digest, rules.token_hash)
    assert facts.identity.principal == f"service-account/name-{BUILDER.tag}/builder"


def test_by_redis_own_clock_a_hold_is_dated_now_and_due_when_it_should_be(desk: Desk) -> None:
    desk.publish_all(BUILDER)

    def redis_now_ms() -> int:
        moment: Any = desk.client.time()
        return int(moment[0]) * 1000 + int(moment[1]) // 1000

    before = redis_now_ms()
    hold = desk.admitted(BUILDER, 1, ttl_ms=3_600_000)
    after = redis_now_ms()
    admitted_at_ms = Hold.unpack(hold.encode()).admitted_at_ms
    assert before <= admitted_at_ms <= after
    assert desk.client.zscore(desk.holds(BUILDER), hold) == admitted_at_ms + 3_600_000
    assert desk.settle(BUILDER, hold, due=True) == -1
    soon = desk.admitted(BUILDER, 1, request="r2", ttl_ms=0)
    assert desk.settle(BUILDER, soon, due=True) == 1


def test_every_key_of_one_call_lies_in_one_slot_of_a_cluster(clocked: Desk) -> None:
    """The server says which keys each call names; a cluster refuses a call whose keys lie in two slots."""
    called: list[list[str]] = []
    run = clocked.run

    def watched(name: str, keys: Any, *arguments: Any) -> Any:
        called.append([name, *keys])
        return run(name, keys, *arguments)

    clocked.run = watched  # type: ignore[method-assign]
    for of in [workload(f"Org{number:03d}") for number in range(40)]:
        clocked.publish_all(of)
        hold = clocked.extend(of, clocked.admitted(of, 1), 1)
        assert isinstance(hold, str)
        assert clocked.settle(of, hold, 1) == 1
        assert clocked.adopt(of, key_rules(of).token_hash, of.digest) == 1
    assert {name for name, *_ in called} == {script.name for script in scripts.ALL}
    for name, *keys in called:
        assert len({key_slot(key.encode()) for key in keys}) == 1, (name, keys)


def test_a_status_and_an_expiry_are_answered_before_a_budget(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, key=limited(0))
    clocked.publish(replace(key_rules(BUILDER, version=2, expires_at_ms=NOW_MS), budget=limited(0)))
    assert_refused_without_a_trace(clocked, ["expired", NOW_MS])
    clocked.publish(
        replace(key_rules(BUILDER, version=3, expires_at_ms=NOW_MS, status="revoked"), budget=limited(0))
    )
    assert_refused_without_a_trace(clocked, ["status", "key", "revoked"])


def test_a_single_microcredit_is_held_in_a_window_that_is_already_open(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.admitted(BUILDER, 0)
    clocked.admitted(BUILDER, 1, request="r2")
    assert [clocked.counters(BUILDER, level) for level in LEVELS] == [(0, 1)] * 3


def test_an_admission_that_nobody_waits_for_any_more_leaves_no_hold(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    before = clocked.everything()

    def admit(wanted_until_ms: int) -> Answer:
        return clocked.admit_many([Request(BUILDER, 5)], ttl_ms=1_000, until_ms=wanted_until_ms)[0]

    assert admit(NOW_MS - 1) == ["late"]
    assert clocked.everything() == before
    assert str(admit(NOW_MS)).startswith("r1|")
