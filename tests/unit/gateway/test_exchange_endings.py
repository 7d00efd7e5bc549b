"""Whoever goes, at whichever step of an exchange: what was admitted is settled exactly once, and nothing stays behind.

A script is a list of small steps that take one exchange from its first byte to its end. Each test runs the steps up to one of
them, lets somebody go there, and lets the rest happen as far as it still can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gateway.contract import usage_event
from gateway.contract.usage_event import UsageEvent
from gateway.server import drain
from tests.unit.gateway.http1.referee import read_answers
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ROUTE, World, get, post, post_chunked

LONG_ENOUGH_S = 45.0
"""Longer than every time limit in these worlds."""


@dataclass(slots=True)
class Stage:
    """One exchange under way, and how far everybody has come."""

    world: World
    client: Line
    upstream: Line | None = None
    admits: int = 0
    is_answered: bool = False
    notes: list[str] = field(default_factory=list)

    def hear(self) -> None:
        """Look who has called the upstream."""
        if self.world.upstream.lines:
            self.upstream = self.world.upstream.lines[-1]


Step = Callable[[Stage], None]


def says(data: bytes) -> Step:
    """The client says these bytes."""
    return lambda stage: stage.client.say(data) if not stage.client.is_closing() else None


def redis(stage: Stage) -> None:
    """Redis answers one command."""
    stage.world.redis.answer(1)


def opens(stage: Stage) -> None:
    """The upstream's connection comes about."""
    stage.world.upstream.opens = True
    stage.world.upstream.open_waiting()


def answers(data: bytes) -> Step:
    """The upstream says these bytes, if it still can."""

    def step(stage: Stage) -> None:
        stage.hear()
        if stage.upstream is not None and not stage.upstream.is_closing():
            stage.upstream.say(data)

    return step


def hangs_up(stage: Stage) -> None:
    """The upstream ends its answer by closing."""
    stage.hear()
    if stage.upstream is not None and not stage.upstream.is_closing():
        stage.upstream.end()


def split_in_three(data: bytes, say: Callable[[bytes], Step]) -> list[Step]:
    third = len(data) // 3
    return [say(data[:third]), say(data[third : 2 * third]), say(data[2 * third :])]


ADMIT: list[Step] = [redis, opens]
SETTLE: list[Step] = [redis]
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"
SCRIPTS: dict[str, list[Step]] = {
    "a plain request": [*split_in_three(get(), says), *ADMIT, *split_in_three(PLAIN, answers), *SETTLE],
    "a body by length": [
        says(post(b"x" * 90)[:-60]), *ADMIT, *split_in_three(b"x" * 60, says), *split_in_three(PLAIN, answers), *SETTLE,
    ],
    "a chunked body both ways": [
        *split_in_three(post_chunked(b"3\r\nabc\r\n"), says), *ADMIT, says(b"2\r\nde\r\n0\r"), says(b"\n\r\n"),
        *split_in_three(CHUNKED, answers), *SETTLE,
    ],
    "an answer before the body's end": [
        says(post(b"x" * 90)[:-60]), *ADMIT, *split_in_three(PLAIN, answers), says(b"x" * 60), *SETTLE,
    ],
    "an answer that ends by closing": [says(get()), *ADMIT, *split_in_three(UNTIL_CLOSE, answers), hangs_up, *SETTLE],
    "a body that waits to be asked for": [
        says(post(b"abc", b"Expect: 100-continue")[:-3]), *ADMIT, answers(b"HTTP/1.1 100 Continue\r\n\r\n"), says(b"abc"),
        answers(PLAIN), *SETTLE,
    ],
    "a malformed body": [says(post_chunked(b"3\r\nabc\r\n")), *ADMIT, says(b"zz\r\n"), *SETTLE],
    "an upstream that is not HTTP": [says(get()), *ADMIT, answers(b"SSH-2.0-OpenSSH_9\r\n\r\n"), *SETTLE],
    "a request that is refused": [says(post(b"abc")[:-1]), *ADMIT, says(b"c")],
    "a token seen for the first time": [says(get()), redis, *ADMIT, answers(PLAIN), *SETTLE],
    "two requests in one read": [says(get() + get()), *ADMIT, answers(PLAIN), *SETTLE, redis, answers(PLAIN), *SETTLE],
}  # fmt: skip


def client_is_lost(stage: Stage) -> None:
    stage.client.lose()


def client_says_its_end(stage: Stage) -> None:
    stage.client.end()


