"""Quota, explained: which level binds, whether the next request would pass, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from control.domain.budgets import standing
from control.domain.quota import Link, Quota, Verdict, explained
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget, Counters, Pace

NOW = datetime(2031, 3, 15, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
CREDIT = 1_000_000
FREE = Budget()


def limited(whole: int, **more: Any) -> Budget:
    return Budget(limit=Microcredits(whole * CREDIT), **more)


def link(
    level: Level,
    budget: Budget = FREE,
    spent: int = 0,
    *,
    status: str = "active",
    pace: Pace = Pace(),  # noqa: B008 - frozen
    in_flight: int = 0,
    due_us: int = 0,
) -> Link:
    counters = Counters(0, Microcredits(spent * CREDIT), Microcredits(0), in_flight)
    stands = standing(replace(budget, period="never"), counters, NOW_US // 1000)
    return Link(level, f"{level}-1", level, status, budget, pace, stands, due_us)


def quota(key: Link | None = None, account: Link | None = None, organization: Link | None = None) -> Quota:
    chain = (key or link("key"), account or link("account"), organization or link("organization"))
    return explained(chain, NOW_US, is_loaded=True, is_answering=True)


def test_a_key_that_nothing_limits_says_so() -> None:
    found = quota()

    assert (found.binding, found.effective_remaining, found.admits, found.refusal) == (None, None, True, None)
    assert found.explanation == "Nothing limits what this key may spend."


def test_a_key_without_a_limit_inherits_the_one_above_it() -> None:
    found = quota(organization=link("organization", limited(20), 5))

    assert (found.binding, found.effective_remaining) == ("organization", 15 * CREDIT)
    assert found.explanation == "Inherits the organization's limit, 20 credits shared: 15 left."


def test_the_level_with_the_least_left_binds_not_the_one_with_the_least_limit() -> None:
    found = quota(
        link("key", limited(5), 1), link("account", limited(100), 98), link("organization", limited(50))
    )

    assert (found.binding, found.effective_remaining) == ("account", 2 * CREDIT)
    assert found.explanation == "The account's limit binds before the key's own, 100 credits shared: 2 left."


def test_of_two_with_as_much_left_the_nearer_one_binds() -> None:
    found = quota(link("key", limited(5)), organization=link("organization", limited(5)))

    assert found.binding == "key"
    assert found.explanation == "The key's own limit binds, 5 credits: 5 left."


def test_a_level_that_only_observes_does_not_bind_or_refuse_and_is_mentioned() -> None:
    found = quota(
        link("key", limited(5, enforcement="observe"), 9, pace=Pace(in_flight=0)),
        organization=link("organization", limited(20), 9),
    )

    assert (found.binding, found.effective_remaining, found.admits) == ("organization", 11 * CREDIT, True)
    assert found.explanation.endswith("11 left; the limit of the key is only observed.")


@pytest.mark.parametrize("level", LEVELS)
def test_a_limit_that_is_reached_refuses_even_what_costs_nothing(level: Level) -> None:
    links: dict[Any, Link] = {level: link(level, limited(3), 3)}
    found = quota(**links)

    assert (found.binding, found.effective_remaining, found.admits) == (level, 0, False)
    assert found.refusal == Verdict(
        "budget_exceeded", level, f"The credit limit of the {level} leaves nothing of 3 credits."
    )


@pytest.mark.parametrize(
    ("level", "status", "reason"),
    [
        ("key", "disabled", "key_disabled"),
        ("key", "revoked", "key_revoked"),
        ("key", "expired", "key_expired"),
        ("account", "inactive", "account_inactive"),
        ("account", "deleted", "account_deleted"),
        ("organization", "inactive", "organization_inactive"),
        ("organization", "deleted", "organization_deleted"),
    ],
)
def test_what_is_not_in_force_is_the_reason_before_any_limit(level: Level, status: str, reason: str) -> None:
    links: dict[Any, Link] = {"key": link("key", limited(0)), level: link(level, limited(0), status=status)}
    found = quota(**links)

    assert found.admits is False
    assert found.refusal is not None
    assert (found.refusal.reason, found.refusal.level) == (reason, level)


def test_requests_that_came_too_fast_have_to_wait_for_a_time_that_is_told() -> None:
    pace = Pace(per_minute=60, burst=2)
    in_time = quota(link("key", pace=pace, due_us=NOW_US + 1_000_000))
    too_fast = quota(link("key", pace=pace, due_us=NOW_US + 1_500_000))

    assert in_time.admits is True
    assert too_fast.refusal is not None
    assert (too_fast.refusal.reason, too_fast.refusal.level) == ("rate_limited", "key")
    assert "in 0.5 s" in too_fast.refusal.detail


def test_requests_owed_by_a_slower_pace_from_before_hold_up_nobody() -> None:
    found = quota(link("key", pace=Pace(per_minute=6_000), due_us=NOW_US + 3_600_000_000))

    assert found.admits is True


def test_too_many_requests_under_way_refuse_the_next() -> None:
    pace = Pace(in_flight=2)

    assert quota(account=link("account", pace=pace, in_flight=1)).admits is True
    found = quota(account=link("account", limited(0), pace=pace, in_flight=2))
    assert found.refusal is not None
    assert (found.refusal.reason, found.refusal.level) == ("too_many_in_flight", "account")


def test_while_redis_is_loaded_nothing_is_admitted() -> None:
    chain = (link("key"), link("account"), link("organization"))
    missing = (replace(chain[0], is_known=False), *chain[1:])

    for found in (
        explained(chain, NOW_US, is_loaded=False, is_answering=True),
        explained(missing, NOW_US, is_loaded=True, is_answering=True),
    ):
        assert found.refusal is not None
        assert (found.admits, found.refusal.reason) == (False, "not_ready")


def test_without_redis_the_rules_are_explained_and_nothing_is_claimed() -> None:
    def blind(*budgets: Budget) -> Quota:
        links = [
            replace(link(level, budget), standing=None) for level, budget in zip(LEVELS, budgets, strict=True)
        ]
        return explained((links[0], links[1], links[2]), 0, is_loaded=False, is_answering=False)

    one = blind(FREE, FREE, limited(20))
    assert (one.binding, one.effective_remaining, one.admits, one.refusal) == (
        "organization",
        None,
        None,
        None,
    )
    assert one.explanation == "Inherits the organization's limit, 20 credits shared."
    two = blind(limited(1), FREE, limited(20))
    assert (two.binding, two.admits) == (None, None)
    assert two.explanation.startswith("The limits of the key and the organization hold together")
