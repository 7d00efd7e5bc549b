"""The hold of an admitted request: kept alive while the request runs, cut when it may run no longer, settled once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest

from gateway.contract.money import Microcredits
from gateway.exchange import Exchange
from gateway.holding import TUNNEL_EXTENDED_EVERY_S
from gateway.logs import AccessLog
from gateway.pricing import Price
from gateway.routing import Timeouts
from tests.unit.gateway.test_exchange_endings import events
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, ROUTE, World, get, post, post_chunked

TTL_S = 20.0
PATIENT = replace(ROUTE, timeouts=Timeouts(2.0, 3600.0, 3600.0, tunnel_idle_s=3600.0))
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
UPGRADE = get(b"/x", b"Connection: Upgrade", b"Upgrade: echo")
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


def patient_world() -> World:
    """Nobody is given up for being slow, and the upstream answers when it is told to."""
    world = World((PATIENT,), hold_ttl_s=TTL_S, body_timeout_s=3600.0)
    world.upstream.answers = None
    return world


def asks(world: World, request: bytes = get()) -> Line:
    client = world.client()
    client.say(request)
    world.settle_down()
    return client


def upgraded(world: World) -> Line:
    client = asks(world, UPGRADE)
    world.upstream.lines[-1].say(SWITCHED)
    world.settle_down()
    assert client.sent.startswith(b"HTTP/1.1 101 ")
    return client


def extensions_at(world: World, seconds: float, step_s: float = 0.1) -> list[float]:
    """How many seconds after now extensions are asked for."""
    began, asked = world.loop.now, []
    while world.loop.now < began + seconds:
        before = world.redis.commands["extend"]
        world.advance(step_s, step_s)
        if world.redis.commands["extend"] > before:
            asked.append(round(world.loop.now - began, 1))
    return asked


def answering(name: str, reply: Callable[[World, list[bytes]], Any], world: World) -> None:
    """Redis answers this script so, and all else as it does."""
    world.redis.replies = lambda command: (
        reply(world, command) if world.redis.name_of(command) == name else world.redis.run(command)
    )


def leave_an_extension_unanswered(world: World) -> None:
    """Let time pass until one is asked for, and Redis has not said anything yet."""
    world.advance(TTL_S / 2 - 0.2)
    world.is_prompt = False
    world.advance(0.4, 0.05)
    assert "extend" in world.redis.waiting


# -- extensions


def test_a_hold_is_pushed_first_at_half_its_time_and_then_each_quarter() -> None:
    with patient_world() as world:
        client = asks(world)
        asked = extensions_at(world, 2 * TTL_S - 2)
        assert asked == pytest.approx([10, 15, 20, 25, 30, 35], abs=0.3)
        client.lose()
        world.settle_down()
        world.check_books()


def test_each_extension_pushes_the_deadline_by_the_whole_time_and_adds_nothing() -> None:
    with patient_world() as world:
        seen: list[list[bytes]] = []

        def note(world: World, command: list[bytes]) -> Any:
            seen.append(command[-3:])
            return world.redis.run(command)

        answering("extend", note, world)
        client = asks(world)
        world.advance(TTL_S)
        assert seen == [[world.redis.admitted[0], b"0", b"20000"]] * 3
        client.lose()
        world.settle_down()


def test_a_request_that_ends_before_that_is_never_asked_about() -> None:
    with patient_world() as world:
        asks(world)
        world.advance(TTL_S / 2 - 0.5)
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        world.advance(TTL_S)
        assert world.redis.commands["extend"] == 0
        world.check_books()


def test_the_hold_that_redis_gave_last_is_the_one_that_is_settled() -> None:
    with patient_world() as world:
        asks(world)
        (old,) = world.redis.admitted

        def rewritten(world: World, command: list[bytes]) -> bytes:
            hold = command[-3]
            head, amount, rest = (
                hold.rsplit(b"|", 5)[0],
                int(hold.rsplit(b"|", 5)[1]),
                hold.rsplit(b"|", 4)[1:],
            )
            new = b"|".join((head, b"%d" % (amount + 1), *rest))
            world.redis.holds = {new}
            return new

        answering("extend", rewritten, world)
        world.advance(TTL_S / 2 + 0.3)
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        (settled,) = world.redis.settled
        assert settled != old
        assert world.redis.holds == set()
        (event,) = events(world)
        assert event.held == ROUTE.hold + 1


def test_no_second_extension_is_asked_for_while_one_is_on_its_way() -> None:
    with World((PATIENT,), hold_ttl_s=1.0, redis_timeout_s=30.0) as world:
        world.upstream.answers = None
        client = asks(world)
        world.is_prompt = False
        world.advance(2.0)
        assert world.redis.waiting.count("extend") == 1
        world.is_prompt = True
        world.advance(0.3)
        assert world.redis.commands["extend"] >= 1
        client.lose()
        world.settle_down()
        world.check_books()


@pytest.mark.parametrize("what", ["an error", "a lost connection", "an odd reply"])
def test_a_redis_that_does_not_say_no_cuts_nobody_and_is_asked_again(what: str) -> None:
    with patient_world() as world:
        client = asks(world)
        replies: dict[str, Any] = {"an error": Exception("BUSY a script runs"), "an odd reply": 7}
        if what == "a lost connection":
            leave_an_extension_unanswered(world)
            assert world.redis.line is not None
            world.redis.line.lose()
            world.is_prompt = True
            world.advance(0.3)
        else:
            answering("extend", lambda _, __: replies[what], world)
            world.advance(TTL_S / 2 + 0.3)
            world.redis.replies = None
        asked = world.redis.commands["extend"]
        assert not client.is_closing()
        world.advance(TTL_S / 4 + 0.3)
        assert world.redis.commands["extend"] == asked + 1
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        assert world.proxy.metrics.events["cut_at_extension"] == 0
        world.check_books()


def test_without_a_connection_to_redis_the_request_runs_on() -> None:
    with patient_world() as world:
        client = asks(world)
        world.is_prompt = False
        assert world.redis.line is not None
        world.redis.line.lose()
        world.advance(TTL_S, 0.5)
        assert not client.is_closing()
        world.is_prompt = True
        world.advance(TTL_S / 4 + 1.0)
        assert world.redis.commands["extend"] >= 1
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        world.check_books()


# -- no longer in force

REFUSALS: dict[str, tuple[list[Any], int, bytes]] = {
    "the key is off": ([b"status", b"key", b"disabled"], 401, b"key_disabled"),
    "the account is off": ([b"status", b"account", b"inactive"], 401, b"account_inactive"),
    "the key has expired": ([b"expired", 1], 401, b"key_expired"),
    "the key is gone": ([b"missing", b"key"], 503, b"no longer in force"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_request_whose_key_or_account_is_off_is_told_before_its_answer_what_a_new_one_would_be(
    what: str,
) -> None:
    reply, status, words = REFUSALS[what]
    with patient_world() as world:
        client = asks(world)
        answering("extend", lambda _, __: reply, world)
        world.advance(TTL_S / 2 + 0.3)
        assert client.sent.startswith(b"HTTP/1.1 %d " % status)
        assert words in client.sent
        assert (b"Retry-After" in client.sent) == (status == 503)
        assert world.upstream.lines[0].is_lost
        (event,) = events(world)
        assert (event.outcome, event.status, event.cost) == ("cut", status, 700)
        assert world.proxy.metrics.events["cut_at_extension"] == 1
        world.check_books()


def test_a_request_that_is_cut_within_its_answer_looks_broken_and_costs_what_was_moved() -> None:
    with patient_world() as world:
        client = asks(world)
        world.upstream.lines[0].say(BEGUN)
        answering("extend", lambda _, __: REFUSALS["the key is off"][0], world)
        world.advance(TTL_S / 2 + 0.3)
        assert client.sent.endswith(b"abc")
        assert [client.is_lost, world.upstream.lines[0].is_lost] == [True, True]
        (event,) = events(world)
        assert (event.outcome, event.status, event.cost, event.bytes_out) == ("cut", 200, 700, 3)
        world.check_books()


def test_a_request_whose_hold_expired_is_cut_and_settled_by_nobody_twice() -> None:
    with patient_world() as world:
        client = asks(world)
        world.redis.holds.clear()  # the expire job came first
        world.advance(TTL_S / 2 + 0.3)
        assert client.sent.startswith(b"HTTP/1.1 503 ")
        assert b"hold expired" in client.sent
        assert world.redis.settled == {}
        world.proxy.snapshot()
        assert world.proxy.metrics.events["settled_elsewhere"] == 1
        assert world.proxy.in_flight == 0


def test_a_no_that_comes_after_the_end_changes_nothing() -> None:
    with patient_world() as world:
        client = asks(world)
        leave_an_extension_unanswered(world)
        world.upstream.lines[0].say(ANSWER)
        world.turn(3)
        answering("extend", lambda _, __: REFUSALS["the key is off"][0], world)
        world.is_prompt = True
        world.settle_down()
        assert client.sent.endswith(b"hello")
        assert not client.is_closing()
        assert world.proxy.metrics.events["cut_at_extension"] == 0
        world.check_books()


# -- tunnels


def test_a_tunnel_asks_whether_it_may_go_on_every_few_seconds() -> None:
    with patient_world() as world:
        client = upgraded(world)
        asked = extensions_at(world, 15)
        gaps = [later - earlier for earlier, later in pairwise(asked)]
        assert gaps == pytest.approx([TUNNEL_EXTENDED_EVERY_S] * len(gaps), abs=0.25)
        assert (asked[0] <= 0.3, len(gaps) >= 4) == (True, True)
        client.lose()
        world.settle_down()
        world.check_books()


@pytest.mark.parametrize("moment_s", [0.5, 1.7, 2.9])
def test_a_tunnel_is_cut_within_five_seconds_of_its_keys_end(moment_s: float) -> None:
    with patient_world() as world:
        client = upgraded(world)
        world.advance(moment_s)
        answering("extend", lambda _, __: REFUSALS["the key is off"][0], world)
        world.advance(4.9)
        assert client.is_lost
        assert world.upstream.lines[0].is_lost
        (event,) = events(world)
        assert (event.outcome, event.status) == ("cut", 101)
        world.check_books()


def test_a_tunnel_with_a_short_hold_asks_even_more_often() -> None:
    with World((PATIENT,), hold_ttl_s=4.0) as world:
        world.upstream.answers = None
        client = upgraded(world)
        assert len(extensions_at(world, 5)) in (5, 6)
        client.lose()
        world.settle_down()
        world.check_books()


# -- the end, once


def test_the_price_is_of_what_was_moved_and_of_what_was_held_the_rest_is_free_again() -> None:
    route = replace(
        PATIENT, hold=Microcredits(5_000),
        price=Price(Microcredits(100), kib_in=Microcredits(1_000), kib_out=Microcredits(2_000)),
    )  # fmt: skip
    with World((route,)) as world:
        world.upstream.answers = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024
        asks(world, post(b"b" * 512))
        (event,) = events(world)
        assert (event.bytes_in, event.bytes_out, event.cost, event.held) == (512, 1024, 2_600, 5_000)
        metrics = world.proxy.metrics
        assert (metrics.bytes_in, metrics.bytes_out) == (512, 1024 + 5), (
            "and of the request that made us known"
        )
        assert metrics.overshoot == 0
        world.check_books()


def test_what_costs_more_than_was_held_is_billed_and_counted() -> None:
    with World((replace(PATIENT, hold=Microcredits(100)),)) as world:
        before = world.proxy.metrics.overshoot
        asks(world)
        (event,) = events(world)
        assert (event.cost, event.held) == (700, 100)
        assert world.proxy.metrics.overshoot - before == 600
        world.check_books()


def test_whatever_else_is_said_of_a_request_that_has_ended_it_is_settled_once() -> None:
    with patient_world() as world:
        client = asks(world)
        (connection,) = world.proxy.clients
        world.upstream.lines[0].say(BEGUN)
        exchange = connection._exchange
        assert isinstance(exchange, Exchange)
        for _ in range(2):
            exchange.cut("The gateway is stopping.")
            exchange.on_client_lost()
            exchange.on_upstream_lost()
            exchange.on_tick(world.loop.now + 10_000)
            exchange._finish("cut")
        client.lose()
        world.settle_down()
        assert len(events(world)) == 1
        world.check_books()


def test_a_body_that_goes_wrong_while_admission_is_asked_is_refused_and_its_hold_given_back() -> None:
    with patient_world() as world:
        world.is_prompt = False
        client = world.client()
        client.say(post_chunked(b"zz\r\n"))
        world.turn(3)
        assert client.sent.startswith(b"HTTP/1.1 400 ")
        world.is_prompt = True
        world.settle_down()
        assert world.upstream.calls == []
        (event,) = events(world)
        assert (event.outcome, event.cost) == ("client_gone", 0)
        world.check_books()


def test_each_end_is_counted_by_route_outcome_and_status() -> None:
    with patient_world() as world:
        world.proxy.metrics.requests.clear()
        asks(world)
        world.upstream.lines[0].say(ANSWER.replace(b"200 OK", b"404 No"))
        world.settle_down()
        client = asks(world)
        client.lose()
        world.settle_down()
        assert world.proxy.metrics.requests == {
            ("models", "completed", 4): 1,
            ("models", "client_gone", 0): 1,
        }
        assert sum(world.proxy.metrics.whole.counts) >= 2


def test_the_access_log_has_a_line_with_the_event_and_where_it_came_from() -> None:
    with World((PATIENT,), trusted_networks="10.9.8.7") as world:
        stream = io.BytesIO()
        world.proxy.access_log = AccessLog(1.0, stream)
        asks(world, get(b"/a", b"X-Request-Id: mine", b"X-Forwarded-For: 192.0.2.1"))
        asks(world)
        world.proxy.access_log.close(5.0)
        first, second = map(orjson.loads, stream.getvalue().splitlines())
        assert (first["log"], first["client"], first["path"]) == ("access", "192.0.2.1", "/a")
        assert (first["client_request_id"], first["outcome"]) == ("mine", "completed")
        assert (second["client"], second["cost"]) == ("10.9.8.7", 700)
        assert [first["request_id"], second["request_id"]] == [event.request_id for event in events(world)]
