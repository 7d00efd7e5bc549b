"""An answer that outgrows its hold is topped up while there is room, else cut, and settled once, whatever is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.contract.money import Microcredits
from gateway.pricing import Price
from tests.unit.gateway.metered import (
    BY_BYTES,
    BY_TIME,
    METERED,
    TOKENS,
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
from tests.unit.gateway.world import post

SOON_S = 0.25
"""Two ticks, and a bit."""

LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


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
        assert [upstream.is_paused] == [True]
        assert client.sent.endswith(chunk(event(200)))
        world.is_prompt = True
        world.turn(3)
        assert [upstream.is_paused] == [False]
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
        assert [upstream.is_lost] == [False], "it has come to the cap, and not passed it"
        upstream.say(chunk(event(261)))
        world.advance(SOON_S)
        assert [upstream.is_lost] == [True]
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
