"""Whatever Redis fails to say about a hold that was to grow: the request is settled once, with the hold that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.contract.money import Microcredits
from gateway.holding import UNCOVERED_MAX_S
from tests.unit.gateway.metered import (
    BY_TIME,
    asks,
    chunk,
    ends,
    event,
    held,
    metered_world,
    noting_extensions,
    outgrown,
    settled,
    streaming,
)
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import World


def lose_redis(world: World, executed: bool) -> None:
    """The connection breaks while an extension is under way, that was run or was not."""
    assert "extend" in world.redis.waiting
    if executed:
        world.redis.run_unanswered()
    world.redis.drop_unanswered()
    assert world.redis.line is not None
    world.redis.line.lose()
    world.loop.turn(3)


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
        for _ in range(10):
            world.advance(0.1)
            world.turn(10)  # each extension is answered before time passes
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
    used[0] += 150
    if not upstream.is_closing():
        upstream.say(chunk(event(used[0])))
        world.turn(2)


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
        world.check_books(may_be_sent_twice=True)
