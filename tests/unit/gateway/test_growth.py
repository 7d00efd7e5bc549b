"""An answer that outgrows its hold is topped up while there is room, else cut, and settled once, whatever is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract.money import Microcredits
from gateway.holding import UNCOVERED_MAX_S
from gateway.pricing import Price
from tests.unit.gateway.metered import (
    METERED,
    STREAM,
    TOKENS,
    asks,
    chunk,
    event,
    held,
    metered_world,
    settled,
)
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import World, post

SOON_S = 0.25
"""Two ticks, and a bit."""

BY_BYTES = replace(METERED, price=Price(kib_out=Microcredits(1_024)), meters=None, hold=Microcredits(1_000))
BY_TIME = replace(METERED, price=Price(second=Microcredits(1_000)), meters=None, hold=Microcredits(1_000))
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


def streaming(world: World, first: bytes = b"") -> tuple[Line, Line]:
    """A client and its upstream, which has begun to answer with events."""
    client = asks(world)
    upstream = world.upstream.lines[-1]
    upstream.say(STREAM + first)
    world.settle_down()
    return client, upstream


def ends(world: World, upstream: Line) -> None:
    upstream.say(b"0\r\n\r\n")
    world.settle_down()
    world.advance(0.5)


def noting_extensions(world: World) -> list[int]:
    """What is asked for in addition, each time."""
    asked: list[int] = []

    def reply(command: list[bytes]) -> Any:
        if world.redis.name_of(command) == "extend":
            asked.append(int(command[-2]))
        return world.redis.run(command)

    world.redis.replies = reply
    return asked


# -- topped up


@pytest.mark.parametrize(
    ("used", "asked", "amount"),
    [(130, [], 2_000), (131, [1_000], 3_000), (200, [1_000], 3_000), (230, [1_000], 3_000), (500, [3_700], 5_700)],
)  # fmt: skip
def test_a_hold_grows_by_a_step_or_by_what_is_needed_if_that_is_more(
    used: int, asked: list[int], amount: int
) -> None:
    with metered_world() as world:
        extensions = noting_extensions(world)
        client, upstream = streaming(world, chunk(event(used)))
        world.advance(1.0)
        assert (extensions, held(world)) == (asked, amount)
        ends(world, upstream)
        assert client.sent.endswith(b"0\r\n\r\n")
        done = settled(world)
        assert (done.outcome, done.cost, done.held) == ("completed", 700 + 10 * used, amount)
        assert world.proxy.metrics.overshoot == 0
        assert world.proxy.metrics.events["hold_topped_up"] == len(asked)
        world.check_books()


def test_a_long_answer_is_topped_up_again_and_again_and_one_step_ahead_at_most() -> None:
    with metered_world() as world:
        client, upstream = streaming(world)
        for used in range(20, 1_000, 20):
            upstream.say(chunk(event(used)))
            world.advance(0.1)
            cost = 700 + 10 * used
            assert cost <= held(world) < max(cost + 1_000, 2_001)
        ends(world, upstream)
        assert b"error" not in client.sent
        world.check_books()


def test_where_a_step_does_not_fit_exactly_what_is_needed_is_held() -> None:
    with metered_world() as world:
        world.redis.room = 800
        extensions = noting_extensions(world)
        _, upstream = streaming(world, chunk(event(200)))
        world.advance(SOON_S)
        assert (extensions, held(world), world.redis.room) == ([1_000, 700], 2_700, 100)
        ends(world, upstream)
        assert (settled(world).cost, world.proxy.metrics.overshoot) == (2_700, 0)
        world.check_books()


def test_a_step_of_its_own_may_be_smaller_than_the_hold() -> None:
    with metered_world(replace(METERED, hold_step=Microcredits(50))) as world:
        extensions = noting_extensions(world)
        _, upstream = streaming(world, chunk(event(131)))
        world.advance(SOON_S)
        assert (extensions, held(world)) == ([50], 2_050)
        ends(world, upstream)
        world.check_books()


def test_bytes_are_looked_at_as_they_pass() -> None:
    """A read may overshoot, and nothing else: not a tick's worth of reads."""
    with metered_world(BY_BYTES) as world:
        client = asks(world)
        upstream = world.upstream.lines[-1]
        upstream.say(LONG)
        for _ in range(20):
            upstream.say(b"x" * 400)
            world.turn(3)
        assert 8_000 <= held(world) < 9_400
        assert len(client.sent) >= 8_000
        world.redis.room = 0
        upstream.say(b"x" * 2_000)
        world.turn(3)
        assert client.is_closing()
        assert settled(world).outcome == "cut"
        world.check_books()