def upstream_is_lost(stage: Stage) -> None:
    stage.hear()
    if stage.upstream is not None:
        stage.upstream.lose()
    stage.world.upstream.refuses = ConnectionRefusedError("refused by the test")


def upstream_falls_silent(stage: Stage) -> None:
    stage.hear()
    stage.upstream = None
    stage.world.upstream.answers = None


def everybody_falls_silent(stage: Stage) -> None:
    stage.notes.append("silence")


def gateway_stops(stage: Stage) -> None:
    for client in list(stage.world.proxy.clients):
        client.stop(stage.world.loop.now)
    stage.world.turn(2)
    for client in list(stage.world.proxy.clients):
        client.cut("The gateway is stopping.")


def two_are_lost_at_once(stage: Stage) -> None:
    client_is_lost(stage)
    upstream_is_lost(stage)


GOERS: list[Step] = [
    client_is_lost, client_says_its_end, upstream_is_lost, upstream_falls_silent, everybody_falls_silent, gateway_stops,
    two_are_lost_at_once,
]  # fmt: skip


def staged(script: str) -> Stage:
    world = World(
        (ROUTE,),
        knows_caller=script != "a token seen for the first time",
        head_timeout_s=5.0,
        body_timeout_s=8.0,
    )
    world.is_prompt = False
    world.upstream.opens = False
    if script == "a request that is refused":
        world.redis.refusal = [b"budget", b"key", 5, 5, 0, 0]
    return Stage(world, world.client())


def play(stage: Stage, steps: list[Step]) -> None:
    for step in steps:
        step(stage)
        stage.world.turn(4)


def finish(stage: Stage) -> None:
    """Redis answers everything from here on, every time limit passes, and the client goes if it is still there."""
    world = stage.world
    world.is_prompt = True
    world.upstream.answers = None
    world.settle_down()
    world.advance(LONG_ENOUGH_S, 0.5)
    if not stage.client.is_closing():
        stage.client.lose()
    world.settle_down()


def events(world: World) -> list[UsageEvent]:
    decoded = [usage_event.decode(event) for event in world.redis.events]
    return [event for event in decoded if isinstance(event, UsageEvent)]


@pytest.mark.parametrize("goer", GOERS, ids=lambda goer: goer.__name__)
@pytest.mark.parametrize("script", SCRIPTS)
def test_whoever_goes_at_any_step_everything_admitted_is_settled_once(script: str, goer: Step) -> None:
    steps = SCRIPTS[script]
    for position in range(len(steps) + 1):
        stage = staged(script)
        with stage.world as world:
            play(stage, steps[:position])
            goer(stage)
            world.turn(4)
            if goer is not everybody_falls_silent:
                play(stage, steps[position:])
            finish(stage)
            world.check_books()
            assert len(events(world)) == len(world.redis.admitted), position
            assert len(world.proxy.clients) == 0, position
            assert stage.client.is_lost, position


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_played_to_its_end_ends_well(script: str) -> None:
    stage = staged(script)
    with stage.world as world:
        play(stage, SCRIPTS[script])
        world.is_prompt = True
        world.settle_down()
        refuses = script == "a request that is refused"
        breaks = script in ("a malformed body", "an upstream that is not HTTP")
        statuses = [
            answer.status for answer in read_answers(bytes(stage.client.sent)) or [] if answer.status != 100
        ]
        expected = {
            "a malformed body": 400,
            "an upstream that is not HTTP": 502,
            "a request that is refused": 402,
        }.get(script, 200)
        assert statuses[0] == expected
        outcomes = [event.outcome for event in events(world)]
        assert (
            len(outcomes)
            == len(world.redis.admitted)
            == (0 if refuses else 2 if script.startswith("two") else 1)
        )
        assert all((outcome == "completed") != breaks for outcome in outcomes)
        bodies = {
            "a body by length": b"x" * 90,
            "a chunked body both ways": b"abcde",
            "a body that waits to be asked for": b"abc",
        }
        forwarded = [read.body for line in world.upstream.lines for read in world.upstream.requests(line)]
        assert script not in bodies or forwarded == [bodies[script]]
        stage.client.lose()
        world.settle_down()
        world.check_books()


