"""An answer that is cut ends as its reader can tell: with an error where one can be said, else broken; never as if whole."""

from __future__ import annotations

import zlib
from dataclasses import replace

import orjson
import pytest

from gateway.contract.money import Microcredits
from gateway.exchange import FRAME_END_S
from gateway.http1.fields import is_plain_event_stream
from gateway.pricing import Price
from gateway.routing import DIALECTS, Dialect, Route
from gateway.server import drain
from tests.unit.gateway.http1.referee import Read, Reading
from tests.unit.gateway.metered import (
    BY_BYTES,
    BY_TIME,
    METERED,
    STREAM,
    asks,
    chunk,
    ends,
    event,
    full_world,
    key_is_off,
    metered_world,
    refusal,
    settled,
    streaming,
)  # fmt: skip
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, get, post

OLD = get(b"/x", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
OUTGROWN = chunk(event(200))


def answers_to(client: Line) -> list[Read]:
    """What the client has been answered, as a parser of somebody else's reads it."""
    reading = Reading(of_answers=True)
    reading.feed(bytes(client.sent))
    assert not reading.is_refused
    return reading.messages


def events_in(body: bytes) -> list[bytes]:
    whole, _, rest = body.rpartition(b"\n\n")
    assert rest == b"", "half an event"
    return [part for part in whole.split(b"\n\n") if part]


# -- streams of events


@pytest.mark.parametrize("errors", DIALECTS)
def test_a_stream_of_events_gets_a_last_one_that_says_why_and_a_proper_end(errors: Dialect) -> None:
    with full_world(replace(METERED, errors=errors)) as world:
        client, upstream = streaming(world, OUTGROWN)
        world.advance(0.3)
        assert upstream.is_lost
        (read,) = answers_to(client)
        assert (read.status, read.is_whole) == (200, True)
        first, last = events_in(read.body)
        assert first == event(200).strip()
        *name, data = last.split(b"\n")
        assert name == ([] if errors == "openai" else [b"event: error"])
        error = orjson.loads(data.removeprefix(b"data: "))["error"]
        assert error["code"] == "budget_exceeded"
        assert "credits ran out" in error["message"]
        assert settled(world).outcome == "cut"
        world.check_books()


def test_the_connection_of_a_stream_that_was_cut_serves_the_next_request() -> None:
    with full_world() as world:
        client, _ = streaming(world, OUTGROWN)
        world.advance(0.3)
        client.say(get())
        world.settle_down()
        world.upstream.lines[-1].say(ANSWER)
        world.settle_down()
        assert [read.is_whole for read in answers_to(client)] == [True, True]
        assert client.sent.endswith(b"hello")
        world.check_books()


def test_a_stream_that_ends_with_its_connection_is_ended_for_the_client_all_the_same() -> None:
    with full_world() as world:
        client = asks(world)
        world.upstream.lines[-1].say(STREAM.replace(b"Transfer-Encoding: chunked\r\n", b"") + event(200))
        world.advance(0.3)
        (read,) = answers_to(client)
        assert read.is_whole
        assert b"budget_exceeded" in events_in(read.body)[-1]
        world.check_books()


def test_an_old_client_of_a_stream_gets_the_last_event_and_the_end_of_its_connection() -> None:
    with full_world() as world:
        client = asks(world, OLD)
        world.upstream.lines[-1].say(STREAM + OUTGROWN)
        world.advance(0.3)
        body = bytes(client.sent).partition(b"\r\n\r\n")[2]
        assert b"budget_exceeded" in events_in(body)[-1]
        assert client.has_ended or client.is_closing()
        world.check_books()


@pytest.mark.parametrize("border", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_a_stream_that_is_cut_within_an_event_gets_the_rest_of_it_and_nothing_behind_it(
    border: bytes,
) -> None:
    """Half an event with a blank line behind it would be taken for a whole one."""
    with full_world() as world:
        client, upstream = streaming(world, OUTGROWN + chunk(b'data: {"te'))
        world.advance(0.3)
        assert not client.sent.endswith(b"0\r\n\r\n")
        upstream.say(chunk(b'xt":"hello"}' + border[:1]))
        world.turn(3)
        upstream.say(chunk(border[1:] + b'data: {"text":"never"}\n\n'))
        world.settle_down()
        world.advance(0.2)
        (read,) = answers_to(client)
        assert read.is_whole
        assert b'data: {"text":"hello"}' + border in read.body
        assert b"never" not in read.body
        assert b"budget_exceeded" in read.body
        assert upstream.is_lost
        world.check_books()


def test_a_stream_that_is_cut_within_an_event_that_does_not_end_is_broken_off() -> None:
    with full_world() as world:
        client, _ = streaming(world, OUTGROWN + chunk(b'data: {"te'))
        world.advance(FRAME_END_S + 0.5)
        (read,) = answers_to(client)
        assert not read.is_whole
        assert read.body.endswith(b'data: {"te')
        assert client.is_closing()
        assert settled(world).outcome == "cut"
        world.check_books()


def test_a_stream_is_told_of_a_key_that_is_off_and_of_a_gateway_that_stops() -> None:
    with metered_world(hold_ttl_s=4.0) as world:
        client, _ = streaming(world, chunk(event(1)))
        key_is_off(world)
        world.advance(2.5)
        assert b'"code":"key_disabled"' in events_in(answers_to(client)[0].body)[-1]
        world.check_books()
    with metered_world() as world:
        client, _ = streaming(world, chunk(event(1)))
        world.loop.run_until_complete(drain(world.proxy, 0.0))
        world.settle_down()
        assert b"The gateway is stopping." in events_in(answers_to(client)[0].body)[-1]
        assert settled(world).outcome == "cut"
        world.check_books()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"Content-Type: text/event-stream\r\n", True), (b"content-type:Text/Event-Stream\r\n", True),
        (b"A: b\r\nContent-Type:\t text/event-stream ; charset=utf-8\r\n", True),
        (b"Content-Type: text/event-streams\r\n", False), (b"Content-Type: text/plain, text/event-stream\r\n", False),
        (b"X-Content-Type: text/event-stream\r\n", False), (b"", False), (b"A: content-type: text/event-stream\r\n", False),
        (b"Content-Type: text/event-stream\r\ncontent-encoding: br\r\n", False),
        (b"Content-Encoding:gzip\r\nContent-Type: text/event-stream\r\n", False),
    ],
)  # fmt: skip
def test_only_to_plain_events_an_event_can_be_added(lines: bytes, expected: bool) -> None:
    assert is_plain_event_stream(lines) == expected