def test_time_is_looked_at_as_it_passes() -> None:
    with metered_world(BY_TIME) as world:
        extensions = noting_extensions(world)
        asks(world)
        world.advance(3.75)
        assert extensions == [1_000] * 3
        assert held(world) == 4_000
        world.upstream.lines[0].say(b"HTTP/1.1 204 No Content\r\n\r\n")
        world.settle_down()
        assert 3_750 <= settled(world).cost <= 4_000
        world.check_books()


def test_an_upload_is_looked_at_as_it_passes() -> None:
    with metered_world(replace(BY_BYTES, price=Price(kib_in=Microcredits(1_024)))) as world:
        client = world.client()
        request = post(b"x" * 10_000)
        client.say(request[:-5_000])
        world.advance(SOON_S)
        assert 5_000 <= held(world) <= 6_000
        world.redis.room = 0
        client.say(request[-5_000:])
        world.advance(SOON_S)
        assert client.sent.startswith(b"HTTP/1.1 402 ")
        assert (settled(world).outcome, settled(world).cost) == ("cut", 10_000)
        world.check_books()


def test_a_fixed_price_is_never_looked_at() -> None:
    with metered_world(replace(METERED, price=Price(Microcredits(700)), meters=None)) as world:
        extensions = noting_extensions(world)
        _, upstream = streaming(world, chunk(event(9_999)))
        world.advance(5.0)
        assert extensions == []
        ends(world, upstream)
        assert settled(world).cost == 700


def test_a_topped_up_hold_has_its_deadline_pushed_on() -> None:
    with metered_world(hold_ttl_s=20.0) as world:
        extensions = noting_extensions(world)
        _, upstream = streaming(world, chunk(event(200)))
        world.advance(16.0)
        assert extensions == [1_000, 0, 0, 0]
        ends(world, upstream)
        world.check_books()


def test_while_more_is_asked_for_the_upstream_is_not_read() -> None:
    """So an answer outgrows what is held by one read, however long Redis takes."""
    with metered_world() as world:
        client, upstream = outgrown(world)
        upstream.say(chunk(event(201)))
        world.turn(3)
        assert upstream.is_paused
        assert client.sent.endswith(chunk(event(200)))
        world.is_prompt = True
        world.turn(3)
        assert not upstream.is_paused
        assert client.sent.endswith(chunk(event(201)))
        ends(world, upstream)
        world.check_books()


# -- no room


@pytest.mark.parametrize("room", [0, 1, 699])
def test_where_there_is_no_room_the_answer_is_cut_and_what_was_used_is_charged(room: int) -> None:
    with metered_world() as world:
        world.redis.room = room
        extensions = noting_extensions(world)
        client, upstream = streaming(world, chunk(event(200)))
        world.advance(SOON_S)
        assert extensions == [1_000, 700]
        assert upstream.is_lost
        assert b"budget_exceeded" in client.sent
        done = settled(world)
        assert (done.outcome, done.status, done.cost, done.held) == ("cut", 200, 2_700, 2_000)
        assert (world.redis.room, world.proxy.metrics.overshoot) == (room, 700)
        assert world.proxy.metrics.events["cut_for_budget"] == 1
        world.check_books()


def test_what_was_used_when_room_ran_out_is_no_more_than_a_step_above_the_limit() -> None:
    with metered_world() as world:
        world.redis.room = 5_000
        client, upstream = streaming(world)
        used = 0
        while not upstream.is_lost:
            used += 10
            upstream.say(chunk(event(used)))
            world.advance(0.1)
        assert 7_000 < settled(world).cost <= 7_000 + 2 * 100
        assert world.redis.room == 0
        assert client.sent.endswith(b"0\r\n\r\n")
        world.check_books()


# -- the cap


def test_a_hold_grows_up_to_the_cap_and_beyond_it_the_answer_is_cut() -> None:
    capped = replace(METERED, price=Price(Microcredits(700), units=TOKENS, cap=Microcredits(3_300)))
    with metered_world(capped) as world:
        extensions = noting_extensions(world)
        client, upstream = streaming(world)
        for used in (131, 231, 260):
            upstream.say(chunk(event(used)))
            world.advance(SOON_S)
        assert (extensions, held(world)) == ([1_000, 300], 3_300)
        assert not upstream.is_lost, "it has come to the cap, and not passed it"
        upstream.say(chunk(event(261)))
        world.advance(SOON_S)
        assert upstream.is_lost
        assert b"cap_reached" in client.sent
        assert (settled(world).outcome, settled(world).cost) == ("cut", 3_300)
        world.check_books()


def test_an_answer_that_was_whole_before_it_was_looked_at_costs_the_cap() -> None:
    capped = replace(METERED, price=Price(units=TOKENS, cap=Microcredits(3_000)))
    with metered_world(capped) as world:
        client, upstream = streaming(world, chunk(event(9_999)) + b"0\r\n\r\n")
        assert client.sent.endswith(b"0\r\n\r\n")
        assert (settled(world).outcome, settled(world).cost) == ("completed", 3_000)
        assert not upstream.is_closing()
        world.check_books()


