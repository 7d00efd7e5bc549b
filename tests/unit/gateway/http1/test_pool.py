"""Connections to an upstream: lent to one borrower at a time, bounded, waited for in order, never with a stranger's bytes."""

import pytest

from gateway.routing import Route
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, ROUTE, World, get, post


def open_connections(world: World) -> int:
    return sum(pool.connections for lane in world.proxy.lanes.values() for pool in lane.targets.pools)


def asked(world: World, count: int = 1) -> list[Line]:
    """Clients that have each asked for something."""
    clients = [world.client() for _ in range(count)]
    for client in clients:
        client.say(get())
    world.settle_down()
    return clients


def test_a_kept_connection_is_used_again() -> None:
    with World() as world:
        for _ in range(3):
            (client,) = asked(world)
            assert client.sent.endswith(b"hello")
        assert len(world.upstream.lines) == 1
        assert len(world.upstream.all_requests) == 3


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), ANSWER.replace(b"1.1", b"1.0", 1),
        ANSWER + b"HTTP/1.1 200",
        b"HTTP/1.1 204 No Content\r\n\r\nX", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\r\n",
    ],
)  # fmt: skip
def test_a_connection_that_says_it_ends_or_says_too_much_is_not_lent_again(answer: bytes) -> None:
    with World() as world:
        world.upstream.answers = lambda _: answer
        (client,) = asked(world)
        assert client.sent.startswith(b"HTTP/1.1 20")
        assert b"HTTP/1.1 200" not in client.sent[1:]
        assert world.upstream.lines[0].is_lost
        assert open_connections(world) == 0
        world.check_books()


def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    with World() as world:
        asked(world)
        (line,) = world.upstream.lines
        line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        world.settle_down()
        assert line.is_lost
        (client,) = asked(world)
        assert client.sent.endswith(b"hello")
        assert len(world.upstream.lines) == 2


def test_connections_are_bounded_and_so_are_those_who_wait() -> None:
    with World(upstream_connections_max=2, upstream_waiting_max=3) as world:
        world.upstream.answers = None
        clients = asked(world, 6)
        assert open_connections(world) == 2
        assert [client.sent[9:12] for client in clients] == [b"", b"", b"", b"", b"", b"503"]
        assert b"\r\nRetry-After: 1\r\n" in clients[-1].sent
        assert len(world.upstream.all_requests) == 2


def test_whoever_waits_is_served_first_come_first_served() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.answers = None
        clients = asked(world, 4)
        (line,) = world.upstream.lines
        for served in range(1, 5):
            line.say(ANSWER)
            world.settle_down()
            assert [client.sent.endswith(b"hello") for client in clients] == [True] * served + [False] * (
                4 - served
            )
        world.check_books()


def test_a_connection_that_is_lost_makes_room_for_somebody_who_waits() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.answers = None
        first, second = asked(world, 2)
        world.upstream.lines[0].lose()
        world.settle_down()
        assert first.sent.startswith(b"HTTP/1.1 502 ")
        assert len(world.upstream.lines) == 2
        world.upstream.lines[1].say(ANSWER)
        world.settle_down()
        assert second.sent.endswith(b"hello")
        world.check_books()


def test_who_gives_up_waiting_is_not_waited_for() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.answers = None
        first, second, third = asked(world, 3)
        second.lose()
        world.settle_down()
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert third.sent.endswith(b"hello")
        first.lose()
        world.settle_down()
        world.check_books()


def test_a_connection_lost_before_it_could_be_lent_leaves_no_trace() -> None:
    """The upstream accepts and resets in one breath."""
    with World(upstream_connections_max=2) as world:
        world.upstream.resets_at_once = True
        for _ in range(5):
            (client,) = asked(world)
            assert client.sent.startswith(b"HTTP/1.1 502 ")
        assert open_connections(world) == 0
        world.upstream.resets_at_once = False
        (client,) = asked(world)
        assert client.sent.endswith(b"hello")
        world.check_books()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("no"),
        OSError("no route to host"),
        UnicodeError("label too long"),
        TimeoutError(),
    ],
)
def test_an_upstream_that_cannot_be_reached_is_said_so(error: Exception) -> None:
    with World() as world:
        world.upstream.refuses = error
        (client,) = asked(world)
        assert bytes(client.sent[9:12]) in (b"502", b"504")
        world.upstream.refuses = None
        (client,) = asked(world)
        assert client.sent.endswith(b"hello")
        world.check_books()


def test_an_upstream_that_does_not_pick_up_is_given_up_in_time() -> None:
    with World() as world:
        world.upstream.opens = False
        (client,) = asked(world)
        world.advance(ROUTE.timeouts.connect_s + 0.2)
        assert client.sent.startswith(b"HTTP/1.1 504 ")
        world.check_books()


def test_a_kept_connection_that_went_stale_costs_a_get_nothing() -> None:
    """The upstream closed it just as the request was sent: what cannot run twice to harm is sent again, once, on a new one."""
    with World() as world:
        asked(world)
        world.upstream.answers = None
        (client,) = asked(world)
        world.upstream.lines[0].lose()
        world.settle_down()
        assert len(world.upstream.lines) == 2
        world.upstream.lines[1].say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        world.check_books()


def test_a_post_is_never_sent_twice() -> None:
    with World() as world:
        asked(world)
        world.upstream.answers = None
        client = world.client()
        client.say(post(b"abc"))
        world.settle_down()
        world.upstream.lines[0].lose()
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 502 ")
        assert len(world.upstream.lines) == 1
        world.check_books()


def test_a_connection_unused_for_long_is_closed() -> None:
    with World(upstream_idle_s=15.0) as world:
        asked(world)
        world.advance(14.5)
        assert open_connections(world) == 1
        world.advance(1.0)
        assert open_connections(world) == 0


def test_each_route_has_connections_of_its_own() -> None:
    other = Route("git", b"/git/", ROUTE.upstreams)
    with World((ROUTE, other)) as world:
        for path in (b"/x", b"/git/x"):
            client = world.client()
            client.say(get(path))
            world.settle_down()
        assert len(world.upstream.lines) == 2
