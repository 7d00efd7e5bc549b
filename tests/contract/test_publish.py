"""publish and adopt: rules arrive in any order and only ever get newer; a digest is given to no record that changed."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget
from gateway.contract.token import Digest
from tests.contract.desk import Desk, key_rules, rules_of, workload

NOW_MS = 1_710_504_000_000
DAY_MS = 86_400_000
MIDNIGHT_MS = NOW_MS - DAY_MS // 2
BUILDER = workload()

every_level = pytest.mark.parametrize("level", LEVELS)


def stored(desk: Desk, level: Level) -> dict[bytes, bytes]:
    fields: Any = desk.client.hgetall(BUILDER.records(desk.layout)[LEVELS.index(level)])
    return dict(fields)


@every_level
def test_a_new_record_has_its_rules_and_its_counters_in_the_same_step(clocked: Desk, level: Level) -> None:
    rules = rules_of(level, BUILDER, Budget(Microcredits(500), "daily"), version=3)
    assert clocked.publish(rules, window=MIDNIGHT_MS, spent=123) == 1
    fields = stored(clocked, level)
    assert (fields[b"version"], fields[b"status"], fields[b"limit"]) == (b"3", b"active", b"500")
    assert (fields[b"window"], fields[b"spent"], fields[b"held"]) == (str(MIDNIGHT_MS).encode(), b"123", b"0")
    assert fields[b"period"] == b"daily"


@every_level
def test_a_rebuilt_record_gives_no_free_ride_in_the_window_that_it_speaks_of(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER)
    clocked.client.delete(BUILDER.records(clocked.layout)[LEVELS.index(level)])
    clocked.publish(
        rules_of(level, BUILDER, Budget(Microcredits(500), "daily")), window=MIDNIGHT_MS, spent=450
    )
    assert clocked.admit(BUILDER, 51) == ["budget", level, 500, 450, 0, MIDNIGHT_MS + DAY_MS]
    clocked.admitted(BUILDER, 50)


def test_a_rebuilt_record_that_speaks_of_an_ended_window_starts_afresh(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.client.delete(clocked.layout.account(BUILDER.account))
    rules = rules_of("account", BUILDER, Budget(Microcredits(500), "daily"))
    clocked.publish(rules, window=MIDNIGHT_MS - DAY_MS, spent=450)
    clocked.admitted(BUILDER, 500)


@every_level
@pytest.mark.parametrize("version", [4, 5])
def test_rules_of_the_same_or_an_older_version_change_nothing(
    clocked: Desk, level: Level, version: int
) -> None:
    clocked.publish(
        rules_of(level, BUILDER, Budget(Microcredits(500), "daily"), version=5), window=1, spent=2
    )
    before = clocked.everything()
    stale = rules_of(level, BUILDER, Budget(Microcredits(9), "hourly"), version=version)
    assert clocked.publish(stale, window=77, spent=99) == 0
    assert clocked.everything() == before


def test_versions_are_compared_as_numbers_and_not_as_text(clocked: Desk) -> None:
    assert clocked.publish(rules_of("account", BUILDER, version=9)) == 1
    assert clocked.publish(rules_of("account", BUILDER, version=10)) == 1
    assert clocked.publish(rules_of("account", BUILDER, version=9)) == 0


@every_level
def test_newer_rules_leave_the_counters_of_a_live_record_alone(clocked: Desk, level: Level) -> None:
    clocked.publish_all(BUILDER, **{level: Budget(Microcredits(500), "daily")})
    clocked.settle(BUILDER, clocked.admitted(BUILDER, 30), 30)
    clocked.admitted(BUILDER, 20, request="r2")
    assert (
        clocked.publish(
            rules_of(level, BUILDER, Budget(Microcredits(60), "daily"), version=2), window=5, spent=6
        )
        == 1
    )
    assert clocked.counters(BUILDER, level) == (30, 20)
    assert clocked.admit(BUILDER, 11, request="r3") == ["budget", level, 60, 30, 20, MIDNIGHT_MS + DAY_MS]
    clocked.admitted(BUILDER, 10, request="r3")


@every_level
def test_a_limit_is_raised_lowered_lifted_and_set_to_zero_for_the_very_next_request(
    clocked: Desk, level: Level
) -> None:
    clocked.publish_all(BUILDER, **{level: Budget(Microcredits(10))})
    clocked.admitted(BUILDER, 10)
    passes: list[bool] = []
    limits = (10, 11, 0, None, 5)
    for number, limit in enumerate(limits):
        budget = Budget(None if limit is None else Microcredits(limit))
        clocked.publish(rules_of(level, BUILDER, budget, version=2 + number))
        passes.append(isinstance(clocked.admit(BUILDER, 1, request=f"n{number}"), str))
    assert passes == [False, True, False, True, False]


def test_a_new_period_starts_a_fresh_window_at_the_moment_it_was_set(clocked: Desk) -> None:
    clocked.publish_all(BUILDER, account=Budget(Microcredits(100), "monthly"))
    old = clocked.admitted(BUILDER, 100)
    clocked.set_time(NOW_MS + 1_000)
    changed = Budget(Microcredits(100), "daily", 1, NOW_MS + 1_000)
    clocked.publish(rules_of("account", BUILDER, changed, version=2))
    hold = clocked.admitted(BUILDER, 60, request="r2")
    assert hold.split("|")[8] == str(NOW_MS + 1_000)
    clocked.settle(BUILDER, old, 100)
    assert clocked.counters(BUILDER, "account") == (0, 60)
    assert clocked.admit(BUILDER, 41, request="r3") == ["budget", "account", 100, 0, 60, MIDNIGHT_MS + DAY_MS]


def test_a_period_that_is_set_again_without_a_new_start_keeps_the_spend(clocked: Desk) -> None:
    """From daily to monthly and back within a day: the older start of the month is not a newer window."""
    clocked.publish_all(BUILDER, account=Budget(Microcredits(100), "daily"))
    clocked.admitted(BUILDER, 100)
    for version, period in ((2, "monthly"), (3, "daily")):
        budget = Budget(Microcredits(100), period)  # type: ignore[arg-type]
        clocked.publish(rules_of("account", BUILDER, budget, version=version))
        assert isinstance(clocked.admit(BUILDER, 1, request=f"r{version}"), list)


def test_a_publish_that_does_not_know_the_digest_leaves_it(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    assert clocked.publish(key_rules(BUILDER, version=2, digest=None)) == 1
    clocked.admitted(BUILDER, 1)


def test_fields_of_the_record_are_bytes_and_may_hold_any_text(clocked: Desk) -> None:
    rules = replace(key_rules(BUILDER), token_hash="$argon2id$é| %s\n{", digest=Digest(bytes(range(32))))
    clocked.publish(rules)
    assert stored(clocked, "key")[b"hash"] == rules.token_hash.encode()
    assert stored(clocked, "key")[b"digest"] == bytes(range(32))


def test_a_record_without_a_digest_adopts_the_one_of_its_verified_hash(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.client.delete(clocked.layout.key(BUILDER.key))
    rules = key_rules(BUILDER, digest=None)
    clocked.publish(rules)
    assert clocked.admit(BUILDER, 1) == ["digest"]
    assert clocked.adopt(BUILDER, rules.token_hash, BUILDER.digest) == 1
    assert clocked.adopt(BUILDER, rules.token_hash, BUILDER.digest) == 1
    clocked.admitted(BUILDER, 1)


def test_a_digest_is_never_replaced_by_adoption(clocked: Desk) -> None:
    rules = key_rules(BUILDER)
    clocked.publish(rules)
    before = clocked.everything()
    assert clocked.adopt(BUILDER, rules.token_hash, bytes(32)) == 0
    assert clocked.everything() == before


@pytest.mark.parametrize("token_hash", ["", "another hash", "hash of"])
def test_a_record_with_another_hash_adopts_nothing(clocked: Desk, token_hash: str) -> None:
    clocked.publish(key_rules(BUILDER, digest=None))
    before = clocked.everything()
    assert clocked.adopt(BUILDER, token_hash, BUILDER.digest) == 0
    assert clocked.everything() == before


@pytest.mark.parametrize("token_hash", ["", "hash"])
def test_a_key_that_was_removed_while_it_was_verified_does_not_come_back(
    clocked: Desk, token_hash: str
) -> None:
    assert clocked.adopt(BUILDER, token_hash, BUILDER.digest) == 0
    assert clocked.client.exists(clocked.layout.key(BUILDER.key)) == 0


def test_adoption_does_not_revive_a_revoked_key(clocked: Desk) -> None:
    clocked.publish_all(BUILDER)
    clocked.client.delete(clocked.layout.key(BUILDER.key))
    rules = key_rules(BUILDER, digest=None, status="revoked")
    clocked.publish(rules)
    clocked.adopt(BUILDER, rules.token_hash, BUILDER.digest)
    assert clocked.admit(BUILDER, 1) == ["status", "key", "revoked"]


def test_a_change_without_counters_writes_only_a_record_that_exists(clocked: Desk) -> None:
    assert clocked.publish(rules_of("account", BUILDER), window="", spent="", lost="") == -1
    assert stored(clocked, "account") == {}
    clocked.publish(rules_of("account", BUILDER), window=MIDNIGHT_MS, spent=7)
    assert clocked.publish(rules_of("account", BUILDER, version=2), window="", spent="", lost="") == 1
    assert clocked.counters(BUILDER, "account") == (7, 0)