# -- what Redis fails to say


def lose_redis(world: World, executed: bool) -> None:
    """The connection breaks while an extension is under way, that was run or was not."""
    assert "extend" in world.redis.waiting
    if executed:
        world.redis.run_unanswered()
    world.redis.drop_unanswered()
    assert world.redis.line is not None
    world.redis.line.lose()
    world.loop.turn(3)


def outgrown(world: World) -> tuple[Line, Line]:
    """An answer that has outgrown its hold; Redis has not said anything yet."""
    client, upstream = streaming(world)
    world.is_prompt = False
    upstream.say(chunk(event(200)))
    world.advance(0.15, 0.05)
    assert world.redis.waiting == ["extend"]
    return client, upstream


executed_or_not = pytest.mark.parametrize("executed", [True, False])


@executed_or_not
def test_a_client_that_goes_when_the_answer_to_an_extension_is_lost_is_billed_once(executed: bool) -> None:
    with metered_world() as world:
        client, _ = outgrown(world)
        lose_redis(world, executed)
        client.lose()
        world.loop.turn(3)
        world.is_prompt = True
        world.advance(2.0)
        done = settled(world)
        assert (done.outcome, done.cost, done.held) == ("client_gone", 2_700, 3_000 if executed else 2_000)
        world.check_books()


@executed_or_not
def test_an_answer_that_ends_with_the_read_that_outgrows_its_hold_is_settled_once(executed: bool) -> None:
    with metered_world() as world:
        client, upstream = streaming(world)
        world.is_prompt = False
        upstream.say(chunk(event(200)) + b"0\r\n\r\n")
        world.turn(2)
        assert world.redis.waiting == ["extend", "settle"]
        world.redis.answer(1 if executed else 0)
        world.redis.drop_unanswered()
        assert world.redis.line is not None
        world.redis.line.lose()
        world.is_prompt = True
        world.advance(2.0)
        done = settled(world)
        assert (done.outcome, done.cost, done.held) == ("completed", 2_700, 3_000 if executed else 2_000)
        assert client.sent.endswith(b"0\r\n\r\n")
        world.check_books()


@executed_or_not
def test_an_extension_whose_answer_was_lost_is_found_out_about_and_the_request_goes_on(
    executed: bool,
) -> None:
    with metered_world() as world:
        client, upstream = outgrown(world)
        lose_redis(world, executed)
        world.is_prompt = True
        extensions = noting_extensions(world)
        world.advance(0.6)
        assert extensions == ([0, 0] if executed else [0, 1_000]), "first it is asked which hold it is"
        assert held(world) == 3_000
        assert not client.is_closing()
        ends(world, upstream)
        assert (settled(world).cost, settled(world).held) == (2_700, 3_000)
        world.check_books()


@executed_or_not
@pytest.mark.parametrize(
    "error", ["NOSCRIPT No matching script", "LOADING Redis is loading", "ERR user_script:1"]
)
def test_an_error_in_between_does_not_make_it_forgotten_that_the_hold_may_be_another(
    executed: bool, error: str
) -> None:
    with metered_world() as world:
        client, upstream = outgrown(world)
        lose_redis(world, executed)
        run = world.redis.run
        world.redis.replies = lambda command: (
            hiredis.ReplyError(error) if world.redis.name_of(command) == "extend" else run(command)
        )
        world.is_prompt = True
        world.advance(0.3)
        assert not upstream.is_lost
        client.lose()
        world.settle_down()
        world.redis.replies = None
        world.advance(2.0)
        assert settled(world).held == (3_000 if executed else 2_000)
        world.check_books()


@pytest.mark.parametrize("room", [None, 0])
@pytest.mark.parametrize("goes", ["the answer ends", "the client goes"])
def test_what_ends_while_a_top_up_is_under_way_is_settled_once_with_the_hold_that_there_is(
    room: int | None, goes: str
) -> None:
    with metered_world() as world:
        client, upstream = streaming(world)
        world.is_prompt, world.redis.room = False, room
        if goes == "the answer ends":
            upstream.say(chunk(event(200)) + b"0\r\n\r\n")
        else:
            upstream.say(chunk(event(200)))
            client.lose()
        world.turn(2)
        assert world.redis.waiting == ["extend", "settle"]
        world.is_prompt = True
        world.advance(0.5)
        done = settled(world)
        assert (done.cost, done.held) == (2_700, 3_000 if room is None else 2_000)
        assert done.outcome == ("completed" if goes == "the answer ends" else "client_gone")
        world.check_books()


