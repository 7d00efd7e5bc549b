"""Where key or account may have only so many requests in flight, whoever has seen the end of one may send the next: the place
is free again by then, whichever worker is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, World, get

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.fixture
def world() -> Iterator[World]:
    """Redis admits with a place, and answers settlements when it is told to."""
    with World() as world:
        run = world.redis.run

        def replies(command: list[bytes]) -> Any:
            answer = run(command)
            if world.redis.name_of(command) == "admit":
                return [[b"placed", hold] for hold in answer]
            return answer

        world.redis.replies = replies
        world.upstream.answers = None
        yield world


def asked(world: World) -> Line:
    """A client whose request is at the upstream, and Redis from then on silent."""
    client = world.client()
    client.say(get())
    world.settle_down()
    assert len(world.upstream.all_requests) == 1
    world.is_prompt = False
    return client


def settle(world: World) -> None:
    assert world.redis.waiting == ["settle"]
    world.is_prompt = True
    world.settle_down()
    world.check_books()


@pytest.mark.parametrize("answer", [ANSWER, ANSWER[:-5] + b"hello", EMPTY], ids=["whole", "again", "no body"])
def test_an_answer_of_one_piece_waits_until_its_place_is_free(world: World, answer: bytes) -> None:
    client = asked(world)
    world.upstream.lines[0].say(answer)
    world.turn(5)
    assert client.sent == b""
    settle(world)
    assert client.sent.startswith(answer.partition(b"\r\n")[0])
    assert client.sent.endswith(b"hello" if answer is not EMPTY else b"\r\n\r\n")


def test_only_the_last_piece_of_a_long_answer_waits(world: World) -> None:
    client = asked(world)
    line = world.upstream.lines[0]
    line.say(ANSWER[:-3])
    world.turn(5)
    assert client.sent.endswith(b"he")
    line.say(b"llo")
    world.turn(5)
    assert client.sent.endswith(b"he")
    settle(world)
    assert client.sent.endswith(b"hello")


def test_a_stream_passes_as_it_comes_and_only_its_end_waits(world: World) -> None:
    client = asked(world)
    line = world.upstream.lines[0]
    line.say(CHUNKED + b"5\r\nhello\r\n")
    world.turn(5)
    assert client.sent.endswith(b"5\r\nhello\r\n")
    line.say(b"0\r\n\r\n")
    world.turn(5)
    assert client.sent.endswith(b"5\r\nhello\r\n")
    settle(world)
    assert client.sent.endswith(b"0\r\n\r\n")


def test_word_of_an_upstream_that_failed_waits_too(world: World) -> None:
    client = asked(world)
    world.upstream.lines[0].lose()
    world.turn(5)
    assert client.sent == b""
    settle(world)
    assert client.sent.startswith(b"HTTP/1.1 502 ")


def test_nobody_waits_for_a_redis_that_is_gone(world: World) -> None:
    client = asked(world)
    world.upstream.lines[0].say(ANSWER)
    world.turn(5)
    assert client.sent == b""
    line = world.redis.line
    assert line is not None
    line.lose()
    world.turn(5)
    assert client.sent.endswith(b"hello")
    world.is_prompt = True
    world.advance(1.0)
    world.settle_down()
    world.check_books()


def test_the_next_request_on_the_connection_is_served_when_the_answer_is_out(world: World) -> None:
    client = asked(world)
    client.say(get(b"/second"))
    world.upstream.lines[0].say(ANSWER)
    world.turn(5)
    assert len(world.upstream.all_requests) == 1
    settle_and_answer(world)
    assert client.sent.count(b"HTTP/1.1 200 OK") == 2
    world.check_books()


def settle_and_answer(world: World) -> None:
    world.is_prompt = True
    world.upstream.answers = lambda _: ANSWER
    world.settle_down()
    world.settle_down()


def test_a_client_that_goes_while_its_answer_waits_costs_it_nothing_more(world: World) -> None:
    client = asked(world)
    world.upstream.lines[0].say(ANSWER)
    world.turn(5)
    client.lose()
    settle(world)
    assert list(world.redis.costs.values()) == [700]
