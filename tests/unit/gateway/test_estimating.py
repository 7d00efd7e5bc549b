"""What is held for a request is known before it is admitted, by what it says; and what it says cannot be taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.contract.money import Microcredits
from gateway.json_pointer import Pointer, parse_pointer
from gateway.pricing import Estimate
from tests.unit.gateway.metered import (
    AHEAD,
    CHAT,
    LENIENT,
    METERED,
    asks,
    chat,
    chat_world,
    held,
    json_answer,
    metered_world,
    passed,
    refusal,
    refused_unheld,
    settled,
)
from tests.unit.gateway.world import AUTHORIZATION, HOST, ROUTE, World, get, post, post_chunked

# -- how much


@pytest.mark.parametrize(
    ("fields", "amount"),
    [
        ({"max_tokens": 7}, 107), ({"max_tokens": 7, "model": "large"}, 170), ({}, 150), ({"model": "large"}, 600),
        ({"max_tokens": None}, 150), ({"max_tokens": 0}, 100), ({"max_tokens": 12.0}, 112),
        ({"max_completion_tokens": 3, "max_tokens": 7}, 107), ({"max_completion_tokens": 9, "max_tokens": 7}, 109),
        ({"max_completion_tokens": [], "max_tokens": 7}, 107), ({"max_completion_tokens": None, "max_tokens": 7}, 107),
        ({"max_tokens": 7, "nested": {"max_tokens": 9, "model": "large"}}, 107), ({"model": 3}, 350), ({"model": True}, 400),
    ],
)  # fmt: skip
def test_what_a_request_asks_for_is_held_at_its_rate(fields: dict[str, Any], amount: int) -> None:
    with chat_world() as world:
        body = chat(**fields)
        assert passed(world, post(body)) == body
        assert held(world) == amount


@pytest.mark.parametrize("number", [b"1.2e1", b"12.0", b"120e-1", b" 12 "])
def test_a_number_counts_however_it_is_written(number: bytes) -> None:
    with chat_world() as world:
        passed(world, post(b'{"model":"small","max_tokens":%b}' % number))
        assert held(world) == 112


@pytest.mark.parametrize(
    "number", [b'"12"', b"-1", b"12.5", b"true", b"1e300", b"9007199254740993", b'""', b"[]", b"[7]", b"{}"]
)
def test_what_is_no_whole_number_is_refused_with_the_name_of_the_field(number: bytes) -> None:
    with chat_world() as world:
        status, code, detail = refused_unheld(world, post(b'{"model":"small","max_tokens":%b}' % number))
        assert (status, code) == (400, "bad_request")
        assert "/max_tokens must be a whole number" in detail


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"small","model":"large"}', b'{"model":"small","Model":"large"}', b'{"MODEL":"small"}',
        b'{"model":"small","\\u006dodel":"large"}', b'{"model":"small","max_tokens":1,"max_tokens":900}',
        b'{"model":"small","Max_Tokens":1}', b'{"model":"small","max_completion_tokens":1,"max_completion_tokens":1}',
    ],
)  # fmt: skip
def test_a_field_that_is_there_twice_or_in_another_spelling_is_refused(body: bytes) -> None:
    with chat_world() as world:
        status, code, detail = refused_unheld(world, post(body))
        assert (status, code) == (400, "bad_request")
        assert "there twice, or in two spellings" in detail


def test_a_fixed_hold_waits_for_no_body() -> None:
    with metered_world() as world:
        asks(world, post(b"x" * 9)[:-9])
        assert (held(world), world.redis.commands["admit"]) == (2_000, 1)


def test_a_hold_by_the_length_is_that_of_content_length_and_waits_for_no_body() -> None:
    estimate = Estimate(Microcredits(100), per_kib=Microcredits(10))
    with metered_world(replace(METERED, estimate=estimate)) as world:
        for length, amount in ((0, 100), (1, 101), (1_024, 110), (1_025, 111)):
            asks(world, post(b"x" * length)[: -length or None])
            assert held(world) == amount
        asks(world, post_chunked(b"5\r\nabcde\r\n"))
        assert held(world) == 100, "nobody has said how long it will be"
        asks(world, get())
        assert held(world) == 100


@pytest.mark.parametrize(
    "asks_for", [(), (parse_pointer("/max_tokens"),)], ids=["by length alone", "read ahead"]
)
@pytest.mark.parametrize("size", [50_000, 3 * AHEAD, 0])
def test_a_body_in_chunks_is_charged_like_one_of_known_length_where_nobody_says_what_was_used(
    size: int, asks_for: tuple[Pointer, ...]
) -> None:
    estimate = Estimate(Microcredits(1_000), Microcredits(800), asks_for, "tokens", 10)
    costs = []
    for is_chunked in (False, True):
        with metered_world(replace(METERED, estimate=estimate, read_ahead_bytes=AHEAD)) as world:
            body = orjson.dumps({"max_tokens": 5, "text": "x" * size})
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            asks(world, post_chunked(framed) if is_chunked else post(body))
            world.upstream.lines[-1].say(json_answer({}))
            world.settle_down()
            done = settled(world)
            assert done.is_estimated
            costs.append(done.cost)
    assert costs[0] == costs[1] >= 1_000 + 800 * size // 1024


@pytest.mark.parametrize("where", [-40, -1, 0, 1, 40])
def test_what_counts_of_a_body_depends_on_where_it_is_and_not_on_how_the_body_came(where: int) -> None:
    """The same answer and the same hold, whether it came at once or in pieces."""
    field, start = b'"max_tokens":7,"model":"small"', b'{"text":"'
    body = start + b"x" * (AHEAD - len(start) - len(field) - 2 + where) + b'",' + field + b"}"
    found = set()
    for sizes in ([len(body)], [AHEAD, len(body)], [1_000] * (len(body) // 1_000 + 1), [AHEAD - 1] * 2):
        with chat_world() as world:
            message, at = post(body), 0
            client = world.client()
            head = len(message) - len(body)
            client.say(message[:head])
            for size in sizes:
                client.say(message[head + at : head + at + size])
                world.settle_down()
                at += size
            status = bytes(client.sent)[9:12]
            found.add((status, held(world) if world.redis.admitted else None))
    assert len(found) == 1, found


# -- what has no rate


@pytest.mark.parametrize(
    "request_",
    [
        post(b'{"model":"huge"}'), post(b"{}"), post(b'{"model":null}'), post(b'{"model":{"name":"small"}}'), post(b""),
        post(b"model=small"), post(b'{"model":"small"'), post(b'{"model":"small","x":NaN}'), get(),
        post(b'["small"]'), post(b'{"model":"Small"}'), post_chunked(b"0\r\n\r\n"),
    ],
)  # fmt: skip
def test_what_has_no_rate_is_refused_before_anything_is_held(request_: bytes) -> None:
    with chat_world() as world:
        status, code, detail = refused_unheld(world, request_)
        assert (status, code) == (400, "unpriced")
        assert "/model" in detail
        world.advance(1.0)
        (row,) = map(orjson.loads, world.redis.events)
        assert (row["kind"], row["reason"], row["count"]) == ("refused", "unpriced", 1)


def test_where_the_table_says_so_what_is_not_in_it_has_rates_of_its_own() -> None:
    with chat_world(LENIENT) as world:
        for body in (b'{"model":"huge"}', b"{}", b"model=small"):
            asks(world, post(body))
            assert held(world) == 100 + 50 * 2


def test_what_was_used_is_charged_at_the_rate_of_what_was_asked_for() -> None:
    for model, cost in (("small", 30), ("large", 300)):
        with chat_world() as world:
            asks(world, post(chat(model=model)))
            world.upstream.lines[-1].say(json_answer({"used": 30, "model": "small"}))
            world.settle_down()
            assert (settled(world).cost, settled(world).units) == (cost, {"tokens": 30})


# -- beyond what is read ahead


def behind(first: bytes, second: bytes) -> tuple[bytes, bytes]:
    """A request, split where the gateway has read as much ahead as it may."""
    start = b"{" + first + b',"text":"' + b"x" * AHEAD + b'",'
    request = post(start + second + b"}")
    return request[: -len(second) - 1], request[-len(second) - 1 :]


def test_what_comes_behind_the_read_ahead_was_not_said_in_time() -> None:
    with chat_world() as world:
        asks(world, b"".join(behind(b'"model":"small"', b'"max_tokens":9999')))
        assert held(world) == 150 or held(world) == 100 + 9_999, (
            "in one read, more may be there than had to be"
        )
    with chat_world() as world:
        client = world.client()
        for part in behind(b'"model":"small"', b'"max_tokens":9999'):
            client.say(part)
            world.settle_down()
        assert held(world) == 150


def test_a_model_behind_the_read_ahead_is_no_model() -> None:
    with chat_world() as world:
        status, code, detail = refused_unheld(world, behind(b'"user":"a"', b'"model":"small"')[0])
        assert (status, code) == (400, "unpriced")
        assert "near the start" in detail


SECOND = {
    "a second model": (CHAT, b'"model":"small"', b'"model":"large"'),
    "a model in another spelling": (CHAT, b'"model":"small"', b'"Model":"large"'),
    "a second number": (CHAT, b'"model":"small","max_tokens":1', b'"max_tokens":900'),
    "what strict readers do not take": (CHAT, b'"model":"small"', b'"x":NaN,"model":"large"'),
    "a model where there was none": (LENIENT, b'"user":"a"', b'"model":"large"'),
}


@pytest.mark.parametrize("when", ["before Redis has answered", "before the answer", "within the answer"])
@pytest.mark.parametrize("what", SECOND)
def test_a_second_word_on_the_rates_ends_the_request(what: str, when: str) -> None:
    route, first, second = SECOND[what]
    with chat_world(route) as world:
        client = world.client()
        begun, rest = behind(first, second)
        world.is_prompt = when != "before Redis has answered"
        client.say(begun)
        world.turn(10)
        if when == "within the answer":
            world.upstream.lines[0].say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            world.settle_down()
        client.say(rest)
        world.is_prompt = True
        world.settle_down()
        assert world.upstream.all_requests == [], "the upstream never has it whole"
        if when == "within the answer":
            assert client.is_closing()
            assert client.sent.endswith(b"hello")
        else:
            assert refusal(client)[:2] == (400, "bad_request")
        assert (settled(world).outcome, world.proxy.metrics.events["ambiguous_body"]) == ("client_gone", 1)
        assert settled(world).cost == (0 if when == "before Redis has answered" else held(world))
        world.check_books()


def test_what_is_not_in_the_table_may_still_come_late() -> None:
    with chat_world(LENIENT) as world:
        client = world.client()
        for part in behind(b'"user":"a"', b'"model":"huge"'):
            client.say(part)
            world.settle_down()
        assert len(world.upstream.all_requests) == 1
        assert held(world) == 200


def test_a_route_that_asks_nothing_of_a_body_does_not_look_at_it() -> None:
    with World((ROUTE,)) as world:
        body = b'{"model":"small","model":"large","max_tokens":-1}'
        asks(
            world,
            b"POST /x HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (HOST, AUTHORIZATION, len(body), body),
        )
        assert [read.body for read in world.upstream.all_requests] == [body]
        world.check_books()
