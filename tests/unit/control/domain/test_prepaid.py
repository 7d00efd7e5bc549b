"""The line of prepaid credits: where grants go, what of them is lost, and what is left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.domain.prepaid import Line, Part, budget_in_force, laid, passed, shares
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget

NOW = datetime(2031, 3, 15, 12, tzinfo=UTC)
SOON, LATER = NOW + timedelta(days=1), NOW + timedelta(days=2)


def part(name: str, amount: int, expires_at: datetime | None = None, end: int = 0) -> Part:
    return Part(name, Microcredits(amount), Microcredits(end), expires_at)


def ends(parts: list[Part]) -> list[tuple[str, int]]:
    return [(each.id, each.end) for each in parts]


def test_the_first_grant_starts_where_the_line_is_used_up() -> None:
    assert ends(laid([], part("a", 100), 0)) == [("a", 100)]
    assert ends(laid([], part("a", 100), 30)) == [("a", 130)]


def test_a_grant_goes_before_those_that_expire_later_and_after_all_others() -> None:
    there = [part("soon", 10, SOON, 10), part("later", 20, LATER, 30), part("never", 30, None, 60)]

    assert ends(laid(there, part("new", 5, SOON), 0)) == [
        ("soon", 10),
        ("new", 15),
        ("later", 35),
        ("never", 65),
    ]
    assert ends(laid(there, part("new", 5, LATER), 0)) == [
        ("soon", 10),
        ("later", 30),
        ("new", 35),
        ("never", 65),
    ]
    assert ends(laid(there, part("new", 5), 0)) == [("soon", 10), ("later", 30), ("never", 60), ("new", 65)]


def test_what_was_spent_before_takes_nothing_of_a_new_grant_that_expires_sooner() -> None:
    placed = laid([part("never", 100, None, 100)], part("new", 50, SOON), 30)

    assert ends(placed) == [("new", 80), ("never", 150)]
    left = shares(placed, NOW, 30, 0)
    assert (left["new"].left, left["never"].left) == (50, 70)


def test_what_was_spent_beyond_everything_granted_is_not_taken_from_a_new_grant() -> None:
    assert ends(laid([part("old", 100, None, 100)], part("new", 50, SOON), 110)) == [
        ("new", 160),
        ("old", 160),
    ]
    assert ends(laid([part("old", 100, None, 100)], part("new", 50), 110)) == [("old", 100), ("new", 160)]


def test_expired_grants_are_passed_even_before_their_loss_is_booked() -> None:
    there = [part("old", 100, NOW, 100), part("later", 50, LATER, 150)]

    assert passed(there, NOW - timedelta(milliseconds=1), 30, 0) == 30
    assert passed(there, NOW, 30, 0) == 100
    assert passed(there, NOW, 30, 80) == 110


def test_a_grant_is_shown_as_used_lost_and_left() -> None:
    there = [part("old", 100, NOW, 100), part("soon", 50, SOON, 150), part("never", 10, None, 160)]

    found = shares(there, NOW, 120, 70)
    assert (found["old"].used, found["old"].lost, found["old"].left) == (30, 70, 0)
    assert (found["soon"].used, found["soon"].lost, found["soon"].left) == (20, 0, 30)
    assert (found["never"].used, found["never"].lost, found["never"].left) == (0, 0, 10)


AMOUNTS = st.integers(1, 1_000)
EXPIRIES = st.one_of(st.none(), st.integers(1, 5).map(lambda days: NOW + timedelta(days=days)))
STEPS = st.lists(st.one_of(st.tuples(AMOUNTS, EXPIRIES), AMOUNTS), max_size=30)


@given(STEPS)
def test_granting_and_spending_in_any_order_leaves_what_was_granted_less_what_was_spent(
    steps: list[tuple[int, datetime | None] | int],
) -> None:
    parts: list[Part] = []
    spent = granted = 0
    for number, step in enumerate(steps):
        if isinstance(step, int):
            spent += min(step, granted - spent)
            continue
        amount, expires_at = step
        before = shares(parts, NOW, spent, 0)
        parts = laid(parts, part(str(number), amount, expires_at), passed(parts, NOW, spent, 0))
        granted += amount
        after = shares(parts, NOW, spent, 0)
        assert after[str(number)].left == amount
        assert all(after[name].left == before[name].left for name in before)
    assert sum(share.left for share in shares(parts, NOW, spent, 0).values()) == granted - spent
    assert max((each.end for each in parts), default=0) == granted
    assert [each.end for each in parts] == sorted(each.end for each in parts)


@pytest.mark.parametrize("billing", [None, "prepaid", "postpaid"])
def test_billing_decides_which_limit_is_in_force(billing: str | None) -> None:
    own = Budget(Microcredits(5), "monthly", 10, 77, "enforce", (50,))
    line = Line(Microcredits(30), Microcredits(30), Microcredits(0), Microcredits(0), ())
    expected = {
        None: own,
        "prepaid": replace(own, limit=Microcredits(30), period="never"),
        "postpaid": replace(own, enforcement="observe"),
    }

    assert budget_in_force(own, billing, line if billing == "prepaid" else None) == expected[billing]  # type: ignore[arg-type]
