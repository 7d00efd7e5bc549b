"""Before anything is forwarded: whatever Redis says or fails to say, a request is answered; without a yes it goes nowhere."""

from typing import Any

import hiredis
import orjson
import pytest

from gateway.contract import layout, usage_event
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import KEY, TOKEN, World, get

RECORD = layout.Layout(16).key(KEY).encode()


def ask(world: World) -> tuple[int, str]:
    """Status and code of what a request with the token is answered."""
    client = world.client()
    client.say(get())
    world.settle_down()
    return answer(client)


def answer(client: Line) -> tuple[int, str]:
    head, _, body = bytes(client.sent).partition(b"\r\n\r\n")
    assert head, "no answer"
    status = int(head[9:12])
    return status, "" if status == 200 else orjson.loads(body)["code"]


def check_nothing_passed(world: World) -> None:
    assert world.upstream.all_requests == []
    assert world.redis.holds == set()
    assert world.proxy.in_flight == 0
    assert world.loop.failures == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ([b"budget", b"key", 5, 5, 0, 0], (402, "budget_exceeded")),
        ([b"budget", b"organization", 5, 5, 0, 1_735_689_600_000], (402, "budget_exceeded")),
        ([b"status", b"key", b"revoked"], (401, "key_revoked")),
        ([b"status", b"account", b"inactive"], (401, "account_inactive")),
        ([b"expired", 1_735_689_600_000], (401, "key_expired")),
        ([b"missing", b"key"], (401, "invalid_token")),
        ([b"rate", b"key", 60, 5, 1500], (429, "rate_limited")),
        ([b"rate", b"account", 1, 1, 1], (429, "rate_limited")),
        ([b"in_flight", b"account", 3, 3], (429, "too_many_in_flight")),
        ([b"in_flight", b"key", 0, 0], (429, "too_many_in_flight")),
        ([b"broken", b"account"], (503, "not_ready")),
        ([b"late"], (503, "not_ready")),
        ([b"what tomorrow's script may say"], (401, "invalid_token")),
        (7, (503, "not_ready")),
        (None, (503, "not_ready")),
    ],
)  # fmt: skip
def test_anything_but_a_hold_is_a_no(reply: Any, expected: tuple[int, str]) -> None:
    with World() as world:
        run = world.redis.run
        world.redis.replies = lambda command: (
            [reply] if world.redis.name_of(command) == "admit" else run(command)
        )
        assert ask(world) == expected
        check_nothing_passed(world)


@pytest.mark.parametrize(
    "reply", [7, None, [], [b"one too many"] * 2, hiredis.ReplyError("ERR user_script:3")]
)
def test_what_is_no_answer_to_a_batch_is_a_no_to_each_request_in_it(reply: Any) -> None:
    with World() as world:
        run = world.redis.run
        world.redis.replies = lambda command: (
            reply if world.redis.name_of(command) == "admit" else run(command)
        )
        clients = [world.client() for _ in range(3)]
        for client in clients:
            client.say(get())
        world.settle_down()
        assert [answer(client) for client in clients] == [(503, "not_ready")] * 3
        check_nothing_passed(world)


def test_a_record_that_cannot_be_read_is_counted_and_told_to_nobody() -> None:
    with World() as world:
        world.redis.refusal = [b"broken", b"organization"]
        client = world.client()
        client.say(get())
        world.settle_down()
        assert answer(client) == (503, "not_ready")
        assert b"broken" not in client.sent
        assert b"organization" not in client.sent
        assert world.proxy.metrics.events["broken_record"] == 1


# -- levels that only observe


def observing(world: World, *seen: bytes) -> None:
    """Redis admits, and says which levels would have refused, and for what."""
    run = world.redis.run

    def reply(command: list[bytes]) -> Any:
        ran = run(command)
        if world.redis.name_of(command) != "admit":
            return ran
        return [[b"observed", hold, *seen] for hold in ran]

    world.redis.replies = reply


def test_a_request_that_would_have_been_refused_is_let_through_and_counted() -> None:
    with World() as world:
        observing(world, b"key", b"rate", b"organization", b"budget")
        assert ask(world) == (200, "")
        assert ask(world) == (200, "")
        world.redis.replies = None
        world.advance(1.0)
        decoded = [usage_event.decode(event) for event in world.redis.events]
        counts = [event for event in decoded if isinstance(event, usage_event.RefusalCount)]
        told = {(count.level, count.reason): count.count for count in counts}
        assert told == {("key", "rate_limited"): 2, ("organization", "budget_exceeded"): 2}
        assert all(count.observed for count in counts)
        assert world.proxy.metrics.refusals == {}
        world.check_books()


def test_each_thing_that_may_be_observed_has_a_reason() -> None:
    with World() as world:
        for what, reason in (
            (b"budget", "budget_exceeded"),
            (b"rate", "rate_limited"),
            (b"in_flight", "too_many_in_flight"),
        ):
            observing(world, b"account", what)
            assert ask(world) == (200, "")
            assert world.proxy.metrics.observed[("models", reason)] == 1
        world.check_books()


def test_a_client_that_is_gone_when_its_observed_request_is_admitted_leaves_nothing_held() -> None:
    with World() as world:
        observing(world, b"key", b"budget")
        world.is_prompt = False
        client = world.client()
        client.say(get())
        world.turn(2)
        client.lose()
        world.turn(2)
        world.is_prompt = True
        world.settle_down()
        assert world.upstream.all_requests == []
        assert list(world.redis.costs.values()) == [0]
        world.check_books()