# -- what nothing can be added to

GZIPPED = zlib.compress(event(200), wbits=31)
BROKEN = {
    "events with a length": (METERED, STREAM.replace(b"Transfer-Encoding: chunked", b"Content-Length: 5000") + event(200)),
    "events that are compressed": (
        METERED, STREAM.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunk(GZIPPED),
    ),
    "a length": (BY_BYTES, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 1_500),
    "chunks": (BY_BYTES, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"x" * 1_500)),
    "no end but its connection's": (BY_BYTES, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_500),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_any_other_answer_is_broken_off_and_seen_to_be(what: str) -> None:
    route, answer = BROKEN[what]
    with full_world(route) as world:
        client = asks(world)
        upstream = world.upstream.lines[-1]
        upstream.say(answer)
        world.advance(0.3)
        (read,) = answers_to(client)
        assert not read.is_whole
        assert b"error" not in read.body
        assert (client.is_closing(), upstream.is_lost) == (True, True)
        assert settled(world).outcome == "cut"
        world.check_books()


def test_an_old_client_sees_a_reset_where_the_end_of_its_connection_would_be_a_good_end() -> None:
    with full_world(BY_BYTES) as world:
        client = asks(world, OLD)
        world.upstream.lines[-1].say(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_500)
        world.advance(0.3)
        assert client.is_lost
        assert not client.has_ended
        world.check_books()


# -- before the head


@pytest.mark.parametrize(("quota_status", "retries"), [(402, 0), (429, 1)])
def test_before_the_head_a_refusal_says_why_with_the_routes_status(quota_status: int, retries: int) -> None:
    with full_world(replace(BY_TIME, quota_status=402 if quota_status == 402 else 429)) as world:
        client = asks(world)
        world.advance(1.3)
        status, code, detail = refusal(client)
        assert (status, code) == (quota_status, "budget_exceeded")
        assert "credits ran out" in detail
        assert client.sent.count(b"x-should-retry: false") == retries
        assert (settled(world).outcome, settled(world).status) == ("cut", quota_status)
        assert world.proxy.metrics.refusals[("models", "budget_exceeded")] == 1
        client.say(get())
        world.settle_down()
        world.upstream.lines[-1].say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")


def test_before_the_head_the_cap_is_a_reason_too() -> None:
    with full_world(replace(BY_TIME, price=replace(BY_TIME.price, cap=Microcredits(1_000)))) as world:
        client = asks(world)
        world.advance(1.3)
        assert refusal(client)[:2] == (402, "cap_reached")
        assert settled(world).cost == 1_000
        world.check_books()


def test_a_request_that_waits_for_a_connection_costs_nothing_and_is_not_cut() -> None:
    with full_world(BY_TIME, upstream_connections_max=1) as world:
        asks(world)
        waiting = asks(world)
        world.advance(0.6)
        assert waiting.sent == b""
        waiting.lose()
        world.settle_down()
        assert settled(world).cost == 0


# -- behind the end of an answer


def test_a_whole_answer_whose_request_is_still_on_its_way_gets_nothing_behind_its_end() -> None:
    route: Route = replace(METERED, meters=None, price=Price(Microcredits(700), kib_in=Microcredits(1)))
    with metered_world(route, hold_ttl_s=4.0) as world:
        client = asks(world, post(b"x" * 100)[:-50])
        upstream = world.upstream.lines[-1]
        upstream.say(STREAM + chunk(event(1)))
        ends(world, upstream)
        assert answers_to(client)[0].is_whole
        before = bytes(client.sent)
        key_is_off(world)
        world.advance(3.0)
        assert bytes(client.sent) == before
        assert client.is_closing()
        assert settled(world).outcome == "cut"
        world.check_books()
