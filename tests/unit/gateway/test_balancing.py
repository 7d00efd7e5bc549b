"""Which target a request goes to: the least busy of those that are well, and nobody is left out for ever or flooded."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gateway.balancing import Standing, choose
from gateway.routing import Ejection, HealthCheck

NOW = 1000.0
EJECTION = Ejection(after_failures=3, for_s=1.0, for_max_s=10.0, slow_start_s=5.0)
CHECK = HealthCheck(b"/healthz", healthy_after=2, unhealthy_after=3)

TIMES = st.floats(0.0, 2 * NOW)
STANDINGS = st.builds(
    Standing,
    pending=st.integers(0, 30),
    ejected_until=st.one_of(st.just(0.0), TIMES),
    back_at=st.one_of(st.just(float("-inf")), st.floats(0.0, NOW)),
    is_well=st.booleans(),
)
EJECTIONS = st.builds(
    Ejection,
    after_failures=st.integers(1, 5),
    for_s=st.floats(0.01, 100.0),
    for_max_s=st.floats(0.01, 100.0),
    slow_start_s=st.one_of(st.just(0.0), st.floats(0.01, 100.0)),
)


def failed(standing: Standing, now: float, times: int = 1, ejection: Ejection = EJECTION) -> list[float]:
    """What is said to so many failures in a row."""
    return [standing.note_failure(now, ejection) for _ in range(times)]


@given(st.lists(STANDINGS, max_size=6), st.integers(0, 5), st.sets(st.integers(0, 5)), EJECTIONS)
def test_the_least_busy_target_that_may_be_taken_is_taken(
    standings: list[Standing], first: int, avoided: set[int], ejection: Ejection
) -> None:
    position = choose(standings, NOW, ejection, first=first, avoided=avoided)
    able = [at for at, standing in enumerate(standings) if standing.is_well and at not in avoided]
    best = [at for at in able if not standings[at].is_ejected(NOW)]
    event("nobody" if not able else "somebody" if best else "ejected ones only")
    if not able:
        assert position is None
        return
    assert position in able, "an avoided or ill target was taken"
    if best:
        loads = {at: standings[at].load(NOW, ejection.slow_start_s) for at in best}
        assert loads[position] == min(loads.values())
    else:
        assert standings[position].ejected_until == min(standings[at].ejected_until for at in able)


@given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 20))
def test_equally_busy_targets_take_turns(count: int, pending: int, first: int) -> None:
    standings = [Standing(pending=pending) for _ in range(count)]
    taken = [choose(standings, NOW, EJECTION, first=(first + turn) % count) for turn in range(count)]
    assert sorted(position for position in taken if position is not None) == list(range(count))


def test_a_busier_target_is_taken_by_nobody_whose_turn_it_is() -> None:
    standings = [Standing(pending=3), Standing(pending=2), Standing(pending=3)]
    assert {choose(standings, NOW, EJECTION, first=first) for first in range(3)} == {1}


def test_of_targets_that_are_all_out_the_one_that_is_back_first_is_tried() -> None:
    standings = [Standing(ejected_until=NOW + seconds) for seconds in (3.0, 1.0, 2.0)]
    assert {choose(standings, NOW, EJECTION, first=first) for first in range(3)} == {1}
    assert choose(standings, NOW, EJECTION, avoided={1}) == 2
    standings[1].is_well = False
    assert choose(standings, NOW, EJECTION) == 2


@pytest.mark.parametrize("after_failures", [1, 2, 3, 5])
def test_a_target_is_ejected_once_it_has_failed_so_many_times_in_a_row(after_failures: int) -> None:
    ejection = Ejection(after_failures=after_failures)
    standing = Standing()
    said = failed(standing, NOW, after_failures, ejection)
    assert said == [0.0] * (after_failures - 1) + [1.0]
    assert standing.is_ejected(NOW + 0.99)
    assert not standing.is_ejected(NOW + 1.0)


def test_an_answer_in_between_begins_the_count_anew() -> None:
    standing = Standing()
    for _ in range(10):
        assert failed(standing, NOW, 2) == [0.0, 0.0]
        standing.note_answer(NOW, EJECTION)
    assert standing.ejections == 0


@given(EJECTIONS, st.integers(1, 60))
def test_a_target_that_fails_again_is_left_out_for_longer_up_to_a_bound(
    ejection: Ejection, rounds: int
) -> None:
    standing, now, lengths = Standing(), NOW, []
    failed(standing, now, ejection.after_failures - 1, ejection)
    for _ in range(rounds):
        (seconds,) = failed(standing, now, 1, ejection)
        assert standing.is_ejected(now + seconds * 0.99)
        lengths.append(seconds)
        now = standing.ejected_until
    assert lengths[0] == min(ejection.for_s, ejection.for_max_s)
    assert all(0.0 < shorter <= longer for shorter, longer in pairwise(lengths))
    assert all(length <= ejection.for_max_s for length in lengths)
    assert all(
        longer in (2 * shorter, ejection.for_max_s) or longer == pytest.approx(2 * shorter)
        for shorter, longer in pairwise(lengths)
    )


def test_a_thousand_ejections_are_still_counted_in_seconds() -> None:
    standing, now, seconds = Standing(), NOW, 0.0
    failed(standing, now, 2)
    for _ in range(1000):
        (seconds,) = failed(standing, now)
        now += seconds
    assert seconds == EJECTION.for_max_s


def test_what_fails_while_a_target_is_out_does_not_prolong_that() -> None:
    """Requests that were under way at it when it was ejected."""
    standing = Standing()
    failed(standing, NOW, 3)
    assert failed(standing, NOW + 0.5, 50) == [0.0] * 50
    assert not standing.is_ejected(NOW + 1.0)


@pytest.mark.parametrize("meanwhile", [0, 1, 2, 7])
def test_a_target_that_is_back_is_ejected_again_at_its_first_failure(meanwhile: int) -> None:
    standing = Standing()
    failed(standing, NOW, 3)
    failed(standing, NOW + 0.5, meanwhile)
    assert failed(standing, NOW + 1.5) == [2.0]


def test_one_answer_is_not_enough_to_be_trusted_again() -> None:
    standing = Standing()
    failed(standing, NOW, 3)
    standing.note_answer(NOW + 1.1, EJECTION)
    assert failed(standing, NOW + 1.2) == [2.0]


def test_a_target_that_does_well_for_a_while_is_as_good_as_new() -> None:
    standing = Standing()
    failed(standing, NOW, 3)
    well_after_s = 1.0 + EJECTION.slow_start_s + EJECTION.for_s
    standing.note_answer(NOW + well_after_s - 0.1, EJECTION)
    assert standing.ejections == 1
    standing.note_answer(NOW + well_after_s, EJECTION)
    assert standing.ejections == 0
    assert failed(standing, NOW + 20, 3) == [0.0, 0.0, 1.0]


@given(st.integers(0, 50), st.floats(0.01, 100.0), st.lists(st.floats(0.0, 200.0), min_size=2, max_size=20))
def test_the_share_of_a_target_that_is_back_only_grows(
    pending: int, slow_start_s: float, moments: list[float]
) -> None:
    standing = Standing(pending=pending, back_at=NOW)
    loads = [standing.load(NOW + moment, slow_start_s) for moment in sorted(moments)]
    assert all(later <= earlier for earlier, later in pairwise(loads))
    assert all(load >= pending for load in loads)
    assert standing.load(NOW, slow_start_s) == pytest.approx(10 * (pending + 1))
    assert standing.load(NOW + slow_start_s * 1.01, slow_start_s) == pending


def test_a_target_without_slow_start_has_its_whole_share_at_once() -> None:
    standing = Standing(pending=4, back_at=NOW)
    assert standing.load(NOW, 0.0) == 4.0


def test_a_new_target_has_its_whole_share() -> None:
    assert Standing(pending=2).load(0.0, 3600.0) == 2.0


def test_a_target_that_is_back_is_not_flooded_and_gets_its_share_in_the_end() -> None:
    """Two targets, a request every 50 ms that takes a second: how many of each second's twenty the second one gets."""
    standings = [Standing(), Standing(back_at=NOW)]
    under_way: list[tuple[float, int]] = []
    shares: list[int] = []
    for second in range(8):
        shares.append(0)
        for step in range(20):
            now = NOW + second + step / 20
            for position in [position for ends, position in under_way if ends <= now]:
                standings[position].pending -= 1
            under_way = [(ends, position) for ends, position in under_way if ends > now]
            taken = choose(standings, now, EJECTION, first=step % 2)
            assert taken is not None
            standings[taken].pending += 1
            under_way.append((now + 1.0, taken))
            shares[-1] += taken
    assert shares[0] <= 4
    assert shares[-1] == 10
    assert all(earlier <= later + 1 for earlier, later in pairwise(shares))


