"""Routes that are priced by what requests ask for and answers report, and answers that report it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import orjson

from gateway.contract import usage_event
from gateway.contract.money import Microcredits
from gateway.contract.usage_event import UsageEvent
from gateway.json_pointer import parse_pointer
from gateway.metering import Meter, MeterPlan
from gateway.pricing import Estimate, Price, Rate, RateTable
from gateway.recording import amount_of
from gateway.routing import Route, Timeouts
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, ROUTE, World, get, post

TOKENS: Final = {"tokens": Rate(Microcredits(10), 1)}
"""Ten microcredits a token."""

USED: Final = parse_pointer("/used")
PLAN: Final = MeterPlan([Meter("tokens", None, (USED,), (USED,))])
METERED: Final = replace(
    ROUTE, price=Price(Microcredits(700), units=TOKENS), meters=PLAN, hold=Microcredits(2_000),
    hold_step=Microcredits(1_000), timeouts=Timeouts(2.0, 3600.0, 3600.0, tunnel_idle_s=3600.0),
)  # fmt: skip
"""A request costs 700, and 10 a token; 2000 are held, and 1000 more at a time."""

STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def metered(**changes: Any) -> Route:
    return replace(METERED, **changes)


def metered_world(*routes: Route, **settings: Any) -> World:
    """Nobody is given up for being slow, and the upstream answers when it is told to."""
    world = World(routes or (METERED,), body_timeout_s=3600.0, **settings)
    world.upstream.answers = None
    return world


def asks(world: World, request: bytes = get()) -> Line:
    client = world.client()
    client.say(request)
    world.settle_down()
    return client


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(used: int) -> bytes:
    """A server-sent event that says how many tokens were used so far."""
    return b'data: {"used":%d}\n\n' % used


def json_answer(body: Any, status: bytes = b"200 OK", *lines: bytes) -> bytes:
    content = orjson.dumps(body)
    more = b"".join(line + b"\r\n" for line in lines)
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status, more, len(content), content,
    )  # fmt: skip


def settled(world: World) -> UsageEvent:
    """The one request that was settled."""
    (found,) = [
        decoded for decoded in map(usage_event.decode, world.redis.events) if isinstance(decoded, UsageEvent)
    ]
    return found


def held(world: World) -> int:
    """Microcredits held for the request that was admitted last."""
    return amount_of(world.redis.admitted[-1])


def refusal(client: Line) -> tuple[int, str, str]:
    """Status, code and detail of an answer in problem JSON."""
    head, _, body = bytes(client.sent).rpartition(b"\r\n\r\n")
    problem = orjson.loads(body)
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), problem["code"], problem["detail"]


# -- answers that outgrow what is held

BY_BYTES = replace(METERED, price=Price(kib_out=Microcredits(1_024)), meters=None, hold=Microcredits(1_000))
BY_TIME = replace(METERED, price=Price(second=Microcredits(1_000)), meters=None, hold=Microcredits(1_000))


def streaming(world: World, first: bytes = b"") -> tuple[Line, Line]:
    """A client and its upstream, which has begun to answer with events."""
    client = asks(world)
    upstream = world.upstream.lines[-1]
    upstream.say(STREAM + first)
    world.settle_down()
    return client, upstream


def ends(world: World, upstream: Line) -> None:
    upstream.say(b"0\r\n\r\n")
    world.settle_down()
    world.advance(0.5)


def noting_extensions(world: World) -> list[int]:
    """What is asked for in addition, each time."""
    asked: list[int] = []

    def reply(command: list[bytes]) -> Any:
        if world.redis.name_of(command) == "extend":
            asked.append(int(command[-2]))
        return world.redis.run(command)

    world.redis.replies = reply
    return asked


def outgrown(world: World) -> tuple[Line, Line]:
    """An answer that has outgrown its hold; Redis has not said anything yet."""
    client, upstream = streaming(world)
    world.is_prompt = False
    upstream.say(chunk(event(200)))
    world.advance(0.15, 0.05)
    assert world.redis.waiting == ["extend"]
    return client, upstream


def full_world(route: Route = METERED, **settings: Any) -> World:
    """No level has room for more than is held."""
    world = metered_world(route, **settings)
    world.redis.room = 0
    return world


def key_is_off(world: World) -> None:
    """From the next extension on."""
    run = world.redis.run
    world.redis.replies = lambda command: (
        [b"status", b"key", b"disabled"] if world.redis.name_of(command) == "extend" else run(command)
    )


# -- routes that are priced by what a request asks for

AHEAD = 1_024
MODEL, MOST, OLD_MOST = (parse_pointer(text) for text in ("/model", "/max_completion_tokens", "/max_tokens"))


def tokens_at(microcredits: int) -> dict[str, Rate]:
    return {"tokens": Rate(Microcredits(microcredits), 1)}


TABLE = RateTable(
    {"small": tokens_at(1), "large": tokens_at(10), "3": tokens_at(5), "true": tokens_at(6)}, None, (MODEL,)
)
CHAT = replace(
    METERED, price=Price(table=TABLE), hold=Microcredits(100), read_ahead_bytes=AHEAD,
    estimate=Estimate(Microcredits(100), json=(MOST, OLD_MOST), unit="tokens", missing=50),
)  # fmt: skip
LENIENT = replace(CHAT, price=Price(table=replace(TABLE, otherwise=tokens_at(2))))
SMALL = b'{"model":"small","max_tokens":7}'


def chat(**fields: Any) -> bytes:
    return orjson.dumps({"model": "small", **fields})


def chat_world(route: Any = CHAT, **settings: Any) -> World:
    world = metered_world(route, knows_caller=False, **settings)
    asks(world, post(SMALL))  # makes the caller known
    for line in world.upstream.lines:
        line.say(ANSWER)
    world.settle_down()
    world.forget()
    return world


def refused_unheld(world: World, request: bytes) -> tuple[int, str, str]:
    """How the request is refused: before anything was held or forwarded."""
    client = asks(world, request)
    assert world.redis.commands["admit"] == 0
    assert world.redis.admitted == []
    assert world.upstream.calls == []
    assert world.proxy.in_flight == 0
    assert world.loop.failures == []
    return refusal(client)


def passed(world: World, request: bytes) -> bytes:
    """The body as the upstream got it."""
    client = asks(world, request)
    (read,) = world.upstream.all_requests
    world.upstream.lines[-1].say(ANSWER)
    world.settle_down()
    assert client.sent.endswith(b"hello")
    world.check_books()
    return read.body