def test_a_request_that_has_outgrown_the_other_hold_too_goes_on() -> None:
    with metered_world(replace(BY_TIME, hold_step=Microcredits(100))) as world:
        asks(world)
        world.is_prompt = False
        world.advance(1.15, 0.05)
        lose_redis(world, executed=True)
        world.advance(0.5)
        world.is_prompt = True
        world.advance(1.0)
        assert world.proxy.in_flight == 1
        assert world.proxy.metrics.events["cut_at_extension"] == 0
        world.upstream.lines[0].say(b"HTTP/1.1 204 No Content\r\n\r\n")
        world.settle_down()
        assert settled(world).outcome == "completed"
        world.check_books()


def test_a_hold_that_is_neither_is_found_settled_by_somebody_else() -> None:
    with metered_world() as world:
        client, _ = outgrown(world)
        lose_redis(world, executed=True)
        world.redis.holds.clear()  # the expire job came first
        world.is_prompt = True
        world.advance(0.6)
        assert b"hold expired" in client.sent
        assert world.redis.settled == {}
        world.proxy.snapshot()
        assert world.proxy.metrics.events["settled_elsewhere"] == 1
        assert world.proxy.in_flight == 0


def within_a_second(world: World, upstream: Line, hangs_for_s: float = 0.0) -> None:
    began = world.loop.now
    while not upstream.is_lost:
        world.advance(0.1)
        assert world.loop.now < began + hangs_for_s + UNCOVERED_MAX_S + 0.5
    assert world.loop.now > began + 0.5


def test_while_redis_cannot_be_asked_an_outgrown_answer_goes_on_for_a_second_at_most() -> None:
    with metered_world() as world:
        client, upstream = streaming(world)
        world.is_prompt = False
        assert world.redis.line is not None
        world.redis.line.lose()
        world.advance(5.0)
        assert not upstream.is_lost, "nothing has been outgrown"
        upstream.say(chunk(event(200)))
        within_a_second(world, upstream)
        assert b"could be held" in client.sent
        world.is_prompt = True
        world.advance(2.0)
        assert (settled(world).outcome, settled(world).cost) == ("cut", 2_700)
        world.check_books()


def test_while_redis_hangs_an_outgrown_answer_goes_on_for_a_second_at_most() -> None:
    with metered_world(redis_timeout_s=30.0) as world:
        _, upstream = outgrown(world)
        within_a_second(world, upstream)
        world.is_prompt = True
        world.advance(2.0)
        assert settled(world).outcome == "cut"
        world.check_books()


def test_it_does_not_help_an_outgrown_answer_that_its_deadline_is_just_being_pushed() -> None:
    with metered_world(redis_timeout_s=30.0, hold_ttl_s=4.0) as world:
        _, upstream = streaming(world)
        world.is_prompt = False
        while world.redis.waiting != ["extend"]:
            world.advance(0.1)
        upstream.say(chunk(event(200)))
        within_a_second(world, upstream)
        world.is_prompt = True
        world.advance(2.0)
        assert settled(world).outcome == "cut"
        world.check_books()


def test_a_redis_that_is_back_within_the_second_costs_the_answer_nothing() -> None:
    with metered_world() as world:
        client, upstream = outgrown(world)
        lose_redis(world, executed=False)
        world.advance(0.4)
        world.is_prompt = True
        world.advance(5.0)
        assert not client.is_closing()
        assert held(world) == 3_000
        ends(world, upstream)
        world.check_books()


# -- whatever happens, in any order

Step = Callable[[World, Line, list[int]], None]


def uses(world: World, upstream: Line, used: list[int]) -> None:
    used[0] += 77
    if not upstream.is_closing():
        upstream.say(chunk(event(used[0])))


def passes(world: World, _: Line, __: list[int]) -> None:
    world.advance(0.2)


def answers_once(world: World, _: Line, __: list[int]) -> None:
    world.redis.answer(1)
    world.turn(2)


def loses(world: World, _: Line, __: list[int]) -> None:
    if world.redis.line is not None:
        world.redis.line.lose()
    world.turn(2)


def runs_and_loses(world: World, upstream: Line, used: list[int]) -> None:
    world.redis.run_unanswered()
    loses(world, upstream, used)


def runs_out(world: World, _: Line, __: list[int]) -> None:
    world.redis.room = 0


STEPS: list[Step] = [uses, passes, answers_once, loses, runs_and_loses, runs_out]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=14), st.booleans())
def test_whatever_is_asked_answered_and_lost_a_request_is_settled_exactly_once(
    steps: list[Step], ends_well: bool
) -> None:
    with metered_world() as world:
        client, upstream = streaming(world)
        world.is_prompt = False
        used = [0]
        for step in steps:
            step(world, upstream, used)
        if ends_well and not upstream.is_closing():
            upstream.say(b"0\r\n\r\n")
        else:
            client.lose()
        world.turn(3)
        world.is_prompt = True
        world.advance(3.0)
        done = settled(world)
        assert done.cost == max(700 + 10 * done.units["tokens"] if done.units else 2_000, 700)
        world.check_books()
