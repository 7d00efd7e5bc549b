"""Grants: prepaid credits that expire are used up soonest first, and what is left of them at that moment is lost."""

from collections.abc import Sequence

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.contract.grants import Grant
from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.contract.records import Budget
from tests.contract.desk import Answer, Desk, rules_of, workload
from tests.contract.line import NO_EXPIRY_MS, end_of, expiring, with_grant

NOW_MS = 1_710_504_000_000
BUILDER = workload()
FIRST_MS, SECOND_MS = NOW_MS + 1_000, NOW_MS + 2_000


class Prepaid:
    """A desk with an organization that lives on grants; its keys and accounts have no limits."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.line: list[Grant] = []
        self.version = 1
        self.requests = 0
        desk.publish_all(BUILDER, organization=Budget(Microcredits(0)))

    def grant(self, amount: int, expires_at_ms: int = NO_EXPIRY_MS, *, now_ms: int = NOW_MS) -> None:
        """As control does it: it knows what is spent and lost, and nothing of holds."""
        gone = self.spent + self.lost
        self.line = with_grant(self.line, amount, expires_at_ms, gone=gone, now_ms=now_ms)
        self.publish(end_of(self.line), expiring(self.line))

    def publish(self, limit: int, grants: Sequence[Grant] = (), *, since_ms: int = 0) -> None:
        self.version += 1
        budget = Budget(Microcredits(limit), since_ms=since_ms)
        rules = rules_of("organization", BUILDER, budget, self.version, grants=tuple(grants))
        assert self.desk.publish(rules) == 1

    def ask(self, amount: int) -> Answer:
        self.requests += 1
        return self.desk.admit(BUILDER, amount, request=f"r{self.requests}")

    def hold(self, amount: int) -> str:
        hold = self.ask(amount)
        assert isinstance(hold, str), hold
        return hold

    def spend(self, amount: int) -> None:
        assert self.desk.settle(BUILDER, self.hold(amount), amount) == 1

    @property
    def spent(self) -> int:
        return self.desk.counters(BUILDER, "organization")[0]

    @property
    def lost(self) -> int:
        return self.desk.counter(BUILDER, "organization", "lost")

    @property
    def left(self) -> int:
        """What a request would be told: asked for more than there can be, it is refused and leaves no trace."""
        answer = self.ask(AMOUNT_MAX)
        assert isinstance(answer, list)
        assert answer[:2] == ["budget", "organization"]
        limit, spent, held = (int(part) for part in answer[2:5])
        return limit - spent - held


@pytest.fixture
def prepaid(clocked: Desk) -> Prepaid:
    return Prepaid(clocked)


def test_without_a_grant_nothing_is_admitted(prepaid: Prepaid) -> None:
    assert prepaid.ask(0) == ["budget", "organization", 0, 0, 0, 0]


def test_grants_are_used_up_soonest_expiring_first_whatever_order_they_were_made_in(prepaid: Prepaid) -> None:
    prepaid.grant(20)
    prepaid.grant(50, SECOND_MS)
    prepaid.grant(30, FIRST_MS)
    prepaid.spend(40)
    assert prepaid.left == 60
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (0, 60), "the first to expire had been used up"
    prepaid.desk.set_time(SECOND_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (40, 20), "ten of the second had been used"
    prepaid.spend(20)
    assert prepaid.ask(0) == ["budget", "organization", 60, 60, 0, 0]


def test_a_grant_expires_to_the_millisecond(prepaid: Prepaid) -> None:
    prepaid.grant(10)
    prepaid.grant(90, FIRST_MS)
    prepaid.desk.set_time(FIRST_MS - 1, 999)
    prepaid.desk.settle(BUILDER, prepaid.hold(100), 0)
    assert (prepaid.lost, prepaid.left) == (0, 100)
    prepaid.desk.set_time(FIRST_MS)
    assert prepaid.ask(11) == ["budget", "organization", 10, 0, 0, 0]
    prepaid.spend(10)
    assert prepaid.lost == 90


def test_a_refused_request_finds_the_loss_and_writes_nothing(prepaid: Prepaid) -> None:
    prepaid.grant(90, FIRST_MS)
    prepaid.desk.set_time(FIRST_MS)
    before = prepaid.desk.everything()
    assert prepaid.ask(0) == ["budget", "organization", 0, 0, 0, 0]
    assert prepaid.desk.everything() == before


def test_what_is_held_when_its_grant_expires_stays_with_its_request(prepaid: Prepaid) -> None:
    prepaid.grant(100, FIRST_MS)
    prepaid.grant(10)
    hold = prepaid.hold(70)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (30, 10)
    assert prepaid.desk.settle(BUILDER, hold, 70) == 1
    prepaid.spend(0)
    assert (prepaid.spent, prepaid.lost, prepaid.left) == (70, 30, 10)


def test_what_comes_back_of_a_hold_after_its_grant_expired_is_lost_too(prepaid: Prepaid) -> None:
    prepaid.grant(100, FIRST_MS)
    prepaid.grant(10)
    hold = prepaid.hold(70)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert prepaid.desk.settle(BUILDER, hold, 25) == 1
    assert prepaid.left == 10
    prepaid.spend(0)
    assert (prepaid.spent, prepaid.lost, prepaid.left) == (25, 75, 10)


def test_a_top_up_takes_nothing_of_a_grant_that_has_expired(prepaid: Prepaid) -> None:
    prepaid.grant(100, FIRST_MS)
    prepaid.grant(200)
    hold = prepaid.hold(50)
    prepaid.desk.set_time(FIRST_MS)
    grown = prepaid.desk.extend(BUILDER, hold, 30)
    assert isinstance(grown, str)
    assert prepaid.lost == 50
    assert prepaid.left == 170
    assert prepaid.desk.extend(BUILDER, grown, 171) == ["budget", "organization", 250, 0, 80, 0]


def test_a_hold_across_two_grants_loses_only_what_of_the_expired_one_it_does_not_hold(
    prepaid: Prepaid,
) -> None:
    prepaid.grant(30, FIRST_MS)
    prepaid.grant(100, SECOND_MS)
    hold = prepaid.hold(50)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert prepaid.lost == 0
    prepaid.desk.settle(BUILDER, hold, 20)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (10, 100)


def test_a_grant_that_is_made_after_spending_is_whole_and_used_first_if_it_expires_first(
    prepaid: Prepaid,
) -> None:
    prepaid.grant(100)
    prepaid.spend(30)
    prepaid.grant(50, FIRST_MS)
    assert prepaid.left == 120
    prepaid.spend(20)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (30, 70)


def test_a_grant_that_is_made_after_all_others_expired_is_whole(prepaid: Prepaid) -> None:
    prepaid.grant(50, FIRST_MS)
    prepaid.spend(20)
    prepaid.desk.set_time(FIRST_MS)
    assert prepaid.left == 0
    prepaid.grant(40, now_ms=FIRST_MS)
    assert prepaid.left == 40
    prepaid.spend(40)
    assert (prepaid.spent, prepaid.lost) == (60, 30)


def test_two_grants_that_expire_together_are_lost_together(prepaid: Prepaid) -> None:
    prepaid.grant(40, FIRST_MS)
    prepaid.grant(60, FIRST_MS)
    prepaid.grant(5)
    prepaid.spend(30)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (70, 5)


def test_a_grant_left_out_of_the_rules_once_its_loss_is_booked_changes_nothing(prepaid: Prepaid) -> None:
    prepaid.grant(40, FIRST_MS)
    prepaid.grant(60)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    prepaid.publish(100)
    prepaid.spend(10)
    assert (prepaid.lost, prepaid.left) == (40, 50)


def test_what_is_lost_never_comes_back_when_the_clock_does(prepaid: Prepaid) -> None:
    prepaid.grant(40, FIRST_MS)
    prepaid.grant(60)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    prepaid.desk.set_time(NOW_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (40, 60)


def test_a_rebuilt_record_begins_with_what_was_lost(prepaid: Prepaid) -> None:
    desk = prepaid.desk
    desk.client.delete(desk.layout.organization(BUILDER.tag))
    rules = rules_of("organization", BUILDER, Budget(Microcredits(100)), 9)
    assert desk.publish(rules, window=0, spent=25, lost=40) == 1
    assert (prepaid.spent, prepaid.lost, prepaid.left) == (25, 40, 35)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_record_that_forgot_a_loss_of_its_window_is_told_of_it_by_any_publisher(
    prepaid: Prepaid, version: int
) -> None:
    prepaid.grant(100)
    rules = rules_of("organization", BUILDER, Budget(Microcredits(100)), version)
    assert prepaid.desk.publish(rules, window=0, spent=0, lost=40) == (version > prepaid.version)
    assert (prepaid.lost, prepaid.left) == (40, 60)


@pytest.mark.parametrize(("window", "lost"), [(0, 30), (0, 40), (77, 99), ("", "")])
def test_less_than_is_lost_already_and_what_another_window_lost_is_not_taken(
    prepaid: Prepaid, window: int | str, lost: int | str
) -> None:
    prepaid.grant(40, FIRST_MS)
    prepaid.grant(60)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    rules = rules_of("organization", BUILDER, Budget(Microcredits(100)), prepaid.version)
    assert prepaid.desk.publish(rules, window=window, spent=0, lost=lost) == 0
    assert (prepaid.lost, prepaid.left) == (40, 60)


def test_a_new_line_starts_with_nothing_spent_and_nothing_lost(prepaid: Prepaid) -> None:
    """As control does when an organization becomes prepaid, or is no more."""
    prepaid.grant(40, FIRST_MS)
    prepaid.grant(60)
    prepaid.spend(10)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    prepaid.publish(70, [Grant(SECOND_MS, Microcredits(20))], since_ms=FIRST_MS)
    assert prepaid.left == 70
    prepaid.spend(5)
    assert (prepaid.spent, prepaid.lost, prepaid.left) == (5, 0, 65)
    prepaid.desk.set_time(SECOND_MS)
    prepaid.spend(0)
    assert (prepaid.lost, prepaid.left) == (15, 50)


def test_the_loss_of_an_ended_window_takes_nothing_off_the_new_ones_top_ups(prepaid: Prepaid) -> None:
    prepaid.grant(40, FIRST_MS)
    prepaid.grant(60)
    hold = prepaid.hold(10)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert prepaid.lost == 30
    prepaid.publish(50, since_ms=FIRST_MS)
    assert prepaid.desk.extend(BUILDER, hold, 41) == ["budget", "organization", 50, 0, 0, 0]
    assert isinstance(prepaid.desk.extend(BUILDER, hold, 40), str)


def test_what_is_left_of_a_limit_is_never_below_nothing(prepaid: Prepaid) -> None:
    prepaid.grant(100, FIRST_MS)
    prepaid.grant(50)
    hold = prepaid.hold(10)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(0)
    assert prepaid.lost == 90
    prepaid.publish(50)
    assert prepaid.ask(0) == ["budget", "organization", 0, 0, 10, 0]
    assert prepaid.desk.extend(BUILDER, hold, 1) == ["budget", "organization", 0, 0, 10, 0]
    assert prepaid.desk.settle(BUILDER, hold, 10) == 1
    assert {alert.limit for alert in prepaid.desk.alerts(BUILDER)} == {0}


def test_an_organization_that_observes_goes_on_when_its_grants_have_expired(prepaid: Prepaid) -> None:
    prepaid.version += 1
    budget = Budget(Microcredits(100), enforcement="observe")
    grants = (Grant(FIRST_MS, Microcredits(100)),)
    prepaid.desk.publish(rules_of("organization", BUILDER, budget, prepaid.version, grants=grants))
    prepaid.desk.set_time(FIRST_MS)
    answer = prepaid.ask(5)
    assert isinstance(answer, list)
    assert answer[0] == "observed"
    assert answer[2:] == ["organization", "budget"]


def test_lines_of_the_largest_credits_stay_exact(prepaid: Prepaid) -> None:
    prepaid.grant(AMOUNT_MAX - 3, FIRST_MS)
    prepaid.grant(2)
    prepaid.spend(AMOUNT_MAX - 7)
    prepaid.desk.set_time(FIRST_MS)
    prepaid.spend(1)
    assert (prepaid.lost, prepaid.left) == (4, 1)


def test_a_line_is_no_other_than_purses_that_are_emptied_soonest_expiring_first(valkey: redis.Redis) -> None:
    """Each grant as a purse of its own: what may be spent, what is left and what is lost are the same."""
    losses = 0
    waits = st.sampled_from([0, 1, 5, 50])
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("grant"), st.integers(1, 60), st.sampled_from([0, 1, 5, 20, 100, None])),
            st.tuples(st.just("spend"), st.integers(0, 40), waits),
        ),
        min_size=4,
        max_size=25,
    )

    @settings(max_examples=100, derandomize=True, database=None, deadline=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(steps)
    def same(chosen: list[tuple[str, int, int | None]]) -> None:
        nonlocal losses
        valkey.flushdb()
        desk = Desk(valkey, clock=True)
        now_ms = NOW_MS
        desk.set_time(now_ms)
        prepaid, purses = Prepaid(desk), list[list[int]]()  # [expires at, made, credits]
        for number, (what, amount, delay_ms) in enumerate(chosen):
            if what == "grant":
                expires_at_ms = NO_EXPIRY_MS if delay_ms is None else now_ms + delay_ms
                prepaid.grant(amount, expires_at_ms, now_ms=now_ms)
                purses.append([expires_at_ms, number, amount])
                continue
            now_ms += delay_ms or 0
            desk.set_time(now_ms)
            open_purses = sorted(purse for purse in purses if purse[0] > now_ms)
            inside = sum(purse[2] for purse in open_purses)
            assert prepaid.left == inside
            answer = prepaid.ask(amount)
            assert isinstance(answer, str) == (amount <= inside and inside > 0)
            if isinstance(answer, str):
                assert desk.settle(BUILDER, answer, amount) == 1
                assert prepaid.lost == sum(purse[2] for purse in purses if purse[0] <= now_ms)
                losses += prepaid.lost > 0
                for purse in open_purses:
                    taken = min(purse[2], amount)
                    purse[2] -= taken
                    amount -= taken

    same()
    assert losses > 50


def test_a_request_that_comes_to_more_than_was_held_takes_nothing_of_a_grant_that_has_expired(
    prepaid: Prepaid,
) -> None:
    prepaid.grant(20, FIRST_MS)
    prepaid.grant(100)
    hold = prepaid.hold(10)
    prepaid.desk.set_time(FIRST_MS)
    assert prepaid.desk.settle(BUILDER, hold, 30) == 1
    assert (prepaid.lost, prepaid.spent) == (10, 30)
    assert prepaid.desk.admit(BUILDER, 81) == ["budget", "organization", 110, 30, 0, 0]
    assert isinstance(prepaid.desk.admit(BUILDER, 80, request="fits"), str)


def test_a_settlement_finds_no_loss_in_a_window_that_is_over(prepaid: Prepaid) -> None:
    """The grants that the record speaks of by then are those of the new window."""
    prepaid.grant(20, FIRST_MS)
    hold = prepaid.hold(10)
    prepaid.desk.set_time(SECOND_MS)
    prepaid.publish(50, (Grant(SECOND_MS, Microcredits(50)),), since_ms=SECOND_MS)
    assert prepaid.desk.settle(BUILDER, hold, 10) == 1
    assert prepaid.lost == 0
