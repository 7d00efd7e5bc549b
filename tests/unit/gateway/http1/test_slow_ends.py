"""Whoever takes bytes slowly is waited for as long as he takes some, and nothing piles up for him meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.estimating import EARLY_BYTES_MAX
from gateway.http1.client import ClientConnection
from gateway.http1.connection_end import WRITE_BUFFER_HIGH
from tests.unit.gateway.slow_line import SlowLine, slow_line
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, HOST, World, get, post, post_chunked

READ = 262_144
"""The most that comes in one read."""
LONG = b"x" * 200_000
LONG_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(LONG), LONG)
WITHOUT_TOKEN = b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n"


def slow_client(world: World) -> SlowLine:
    return slow_line(world.loop, ClientConnection(world.proxy))


@pytest.mark.parametrize("request_", [WITHOUT_TOKEN, get()], ids=["refused", "admitted"])
def test_a_client_that_pipelines_and_takes_no_answer_is_not_read_any_more(request_: bytes) -> None:
    with World() as world:
        client = slow_client(world)
        offered = request_ * (READ // len(request_))
        for _ in range(40):
            client.say(offered)
            world.settle_down()
        assert len(client.unsent) <= WRITE_BUFFER_HIGH + 2_000
        held_back = sum(map(len, client.unread))
        assert held_back > 30 * READ
        client.lose()
        world.settle_down()
        world.check_books()


def test_requests_that_were_held_back_are_answered_once_the_client_takes_answers_again() -> None:
    with World() as world:
        client = slow_client(world)
        for _ in range(3):
            client.say(WITHOUT_TOKEN * 1_000)
        world.turn(2_000)
        assert len(client.unsent) <= WRITE_BUFFER_HIGH + 2_000
        client.take(10_000_000)
        world.turn(4_000)
        assert client.sent.count(b"HTTP/1.1 401 ") == 3_000
        client.say(get())
        world.settle_down()
        assert client.sent.endswith(b"hello")
        client.lose()
        world.settle_down()
        world.check_books()


def test_a_client_that_takes_no_answers_is_left_in_time() -> None:
    with World(idle_timeout_s=20, body_timeout_s=8.0) as world:
        client = slow_client(world)
        client.say(WITHOUT_TOKEN * 2_000)
        world.turn(2_000)
        world.advance(30)
        assert client.is_lost


@pytest.mark.parametrize("fields", [(b"Connection: close",), ()], ids=["closes", "stays"])
def test_an_answer_that_is_whole_reaches_a_slow_reader_whole(fields: tuple[bytes, ...]) -> None:
    with World(head_timeout_s=1.0, body_timeout_s=8.0) as world:
        world.upstream.answers = lambda _: LONG_ANSWER
        client = slow_client(world)
        world.advance(0.5)
        client.say(get(b"/x", *fields))
        world.settle_down()
        for _ in range(40):
            world.advance(5)
            client.take(6_000)
        assert client.sent.endswith(LONG)
        world.advance(1)
        assert client.is_lost or not fields
        world.check_books()


def test_a_reader_that_stands_still_at_the_end_of_the_last_answer_is_left_in_time() -> None:
    with World(body_timeout_s=8.0) as world:
        world.upstream.answers = lambda _: LONG_ANSWER
        client = slow_client(world)
        client.say(get(b"/x", b"Connection: close"))
        world.settle_down()
        lost = []
        for seconds in (7, 2):
            world.advance(seconds)
            lost.append(client.is_lost)
        assert lost == [False, True]
        world.check_books()


def test_a_slow_reader_gets_all_there_is_of_an_answer_that_breaks_off() -> None:
    with World(body_timeout_s=8.0) as world:
        world.upstream.answers = lambda _: LONG_ANSWER[:-1]
        client = slow_client(world)
        client.say(get())
        world.settle_down()
        world.upstream.lines[0].lose()
        world.settle_down()
        for _ in range(40):
            world.advance(5)
            client.take(6_000)
        assert client.sent.endswith(LONG[:-1])
        world.advance(1)
        assert client.is_lost
        world.check_books()


def test_what_came_before_the_upstream_was_there_does_not_pile_up_in_front_of_it() -> None:
    with World() as world:
        called: asyncio.Future[Line] = world.loop.create_future()
        lines: list[SlowLine] = []

        def call(_: str, __: int, factory: Callable[[], asyncio.Protocol]) -> asyncio.Future[Line]:
            lines.append(slow_line(world.loop, factory()))
            return called

        world.loop.answer_call = call
        client = world.client()
        client.say(post_chunked(b""))
        world.settle_down()
        chunk = b"%x\r\n%b\r\n" % (READ, b"Q" * READ)
        for _ in range(5):
            client.say(chunk)
        world.settle_down()
        called.set_result(lines[0])
        for _ in range(20):
            client.say(chunk)
            world.settle_down()
        assert len(lines[0].unsent) <= READ + EARLY_BYTES_MAX + 1_000
        assert len(client.unread) >= 20
        lines[0].take(100 * READ)
        world.settle_down()
        assert lines[0].sent.count(b"Q") == 25 * READ
        client.lose()
        world.settle_down()
        world.check_books()


def test_a_request_that_is_cut_when_the_gateway_stops_is_told_so() -> None:
    with World() as world:
        world.upstream.answers = None
        client = slow_client(world)
        client.say(get())
        world.settle_down()
        for connection in list(world.proxy.clients):
            connection.cut("The gateway is stopping.")
        client.take(10_000)
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 503 ")
        assert client.is_lost
        world.check_books()


def test_an_answer_to_a_malformed_body_is_not_lost_in_what_the_client_still_sends() -> None:
    """Closing at once with bytes unread would reset the connection, and the client might never see the answer."""
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        client.say(post_chunked(b"3\r\nabcd"))
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 400 ")
        assert client.has_ended
        assert not client.is_closing()
        client.say(b"e" * 1_000)
        client.end()
        world.settle_down()
        assert client.is_lost
        world.check_books()


def test_requests_that_pipeline_faster_than_they_are_served_are_left_unread() -> None:
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        for _ in range(40):
            client.say(get() * (READ // len(get())))
        for _ in range(10):
            world.settle_down()
            world.upstream.lines[0].say(ANSWER)
        assert len(client.unread) >= 38
        client.lose()
        world.settle_down()
        world.check_books()


def test_a_long_body_behind_many_pipelined_requests_is_read_to_its_end() -> None:
    with World() as world:
        client = world.client()
        body = b"b" * 400_000
        offered = get() * 700 + post(body) + get()
        for start in range(0, len(offered), READ):
            client.say(offered[start : start + READ])
        world.turn(10_000)
        assert client.sent.count(b"HTTP/1.1 200 OK") == 702
        assert [request.body for request in world.upstream.all_requests if request.body] == [body]
        client.lose()
        world.settle_down()
        world.check_books()
