"""What each ending of a request on a metered route costs, to the microcredit: what was used, once, and nothing by accident."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.contract.money import Microcredits
from gateway.contract.usage_event import UsageEvent
from gateway.json_pointer import parse_pointer
from gateway.metering import Meter, MeterPlan
from gateway.pricing import Price, Rate, RateTable
from tests.unit.gateway.metered import (
    METERED,
    STREAM,
    TOKENS,
    USED,
    asks,
    chunk,
    event,
    json_answer,
    metered_world,
    settled,
)
from tests.unit.gateway.test_cutting_tunnels import SWITCHED, WEBSOCKET
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, World, get, post

REQUEST, HELD, TOKEN = 700, 2_000, 10
"""The price of a request, what is held for it, and the price of a token on the route of these tests."""

HEAD = get().replace(b"GET", b"HEAD", 1)
CALLS = parse_pointer("/calls")
TWO = {**TOKENS, "calls": Rate(Microcredits(3), 1)}
TWO_METERS = replace(
    METERED, price=Price(Microcredits(REQUEST), units=TWO),
    meters=MeterPlan([Meter("tokens", None, (USED,), (USED,)), Meter("calls", None, (CALLS,), (CALLS,))]),
)  # fmt: skip


def answered(answer: bytes, route: Any = METERED, request: bytes = get()) -> UsageEvent:
    """What is settled for a request that is answered so."""
    with metered_world(route) as world:
        asks(world, request)
        world.upstream.lines[-1].say(answer)
        world.settle_down()
        world.check_books()
        return settled(world)


def check(done: UsageEvent, outcome: str, cost: int, *, is_estimated: bool = False, **units: int) -> None:
    assert (done.outcome, done.cost, done.is_estimated, done.units) == (outcome, cost, is_estimated, units)


# -- answers that came to their end


@pytest.mark.parametrize(
    "answer",
    [
        json_answer({"used": 30}), json_answer({"used": 30.0, "text": "x" * 100_000}),
        STREAM + chunk(event(10)) + chunk(event(30) + b"data: [DONE]\n\n") + b"0\r\n\r\n",
        STREAM + chunk(b'data: {"text":1}\n\ndata: {"us') + chunk(b'ed":30}\n\n') + b"0\r\n\r\n",
        b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + b'{"used":30}',
        json_answer({"used": 30}, b"200 OK", b"X-Other: 99"),
    ],
)  # fmt: skip
def test_what_is_reported_is_charged(answer: bytes) -> None:
    check(answered(answer), "completed", REQUEST + 30 * TOKEN, tokens=30)


def test_compressed_answers_report_too() -> None:
    for head, body in (
        (
            b"Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n",
            b'{"used":30}',
        ),
        (
            b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n",
            event(30),
        ),
    ):
        packed = zlib.compress(body, wbits=31)
        answer = b"HTTP/1.1 200 OK\r\n" + head % len(packed) + packed
        check(answered(answer), "completed", REQUEST + 30 * TOKEN, tokens=30)


def test_a_zero_that_is_said_costs_nothing() -> None:
    check(answered(json_answer({"used": 0})), "completed", REQUEST, tokens=0)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER, json_answer({}), json_answer({"used": "30"}), json_answer({"used": -1}), json_answer({"used": None}),
        STREAM + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n", STREAM + b"0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{broken",
    ],
)  # fmt: skip
def test_where_nothing_is_reported_what_was_held_is_charged_and_marked(answer: bytes) -> None:
    check(answered(answer), "completed", HELD, is_estimated=True)


def test_where_more_was_measured_than_held_that_is_charged() -> None:
    route = replace(METERED, price=replace(METERED.price, kib_in=Microcredits(1_024)))
    check(answered(ANSWER, route, post(b"x" * 5_000)), "completed", REQUEST + 5_000, is_estimated=True)


def test_an_answer_to_head_cannot_report_and_costs_what_was_held() -> None:
    head = json_answer({"used": 30}).partition(b"{")[0]
    check(answered(head, request=HEAD), "completed", HELD, is_estimated=True)


def test_of_several_units_what_a_whole_answer_reports_is_charged() -> None:
    """An answer may have no use for a unit: embeddings have no output."""
    check(answered(json_answer({"used": 5}), TWO_METERS), "completed", REQUEST + 50, tokens=5)
    both = answered(json_answer({"used": 5, "calls": 4}), TWO_METERS)
    check(both, "completed", REQUEST + 50 + 12, tokens=5, calls=4)


@pytest.mark.parametrize("calls", ["4", -4, 4.5, True, [], {}, 2**60])
def test_a_unit_that_is_said_and_cannot_be_read_is_not_free(calls: object) -> None:
    """Nobody knows how many these were; what else was said may be all, or next to nothing."""
    said = {"used": 5, "calls": calls}
    check(answered(json_answer(said), TWO_METERS), "completed", HELD, is_estimated=True, tokens=5)
    stream = STREAM + chunk(b"data: " + orjson.dumps(said) + b"\n\n") + b"0\r\n\r\n"
    check(answered(stream, TWO_METERS), "completed", HELD, is_estimated=True, tokens=5)
    dear = json_answer({**said, "used": 500})
    check(answered(dear, TWO_METERS), "completed", REQUEST + 5_000, is_estimated=True, tokens=500)


@pytest.mark.parametrize(
    "status", [b"400 Bad Request", b"404 Not Found", b"500 Oops", b"529 Overloaded", b"302 Found"]
)
def test_an_error_answer_costs_what_was_measured_whatever_it_says_was_used(status: bytes) -> None:
    check(answered(json_answer({"used": 30}, status)), "completed", REQUEST)


def test_an_answer_that_says_that_nothing_has_changed_costs_what_was_measured() -> None:
    check(answered(b"HTTP/1.1 304 Not Modified\r\n\r\n"), "completed", REQUEST)


# -- rates and places


def test_a_header_field_reports() -> None:
    route = replace(METERED, meters=MeterPlan([Meter("tokens", header=b"x-tokens")]))
    answer = b"HTTP/1.1 200 OK\r\nX-Tokens: 30\r\nContent-Length: 5\r\n\r\nhello"
    check(answered(answer, route), "completed", REQUEST + 30 * TOKEN, tokens=30)
    check(answered(ANSWER, route), "completed", HELD, is_estimated=True)


def test_events_that_each_report_a_part_are_added_up() -> None:
    route = replace(METERED, meters=MeterPlan([Meter("tokens", None, (USED,), (USED,), each=True)]))
    answer = STREAM + b"".join(chunk(event(used)) for used in (10, 20, 30)) + b"0\r\n\r\n"
    check(answered(answer, route), "completed", REQUEST + 60 * TOKEN, tokens=60)


BY_ANSWER = replace(
    METERED,
    price=Price(
        Microcredits(REQUEST),
        table=RateTable(
            {"small": {"tokens": Rate(Microcredits(2), 1)}}, {"tokens": Rate(Microcredits(9), 1)},
            answer=(parse_pointer("/model"),),
        ),
    ),
    meters=MeterPlan([Meter("tokens", None, (USED,), (USED,))], (parse_pointer("/model"),)),
)  # fmt: skip


@pytest.mark.parametrize(("model", "rate"), [("small", 2), ("large", 9), (None, 9), (7, 9)])
def test_rates_may_depend_on_what_the_answer_says(model: Any, rate: int) -> None:
    check(
        answered(json_answer({"used": 30, "model": model}), BY_ANSWER),
        "completed",
        REQUEST + 30 * rate,
        tokens=30,
    )


def test_rates_may_depend_on_what_any_event_says() -> None:
    answer = STREAM + chunk(event(10) + b'data: {"model":"small"}\n\n' + event(30)) + b"0\r\n\r\n"
    check(answered(answer, BY_ANSWER), "completed", REQUEST + 30 * 2, tokens=30)


# -- endings before the end

Ending = Callable[[World, Line], None]


def client_goes(_: World, client: Line) -> None:
    client.lose()


def upstream_fails(world: World, _: Line) -> None:
    world.upstream.lines[-1].lose()


def room_ends(world: World, _: Line) -> None:
    world.redis.room = 0
    world.upstream.lines[-1].say(chunk(event(200)))
    world.advance(0.3)


def ended(ending: Ending, answer: bytes = b"", route: Any = METERED) -> UsageEvent:
    with metered_world(route) as world:
        client = asks(world)
        if answer:
            world.upstream.lines[-1].say(answer)
            world.settle_down()
        ending(world, client)
        world.settle_down()
        world.check_books()
        return settled(world)


def test_a_client_that_goes_before_the_head_pays_what_was_held() -> None:
    """The upstream was asked, and does the work."""
    check(ended(client_goes), "client_gone", HELD, is_estimated=True)


def test_a_client_that_goes_before_the_upstream_was_asked_pays_nothing() -> None:
    with metered_world() as world:
        world.upstream.opens = False
        client = asks(world)
        client.lose()
        world.settle_down()
        check(settled(world), "client_gone", 0)
        world.check_books()


@pytest.mark.parametrize(
    ("ending", "outcome"), [(client_goes, "client_gone"), (upstream_fails, "upstream_failed")]
)
def test_an_answer_that_ends_early_costs_what_it_had_reported(ending: Ending, outcome: str) -> None:
    begun = STREAM + chunk(event(10)) + chunk(event(20)) + chunk(event(30))
    check(ended(ending, begun), outcome, REQUEST + 30 * TOKEN, tokens=30)


@pytest.mark.parametrize(
    ("ending", "outcome"), [(client_goes, "client_gone"), (upstream_fails, "upstream_failed")]
)
@pytest.mark.parametrize("text", ["", "x" * 100_000])
def test_a_document_that_is_whole_counts_though_more_was_announced(
    text: str, ending: Ending, outcome: str
) -> None:
    begun = json_answer({"text": text, "used": 30}).replace(b"Content-Length: ", b"Content-Length: 9")
    check(ended(ending, begun), outcome, REQUEST + 30 * TOKEN, tokens=30)


@pytest.mark.parametrize(
    ("ending", "outcome"), [(client_goes, "client_gone"), (upstream_fails, "upstream_failed")]
)
@pytest.mark.parametrize("begun", [STREAM + chunk(b"data: {}\n\n"), STREAM, json_answer({"used": 30})[:-1]])
def test_an_answer_that_ends_before_it_has_reported_costs_what_was_held(
    begun: bytes, ending: Ending, outcome: str
) -> None:
    check(ended(ending, begun), outcome, HELD, is_estimated=True)


def test_who_hangs_up_before_the_last_unit_is_reported_pays_what_was_held() -> None:
    """Else nobody would wait for the end of a stream that says there how much it was."""
    begun = STREAM + chunk(b'data: {"calls":4}\n\n')
    check(ended(client_goes, begun, TWO_METERS), "client_gone", HELD, is_estimated=True, calls=4)


def test_an_answer_that_is_cut_costs_what_it_had_reported() -> None:
    check(ended(room_ends, STREAM + chunk(event(10))), "cut", REQUEST + 200 * TOKEN, tokens=200)


def test_an_error_answer_that_ends_early_costs_what_was_measured() -> None:
    begun = json_answer({"used": 30}, b"500 Oops")[:-1]
    check(ended(client_goes, begun), "client_gone", REQUEST)
    check(ended(upstream_fails, begun), "upstream_failed", REQUEST)


@pytest.mark.parametrize("charges", [False, True])
def test_an_upstream_that_fails_before_the_head_costs_what_the_route_says(charges: bool) -> None:
    route = replace(METERED, price=replace(METERED.price, charges_failures=charges))
    check(ended(upstream_fails, route=route), "upstream_failed", HELD if charges else 0, is_estimated=charges)


def test_an_upstream_that_never_answers_costs_what_the_route_says() -> None:
    for charges in (False, True):
        impatient = replace(METERED.timeouts, first_byte_s=1.0)
        route = replace(METERED, price=replace(METERED.price, charges_failures=charges), timeouts=impatient)
        with metered_world(route) as world:
            client = asks(world)
            world.advance(1.5)
            assert client.sent.startswith(b"HTTP/1.1 504 ")
            check(settled(world), "upstream_failed", HELD if charges else 0, is_estimated=charges)


def test_an_upstream_that_cannot_be_reached_costs_nothing_whatever_the_route_says() -> None:
    with metered_world(replace(METERED, price=replace(METERED.price, charges_failures=True))) as world:
        world.upstream.refuses = ConnectionRefusedError("refused by the test")
        client = asks(world)
        assert client.sent.startswith(b"HTTP/1.1 502 ")
        check(settled(world), "upstream_failed", 0)
        world.check_books()


def test_a_request_that_is_sent_again_by_the_gateway_is_one_request() -> None:
    with metered_world() as world:
        client = asks(world)
        world.upstream.lines[-1].say(json_answer({"used": 1}))
        world.settle_down()
        world.redis.events.clear()
        client.say(get())
        world.settle_down()
        world.upstream.lines[-1].lose()  # a kept connection that went stale
        world.settle_down()
        assert len(world.upstream.lines) == 2
        world.upstream.lines[-1].say(json_answer({"used": 30}))
        world.settle_down()
        check(settled(world), "completed", REQUEST + 30 * TOKEN, tokens=30)
        world.check_books()


def test_a_tunnel_reports_nothing_and_costs_what_was_held() -> None:
    with metered_world() as world:
        client = asks(world, WEBSOCKET)
        world.upstream.lines[-1].say(SWITCHED + b"\x82\x05hello")
        world.settle_down()
        client.lose()
        world.settle_down()
        check(settled(world), "client_gone", HELD, is_estimated=True)
        world.check_books()


def test_what_nobody_reported_is_counted_for_who_runs_the_gateway() -> None:
    with metered_world() as world:
        world.proxy.metrics.events.clear()
        for answer in (ANSWER, json_answer({"used": 1})):
            asks(world)
            world.upstream.lines[-1].say(answer)
            world.settle_down()
        assert world.proxy.metrics.events["usage_not_reported"] == 1