@pytest.mark.parametrize(
    "error",
    [
        "LOADING Redis is loading the dataset in memory", "OOM command not allowed", "READONLY You can't write",
        "BUSY Redis is busy", "NOSCRIPT No matching script", "WRONGTYPE Operation against a key", "ERR anything",
        "MISCONF Redis is configured to save", "NOAUTH Authentication required.",
    ],
)  # fmt: skip
def test_an_error_instead_of_an_answer_is_not_ready(error: str) -> None:
    with World() as world:
        run = world.redis.run
        world.redis.replies = (
            lambda command: hiredis.ReplyError(error) if world.redis.name_of(command) == "admit" else run(command)
        )  # fmt: skip
        assert ask(world) == (503, "not_ready")
        check_nothing_passed(world)
        world.redis.replies = None
        world.advance(2.0)
        assert ask(world) == (200, "")


def test_scripts_that_redis_forgot_cost_the_request_nothing() -> None:
    with World() as world:
        forgotten = [True]
        run = world.redis.run

        def replies(command: list[bytes]) -> Any:
            if command[0] == b"SCRIPT":
                forgotten.clear()
            if forgotten and world.redis.name_of(command) == "admit":
                return hiredis.ReplyError("NOSCRIPT No matching script. Please use EVAL.")
            return run(command)

        world.redis.replies = replies
        assert ask(world) == (200, "")
        world.check_books()


def test_a_record_missing_from_a_redis_that_is_not_loaded_is_not_the_callers_fault() -> None:
    with World() as world:
        world.redis.refusal, world.redis.is_loaded = [b"missing", b"key"], False
        assert ask(world) == (503, "not_ready")
        world.redis.refusal, world.redis.is_loaded = None, True
        world.advance(1.0)
        assert ask(world) == (200, "")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ([b"\xff" * 32, b"hash", b"a", b"b", b"c", b"d", b"e"], (401, "invalid_token")),
        ([None] * 7, (401, "invalid_token")),
        ([b"", b"\xff\xfe", b"\xff", b"b", b"c", b"d", b"e"], (401, "invalid_token")),
        ([], (401, "invalid_token")),
        (7, (503, "not_ready")),
        (None, (503, "not_ready")),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_lets_nobody_in_and_leaves_nobody_waiting(
    record: Any, expected: tuple[int, str]
) -> None:
    with World(knows_caller=False) as world:
        world.redis.records[RECORD] = record
        assert ask(world) == expected
        check_nothing_passed(world)
        assert world.proxy.directory.lookups == 0


def test_a_token_that_never_was_one_costs_redis_nothing() -> None:
    with World() as world:
        before = world.redis.commands.total()
        for token in (
            b"x",
            TOKEN[:-1],
            TOKEN[:-1] + b"!",
            TOKEN + b"0",
            TOKEN[:-1] + bytes([TOKEN[-1] ^ 1]),
            b"tk_" + b"0" * 66,
        ):
            client = world.client()
            client.say(get().replace(TOKEN, token))
            world.turn(10)
            assert answer(client) == (401, "invalid_token")
        assert world.redis.commands.total() == before


def test_while_redis_is_away_everybody_is_told_at_once_and_nobody_is_let_through() -> None:
    with World() as world:
        assert world.redis.line is not None
        world.redis.line.lose()
        world.loop.turn(3)
        assert ask(world) == (503, "not_ready")
        world.advance(1.0)
        assert ask(world) == (200, "")


def test_a_redis_that_stands_still_is_given_up_in_time() -> None:
    with World(redis_timeout_s=1.0) as world:
        world.is_prompt = False
        client = world.client()
        client.say(get())
        world.advance(1.4)
        assert answer(client) == (503, "not_ready")


def test_too_many_commands_in_flight_is_overloaded() -> None:
    with World(redis_depth_max=3) as world:
        world.is_prompt = False
        clients = [world.client() for _ in range(4)]
        for client in clients:
            client.say(get())
        world.turn(2)
        assert answer(clients[3]) == (503, "overloaded")
        world.is_prompt = True
        world.settle_down()
        assert [answer(client) for client in clients[:3]] == [(200, "")] * 3
        world.check_books()


def test_refusals_of_a_known_key_are_counted_for_the_ledger_and_those_of_strangers_are_not() -> None:
    with World() as world:
        world.redis.refusal = [b"status", b"key", b"disabled"]
        for _ in range(3):
            ask(world)
        client = world.client()
        client.say(get().replace(TOKEN, b"nonsense"))
        world.advance(1.0)
        (event,) = (orjson.loads(event) for event in world.redis.events)
        assert (event["kind"], event["key"], event["reason"], event["count"]) == (
            "refused",
            KEY,
            "invalid_token",
            3,
        )


@pytest.mark.parametrize("ahead_ms", [2_500, 86_400_000, -86_400_000])
def test_a_clock_of_redis_that_steps_refuses_nobody(ahead_ms: int) -> None:
    """Set by NTP, or a machine that slept: whoever finds out asks what time it is, and asks again."""
    with World() as world:
        before = world.redis.now_ms
        world.redis.now_ms = lambda: before() + ahead_ms
        for _ in range(5):
            client = world.client()
            client.say(get())
            world.settle_down()
            assert client.sent.startswith(b"HTTP/1.1 200 ")
            client.lose()
            world.advance(0.1)
        assert world.proxy.metrics.events["admission_late"] == (1 if ahead_ms > 0 else 0)
        world.check_books()
