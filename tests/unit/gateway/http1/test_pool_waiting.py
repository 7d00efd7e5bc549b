"""Whoever waits for a connection to an upstream gets one, or is told in time that there is none: nobody is forgotten."""

from gateway.contract import usage_event
from gateway.contract.usage_event import UsageEvent
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, ROUTE, World, get


def asked(world: World, count: int) -> list[Line]:
    """Clients that have each asked for something."""
    clients = [world.client() for _ in range(count)]
    for client in clients:
        client.say(get())
    world.settle_down()
    return clients


def statuses(clients: list[Line]) -> list[bytes]:
    return [bytes(client.sent[9:12]) for client in clients]


def test_a_connection_that_cannot_be_made_makes_room_for_the_next_who_waits() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.opens = False
        world.upstream.refuses = ConnectionRefusedError("refused by the test")
        clients = asked(world, 4)
        assert statuses(clients) == [b""] * 4
        world.upstream.opens = True
        world.settle_down()
        assert statuses(clients) == [b"502"] * 4
        world.check_books()


def test_whoever_waits_is_served_in_order_while_connections_fail() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.opens = False
        world.upstream.refuses = ConnectionRefusedError("refused by the test")
        clients = asked(world, 3)
        world.upstream.opens = True
        world.upstream.open_waiting()  # the one connection that is asked for fails, and later ones do not
        world.upstream.refuses = None
        world.settle_down()
        assert statuses(clients) == [b"502", b"200", b"200"]
        assert [line.sent.count(b"GET ") for line in world.upstream.lines] == [2]
        world.check_books()


def test_a_request_that_is_sent_again_when_all_connections_are_taken_gets_one_that_is_free() -> None:
    with World(upstream_connections_max=2) as world:
        asked(world, 2)
        first, second = world.upstream.lines
        world.upstream.answers = None
        (client,) = asked(world, 1)
        used = second if second.sent.count(b"GET ") == 2 else first
        world.upstream.answers = lambda _: ANSWER
        used.say(b"this is not HTTP\r\n\r\n")
        world.settle_down()
        assert statuses([client]) == [b"200"]
        world.check_books()


def test_nobody_waits_for_a_connection_for_longer_than_for_an_answer() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.answers = None
        first, second = asked(world, 2)
        (line,) = world.upstream.lines
        line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(10):  # the first one is well: bytes keep coming
            world.advance(ROUTE.timeouts.between_bytes_s / 2)
            line.say(b"x")
        assert statuses([second]) == [b"503"]
        assert b"\r\nRetry-After: 1\r\n" in second.sent
        (event,) = [usage_event.decode(event) for event in world.redis.events]
        assert isinstance(event, UsageEvent)
        assert (event.outcome, event.cost) == ("upstream_failed", 0)
        first.lose()
        world.settle_down()
        world.check_books()
