"""Where places are bounded, a client sees the end of an answer when its place is free: who waits for it may come at once.

Nothing else about an answer is any different.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gateway.pricing import Price
from gateway.server import drain
from tests.unit.gateway.http1.answers import Reads, bytewise, whole
from tests.unit.gateway.metered import METERED, STREAM, asks, chunk, event, metered_world, settled
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, World, get, post, post_chunked

HEAD = get().replace(b"GET", b"HEAD", 1)
OLD = get(b"/x", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
ANSWERS = {
    "a length": (get(), ANSWER),
    "a long one": (get(), b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40_000),
    "no body": (get(), b"HTTP/1.1 204 No Content\r\n\r\n"),
    "an empty body": (get(), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "HEAD": (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
    "chunks": (get(), STREAM + chunk(event(1)) + b"0\r\n\r\n"),
    "chunks with trailers": (get(), STREAM + chunk(event(1)) + b"0\r\nX-Sum: 5\r\n\r\n"),
    "chunks for an old client": (OLD, STREAM + chunk(event(1)) + b"0\r\n\r\n"),
    "an interim answer first": (get(), b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + ANSWER),
    "an upload": (post(b"x" * 5_000), ANSWER),
}


def placed_world(**settings: object) -> World:
    world = metered_world(**settings)
    world.redis.has_places = True
    return world


def without_its_id(answer: bytes) -> bytes:
    head, _, rest = answer.partition(b"X-Request-Id: ")
    return head + rest.partition(b"\r\n")[2]


def seen(client: Line) -> tuple[bytes, bool]:
    """What a client was sent, and whether that ended with the connection."""
    return without_its_id(bytes(client.sent)), client.has_ended or client.is_closing()


def says(world: World, answer: bytes, reads: Callable[[bytes], Reads]) -> None:
    for piece, _ in reads(answer):
        world.upstream.lines[-1].say(piece)
        world.turn(1)


@pytest.mark.parametrize("reads", [whole, bytewise])
@pytest.mark.parametrize("what", ANSWERS)
def test_the_end_of_an_answer_comes_when_its_place_is_free(
    what: str, reads: Callable[[bytes], Reads]
) -> None:
    request, answer = ANSWERS[what]
    with metered_world() as world:
        client = asks(world, request)
        says(world, answer, reads)
        world.settle_down()
        expected = seen(client)
    with placed_world() as world:
        client = asks(world, request)
        world.is_prompt = False
        says(world, answer, reads)
        assert world.redis.waiting == ["settle"]
        assert expected[0].startswith(seen(client)[0])
        assert seen(client) != expected, "the client does not know that it is the end"
        world.is_prompt = True
        world.settle_down()
        assert seen(client) == expected
        world.check_books()


def test_the_next_request_of_a_client_finds_the_place_free() -> None:
    with placed_world() as world:
        client = world.client()
        client.say(get() * 3)
        for _ in range(3):
            world.settle_down()
            assert len(world.redis.holds) == 1, "never two at a time"
            world.upstream.lines[-1].say(ANSWER)
            world.settle_down()
        assert client.sent.count(b"hello") == 3
        world.check_books()


def test_a_refusal_that_ends_a_request_comes_when_its_place_is_free() -> None:
    with placed_world() as world:
        client = asks(world)
        world.is_prompt = False
        world.upstream.lines[-1].lose()
        world.turn(3)
        assert client.sent == b""
        world.is_prompt = True
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 502 ")
        world.check_books()


@pytest.mark.parametrize("rest", [b"", get()])
def test_a_malformed_body_is_answered_and_its_rest_is_not_taken_for_a_request(rest: bytes) -> None:
    with placed_world() as world:
        client = asks(world, post_chunked(b"5\r\nabcde\r\n"))
        client.say(b"zz\r\n" + rest)
        world.settle_down()
        world.advance(0.2)
        assert client.sent.startswith(b"HTTP/1.1 400 ")
        assert client.sent.count(b"HTTP/1.1") == 1
        assert client.has_ended
        assert not client.is_closing(), (
            "what still arrives is read and thrown away, else the client may lose the answer"
        )
        client.say(b"more of it")
        world.advance(3.0)
        assert client.is_lost
        assert settled(world).outcome == "client_gone"
        world.check_books()


@pytest.mark.parametrize("how", ["hangs", "is lost", "is away"])
def test_a_redis_that_does_not_answer_keeps_no_client_waiting_for_long(how: str) -> None:
    with placed_world(redis_timeout_s=1.0) as world:
        client = asks(world)
        world.is_prompt = False
        assert world.redis.line is not None
        if how == "is away":
            world.redis.line.lose()
            world.loop.turn(3)
        world.upstream.lines[-1].say(ANSWER)
        world.turn(3)
        if how == "is lost":
            world.redis.drop_unanswered()
            world.redis.line.lose()
            world.turn(3)
        if how == "hangs":
            assert not client.sent.endswith(b"hello")
            world.advance(1.5)
        assert client.sent.endswith(b"hello")
        world.redis.drop_unanswered()
        world.is_prompt = True
        world.advance(2.0)
        assert settled(world).outcome == "completed"
        world.check_books()


def test_a_client_that_goes_while_its_place_becomes_free_changes_nothing() -> None:
    with placed_world() as world:
        client = asks(world)
        world.is_prompt = False
        world.upstream.lines[-1].say(ANSWER)
        world.turn(3)
        client.lose()
        world.turn(3)
        world.is_prompt = True
        world.settle_down()
        assert settled(world).outcome == "completed"
        world.check_books()


def test_a_gateway_that_stops_lets_the_end_of_an_answer_go_out() -> None:
    with placed_world() as world:
        client = asks(world)
        world.is_prompt = False
        world.upstream.lines[-1].say(ANSWER)
        world.turn(3)

        async def stop() -> None:
            await drain(world.proxy, 0.0)
            await world.proxy.close()

        stopping = world.loop.create_task(stop())
        world.turn(3)
        world.is_prompt = True
        world.advance(1.0)
        assert stopping.done()
        assert client.sent.endswith(b"hello")
        assert settled(world).outcome == "completed"


def test_an_answer_that_is_whole_before_its_request_is_not_held_back() -> None:
    """The client may wait for it before it sends the rest."""
    with placed_world() as world:
        client = asks(world, post(b"x" * 100)[:-50])
        world.upstream.lines[-1].say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        client.say(b"x" * 50)
        world.settle_down()
        assert settled(world).outcome == "completed"
        world.check_books()


def test_a_stream_that_is_cut_says_so_at_once() -> None:
    with placed_world() as world:
        world.redis.room = 0
        client = asks(world)
        world.upstream.lines[-1].say(STREAM + chunk(event(200)))
        world.advance(0.3)
        assert client.sent.endswith(b"0\r\n\r\n")
        assert settled(world).outcome == "cut"
        world.check_books()


def test_a_key_without_bounded_places_waits_for_nothing() -> None:
    with metered_world(replace(METERED, meters=None, price=Price())) as world:
        client = asks(world)
        world.is_prompt = False
        world.upstream.lines[-1].say(ANSWER)
        world.turn(3)
        assert client.sent.endswith(b"hello")
        world.is_prompt = True
        world.settle_down()
        world.check_books()