@pytest.mark.parametrize("ran", [True, False], ids=["the command ran", "the command did not run"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_connection_to_redis_that_is_lost_at_any_step_settles_nothing_twice_and_loses_no_settlement(
    script: str, ran: bool
) -> None:
    steps = SCRIPTS[script]
    for position in range(len(steps) + 1):
        stage = staged(script)
        with stage.world as world:
            play(stage, steps[:position])
            known = set(world.redis.admitted)
            if ran:
                world.redis.run_unanswered()
            # A hold whose answer was lost is nobody's but the expire job's.
            orphans = set(world.redis.admitted) - known
            assert world.redis.line is not None
            world.redis.line.lose()
            world.turn(2)
            world.is_prompt = True
            world.advance(1.0)
            play(stage, steps[position:])
            finish(stage)
            assert world.redis.holds == orphans, position
            assert all(count == 1 for count in world.redis.settled.values()), position
            assert set(world.redis.settled) == set(world.redis.admitted) - orphans, position
            assert world.proxy.in_flight == world.proxy.ledger.unsettled == 0, position
            assert world.loop.failures == [], position


def test_draining_lets_a_request_finish_and_says_that_the_connection_ends() -> None:
    stage = staged("a plain request")
    with stage.world as world:
        play(stage, [says(get()), *ADMIT])
        draining = world.loop.create_task(drain(world.proxy, 5.0))
        world.turn(2)
        assert not world.proxy.is_ready
        play(stage, [answers(PLAIN)])
        world.is_prompt = True
        world.settle_down()
        world.advance(0.2)
        assert draining.done()
        assert b"\r\nConnection: close\r\n" in stage.client.sent
        assert stage.client.sent.endswith(b"hello, world")
        world.check_books()


def test_draining_cuts_what_does_not_finish_in_time_and_settles_it() -> None:
    stage = staged("a plain request")
    with stage.world as world:
        play(stage, [says(get()), *ADMIT])
        draining = world.loop.create_task(drain(world.proxy, 5.0))
        world.is_prompt, world.upstream.answers = True, None
        world.advance(4.5)
        assert not draining.done()
        world.advance(1.0)
        assert draining.done()
        world.settle_down()
        (event,) = events(world)
        assert (event.outcome, event.status) == ("cut", 503)
        world.check_books()


def test_a_client_that_says_its_end_is_hung_up_on_if_nothing_is_under_way() -> None:
    with World() as world:
        for begun in (b"", b"GET /x HT", get()):
            client = world.client()
            client.say(begun)
            world.settle_down()
            client.end()
            world.settle_down()
            assert client.is_lost, begun


def test_a_client_that_says_its_end_behind_a_request_gets_a_moment_to_be_answered() -> None:
    for delay_s, is_answered in ((0.5, True), (2.0, False)):
        stage = staged("a plain request")
        with stage.world as world:
            play(stage, [says(get()), *ADMIT])
            stage.client.end()
            world.advance(delay_s)
            play(stage, [answers(PLAIN)])
            world.is_prompt, world.upstream.answers = True, None
            world.settle_down()
            assert stage.client.sent.endswith(b"hello, world") == is_answered
            assert stage.client.is_lost
            assert [event.outcome for event in events(world)] == [
                "completed" if is_answered else "client_gone"
            ]
            world.check_books()


def test_who_stands_still_at_any_byte_of_an_answer_is_cut_off_in_time() -> None:
    for position in range(len(CHUNKED)):
        stage = staged("a plain request")
        with stage.world as world:
            play(stage, [says(get()), *ADMIT, answers(CHUNKED[:position])])
            finish(stage)
            (event,) = events(world)
            if position < CHUNKED.index(b"\r\n\r\n") + 4:
                assert stage.client.sent.startswith(b"HTTP/1.1 504 "), position
                assert (event.outcome, event.status, event.cost) == ("upstream_failed", 504, 0)
            else:
                assert stage.client.sent.startswith(b"HTTP/1.1 200 "), position
                assert not stage.client.sent.endswith(b"0\r\n\r\n"), "a broken answer must not look whole"
                assert (event.outcome, event.status, event.cost) == ("upstream_failed", 200, 700)
            world.check_books()


def test_who_stands_still_at_any_byte_of_a_request_is_cut_off_in_time() -> None:
    data = post(b"hello")
    head_length = data.index(b"\r\n\r\n") + 4
    for position in range(len(data)):
        stage = staged("a body by length")
        with stage.world as world:
            world.is_prompt = True
            play(stage, [says(data[:position])] if position else [])
            world.upstream.opens = True
            finish(stage)
            assert stage.client.is_lost
            if 0 < position < head_length:
                assert stage.client.sent.startswith(b"HTTP/1.1 408 "), position
                assert events(world) == []
            elif position >= head_length:
                (event,) = events(world)
                assert stage.client.sent.startswith(b"HTTP/1.1 408 "), position
                assert (event.outcome, event.status) == ("client_gone", 408)
            world.check_books()