# -- health checks


def test_a_standing_changes_after_so_many_checks_in_a_row() -> None:
    standing = Standing()
    assert [standing.note_check(NOW, False, CHECK) for _ in range(4)] == [False, False, True, False]
    assert not standing.is_well
    assert [standing.note_check(NOW, True, CHECK) for _ in range(3)] == [False, True, False]
    assert standing.is_well


def test_a_check_that_agrees_begins_the_count_anew() -> None:
    standing = Standing()
    for _ in range(10):
        assert [standing.note_check(NOW, found, CHECK) for found in (False, False, True)] == [False] * 3
    assert standing.is_well


def test_an_ill_target_is_taken_by_nobody_even_if_it_is_the_only_one() -> None:
    standing = Standing(is_well=False)
    assert choose([standing], NOW, EJECTION) is None


def test_a_target_that_is_well_again_is_let_in_slowly_whatever_failed_before() -> None:
    standing = Standing()
    failed(standing, NOW, 2)
    standing.note_check(NOW, False, HealthCheck(b"/", unhealthy_after=1))
    standing.ejected_until = NOW + 10
    assert standing.note_check(NOW + 1, True, HealthCheck(b"/", healthy_after=1))
    assert not standing.is_ejected(NOW + 1)
    assert standing.load(NOW + 1, EJECTION.slow_start_s) == pytest.approx(10.0)
    assert failed(standing, NOW + 1, 2) == [0.0, 0.0]
