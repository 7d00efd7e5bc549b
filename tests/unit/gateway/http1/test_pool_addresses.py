"""Names with several addresses, and names that move: each address is tried, and none is used that the name has no more."""

from __future__ import annotations

import pytest

from gateway.routing import Ejection, Route, Timeouts, Upstream
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, World, get

NAME = "up.example"
ROUTE = Route("models", b"/", (Upstream("http", NAME, 80),), timeouts=Timeouts(4.0, 10.0, 10.0))
REFUSED = ConnectionRefusedError("refused by the test")


def named(*addresses: str, **settings: float) -> World:
    """A world whose upstream's name stands for these addresses, and that has no connection to them yet."""
    world = World((ROUTE,), dns_ttl_s=settings.pop("dns_ttl_s", 10.0))
    world.loop.addresses[NAME] = addresses
    world.advance(10.5)
    asks(world)
    world.advance(0.2)
    world.forget()
    return world


def asks(world: World) -> Line:
    client = world.client()
    client.say(get())
    world.settle_down()
    return client


def status(client: Line) -> int:
    return int(client.sent[9:12] or 0)


def test_connections_are_spread_over_the_addresses_of_a_name() -> None:
    with named("10.0.0.1", "10.0.0.2", "10.0.0.3") as world:
        world.upstream.answers = None
        clients = [asks(world) for _ in range(6)]
        assert sorted(world.upstream.calls) == sorted(["10.0.0.1", "10.0.0.2", "10.0.0.3"] * 2)
        for client in clients:
            client.lose()


@pytest.mark.parametrize("well", ["10.0.0.1", "10.0.0.2", "10.0.0.3"])
def test_an_address_that_refuses_makes_room_for_the_next(well: str) -> None:
    addresses = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    with named(*addresses) as world:
        world.upstream.refuses_at = {address: REFUSED for address in addresses if address != well}
        for _ in range(4):
            assert status(asks(world)) == 200
            world.upstream.forget()
        assert world.proxy.metrics.events["upstream_unreachable"] == 0


def test_an_address_that_does_not_pick_up_has_its_part_of_the_time_only() -> None:
    with named("10.0.0.1", "10.0.0.2") as world:
        world.upstream.silent = {"10.0.0.1"}
        world.upstream.answers = None
        clients = [asks(world) for _ in range(2)]
        assert len(world.upstream.lines) == 1
        world.advance(ROUTE.timeouts.connect_s / 2 + 0.2)
        assert len(world.upstream.lines_at("10.0.0.2")) == 2
        world.upstream.answers = lambda _: ANSWER
        world.settle_down()
        assert list(map(status, clients)) == [200, 200]
        world.check_books()


def test_where_no_address_picks_up_the_time_to_connect_is_all_there_is() -> None:
    with named("10.0.0.1", "10.0.0.2") as world:
        world.upstream.silent = {"10.0.0.1", "10.0.0.2"}
        client = asks(world)
        world.advance(ROUTE.timeouts.connect_s - 0.2)
        assert status(client) == 0
        world.advance(0.4)
        assert status(client) == 504
        assert sorted(world.upstream.calls) == ["10.0.0.1", "10.0.0.2"]
        world.check_books()


def test_where_every_address_refuses_the_client_is_told_so_at_once() -> None:
    with named("10.0.0.1", "10.0.0.2") as world:
        world.upstream.refuses = REFUSED
        assert status(asks(world)) == 502
        assert sorted(world.upstream.calls) == ["10.0.0.1", "10.0.0.2"]
        world.check_books()


def test_a_name_without_an_address_cannot_be_reached() -> None:
    with World((ROUTE,), knows_caller=False) as world:
        world.loop.addresses[NAME] = ()
        assert status(asks(world)) == 502
        assert world.upstream.calls == []
        assert world.loop.failures == []


def test_idle_connections_to_an_address_that_the_name_has_no_more_are_closed() -> None:
    with named("10.0.0.1") as world:
        asks(world)
        (old,) = world.upstream.lines
        world.loop.addresses[NAME] = ("10.0.0.2",)
        world.advance(12.0)
        assert old.is_lost
        assert status(asks(world)) == 200
        assert world.upstream.calls == ["10.0.0.1", "10.0.0.2"]


def test_a_connection_in_use_is_finished_with_and_then_closed() -> None:
    with named("10.0.0.1") as world:
        world.upstream.answers = None
        client = asks(world)
        (old,) = world.upstream.lines
        world.loop.addresses[NAME] = ("10.0.0.2",)
        old.say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        for byte in b"hello":
            world.advance(3.0, 0.5)
            assert not old.is_closing()
            old.say(bytes((byte,)))
        world.settle_down()
        assert client.sent.endswith(b"hello")
        assert old.is_lost
        world.check_books()


def test_a_connection_to_an_address_that_stays_is_kept() -> None:
    with named("10.0.0.1") as world:
        asks(world)
        world.loop.addresses[NAME] = ("10.0.0.1", "10.0.0.2")
        for _ in range(4):
            world.advance(6.0, 0.5)
            assert status(asks(world)) == 200
        assert len(world.upstream.lines) == 1


def test_a_target_without_others_counts_no_failures() -> None:
    with named("10.0.0.1") as world:
        (pool,) = world.proxy.lanes["models"].targets.pools
        world.upstream.refuses = REFUSED
        for _ in range(5):
            asks(world)
        assert (pool.standing.failures, pool.standing.ejections) == (0, 0)
        assert pool.ejection == Ejection()
        world.upstream.refuses = None
        world.upstream.answers = lambda _: ANSWER
        assert status(asks(world)) == 200
