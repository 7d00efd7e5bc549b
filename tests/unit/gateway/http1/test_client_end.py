"""A workload's connection towards its end: how long it is waited for, and how it is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.contract.usage_event import UsageEvent, decode
from gateway.http1.client import PIPELINED_BYTES_MAX, ClientConnection
from gateway.http1.client_end import DISCARD_BYTES_MAX, LINGER_MAX_S, LINGER_S
from gateway.routing import Timeouts
from tests.unit.gateway.http1.clients import MALFORMED, NO_TOKEN, asks, statuses, tls_client
from tests.unit.gateway.slow_line import slow_line
from tests.unit.gateway.world import ANSWER, HOST, ROUTE, World, get, post

# -- the last answer


def test_after_its_last_answer_a_client_that_is_silent_is_left_in_a_moment() -> None:
    with World() as world:
        client = world.client()
        asks(world, client, MALFORMED)
        assert statuses(client) == [400]
        assert client.has_ended, "it is told that nothing more comes"
        world.advance(LINGER_S - 0.3)
        assert not client.is_closing()
        world.advance(0.6)
        assert client.is_lost


def test_a_client_that_goes_on_sending_is_read_for_a_while_and_not_for_ever() -> None:
    """It may read its answer only once it has sent everything."""
    with World() as world:
        client = world.client()
        asks(world, client, MALFORMED)
        for _ in range(int(LINGER_MAX_S) - 1):
            world.advance(1.0, 0.5)
            client.say(get() * 100)
            assert not client.is_closing()
        world.advance(1.5, 0.5)
        client.say(b"x")
        world.settle_down()
        assert client.is_lost
        assert statuses(client) == [400]
        assert world.upstream.all_requests == []


def test_a_client_that_hangs_up_behind_its_last_answer_is_gone_at_once() -> None:
    with World() as world:
        client = world.client()
        asks(world, client, MALFORMED)
        client.say(b"more")
        client.end()
        world.settle_down()
        assert client.is_lost


def test_over_tls_a_client_gets_the_same_moment_to_read_its_last_answer() -> None:
    with World() as world:
        client = tls_client(world)
        asks(world, client, MALFORMED)
        assert statuses(client) == [400]
        world.advance(LINGER_S - 0.3)
        assert not client.is_closing()
        world.advance(0.6)
        assert client.is_lost


def test_what_a_slow_reader_still_takes_of_its_last_answer_is_waited_for() -> None:
    long = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    with World(body_timeout_s=4.0) as world:
        world.upstream.answers = lambda _: long
        client = slow_line(world.loop, ClientConnection(world.proxy))
        asks(world, client, get(b"/x", b"Connection: close"))
        for _ in range(10):
            world.advance(3.0, 0.5)
            assert not client.is_lost
            client.take(500)
        world.advance(9.0, 0.5)
        assert client.is_lost, "it takes nothing any more"
        world.check_books()


@pytest.mark.parametrize(
    ("lines", "closes"),
    [
        ((b"Content-Length: 5",), False), ((b"Content-Length: 5", b"Expect: 100-continue"), True),
        ((b"Content-Length: %d" % (DISCARD_BYTES_MAX + 1),), True), ((b"Transfer-Encoding: chunked",), True),
    ],
)  # fmt: skip
def test_a_refused_body_is_read_past_if_it_is_small_and_on_its_way(
    lines: tuple[bytes, ...], closes: bool
) -> None:
    with World() as world:
        client = world.client()
        asks(
            world,
            client,
            b"POST /x HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n",
        )
        assert statuses(client) == [401]
        assert client.has_ended is closes
        if not closes:
            asks(world, client, b"hello" + get())
            assert statuses(client) == [401, 200]


def test_an_answer_that_breaks_off_reaches_a_slow_reader_as_far_as_it_goes() -> None:
    with World(body_timeout_s=4.0) as world:
        world.upstream.answers = None
        client = slow_line(world.loop, ClientConnection(world.proxy))
        asks(world, client)
        world.upstream.lines[0].say(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
        world.upstream.lines[0].lose()
        world.settle_down()
        assert client.sent == b""
        client.take(10_000)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        assert client.is_lost
        world.check_books()


def test_an_answer_that_comes_before_the_body_is_whole_may_be_the_last() -> None:
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        asks(world, client, post(b"hello")[:-1])
        world.upstream.lines[0].say(ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        world.settle_down()
        assert statuses(client) == [200]
        assert client.sent.count(b"\r\nConnection: close\r\n") == 1
        client.say(b"o" + get())
        world.advance(LINGER_S + 0.3)
        assert client.is_lost
        assert statuses(client) == [200]
        world.check_books()


def test_a_tunnel_that_ends_takes_its_connection_with_it() -> None:
    brief = replace(ROUTE, timeouts=Timeouts(tunnel_idle_s=2.0))
    with World((brief,)) as world:
        world.upstream.answers = lambda _: (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        client = world.client()
        asks(world, client, get(b"/x", b"Connection: Upgrade", b"Upgrade: echo"))
        client.say(b"hello")
        world.advance(2.3)
        assert client.is_lost
        assert world.upstream.lines[0].is_lost
        assert world.upstream.lines[0].sent.endswith(b"hello")
        assert world.proxy.metrics.events["tunnel_idle"] == 1
        world.check_books()


def test_a_client_that_is_far_ahead_is_read_on_once_it_is_caught_up_with() -> None:
    with World() as world:
        client = world.client()
        count = PIPELINED_BYTES_MAX // len(NO_TOKEN) + 50
        client.say(NO_TOKEN + NO_TOKEN * count)
        world.turn(2)
        client.say(NO_TOKEN)
        assert client.is_paused
        world.turn(count)
        assert client.sent.count(b"HTTP/1.1 401 ") == count + 2
        assert not client.is_paused


# -- waiting for a request


def test_a_connection_that_never_asks_is_left_in_time() -> None:
    with World(head_timeout_s=5.0) as world:
        client = world.client()
        world.advance(4.8)
        assert not client.is_closing()
        world.advance(0.4)
        assert client.is_lost
        assert client.sent == b""


def test_a_kept_connection_is_waited_for_longer_than_a_new_one() -> None:
    with World(head_timeout_s=5.0, idle_timeout_s=20.0) as world:
        client = world.client()
        asks(world, client)
        for _ in range(2):
            world.advance(19.5, 0.5)
            assert not client.is_closing()
            asks(world, client)
        world.advance(21.0, 0.5)
        assert client.is_lost
        assert statuses(client) == [200, 200, 200]


def test_a_head_that_trickles_in_has_as_long_as_one_that_stands_still() -> None:
    with World(head_timeout_s=5.0, idle_timeout_s=60.0) as world:
        client = world.client()
        asks(world, client)
        for byte in get()[:49]:
            client.say(bytes((byte,)))
            world.advance(0.1)
        assert statuses(client) == [200]
        world.advance(0.3)
        assert statuses(client) == [200, 408]
        assert client.has_ended
        assert world.proxy.metrics.events["head_timeout"] == 1


def test_a_body_of_a_refused_request_that_does_not_come_is_not_waited_for_for_ever() -> None:
    with World(idle_timeout_s=20.0) as world:
        client = world.client()
        asks(world, client, b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nabc")
        assert statuses(client) == [401]
        world.advance(19.0, 0.5)
        assert not client.is_closing()
        world.advance(1.5)
        assert client.is_lost


# -- a client that says that it sends no more


def test_a_client_that_sends_no_more_is_answered_for_as_long_as_its_route_says() -> None:
    patient = replace(ROUTE, timeouts=Timeouts(2.0, 60.0, 60.0, half_closed_s=5.0))
    for wait_s, ends in ((4.5, 200), (5.5, 0)):
        with World((patient,)) as world:
            world.upstream.answers = None
            client = world.client()
            asks(world, client)
            client.end()
            world.advance(wait_s)
            assert client.is_closing() == (ends == 0)
            if ends:
                world.upstream.lines[0].say(ANSWER)
                world.settle_down()
                assert statuses(client) == [200]
                assert client.is_lost
            world.settle_down()
            (event,) = map(decode, world.redis.events)
            assert isinstance(event, UsageEvent)
            assert event.outcome == ("completed" if ends else "client_gone")
            world.check_books()


def test_an_answer_of_many_pieces_has_to_be_whole_within_that_time() -> None:
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        asks(world, client)
        client.end()
        world.upstream.lines[0].say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        for _ in range(12):
            world.advance(0.1)
            if not world.upstream.lines[0].is_closing():
                world.upstream.lines[0].say(b"x")
        assert client.is_lost
        world.settle_down()
        world.check_books()


def test_each_of_several_requests_before_the_end_has_that_time() -> None:
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        asks(world, client, get(b"/1") + get(b"/2") + get(b"/3"))
        client.end()
        for _ in range(3):
            world.advance(0.8)
            world.upstream.lines[0].say(ANSWER)
            world.settle_down()
        assert statuses(client) == [200, 200, 200]
        assert client.is_lost
        world.check_books()


@pytest.mark.parametrize("request_", [NO_TOKEN, get(b"/-/")], ids=["refused", "without a route"])
def test_requests_that_are_refused_before_the_end_are_all_answered(request_: bytes) -> None:
    """They are read one by one; the end may be heard of before the second."""
    with World() as world:
        client = world.client()
        client.say(request_ * 5)
        client.end()
        world.turn(20)
        assert len(statuses(client)) == 5
        world.settle_down()
        assert client.is_lost


def test_a_client_that_ends_within_its_body_is_gone() -> None:
    with World() as world:
        client = world.client()
        asks(world, client, post(b"abc")[:-1])
        client.end()
        world.settle_down()
        assert client.is_lost
        world.check_books()


def test_over_tls_the_end_of_what_a_client_sends_is_its_end() -> None:
    with World() as world:
        world.upstream.answers = None
        client = tls_client(world)
        asks(world, client)
        client.end()
        world.settle_down()
        assert client.is_lost
        world.check_books()
