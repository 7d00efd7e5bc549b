"""A body that is read ahead goes on unchanged, however it comes; meanwhile nothing is held, and nobody waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hiredis
import orjson
import pytest

from gateway.estimating import EARLY_BYTES_MAX
from tests.unit.gateway.metered import (
    AHEAD,
    CHAT,
    SMALL,
    chat,
    chat_world,
    held,
    metered_world,
    passed,
    refusal,
    refused_unheld,
    settled,
)
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, post, post_chunked

# -- the body goes on as it came


def say_whole(client: Line, request: bytes) -> None:
    client.say(request)


def say_bytewise(client: Line, request: bytes) -> None:
    for at in range(len(request)):
        client.say(request[at : at + 1])


def say_head_first(client: Line, request: bytes) -> None:
    head, _, body = request.partition(b"\r\n\r\n")
    client.say(head + b"\r\n\r\n")
    client.say(body)


LONG = chat(max_tokens=7, text="é" * 3_000)
BODIES = {"short": SMALL, "as long as is read ahead": SMALL + b" " * (AHEAD - len(SMALL)), "longer": LONG}
FRAMED: dict[str, Callable[[bytes], bytes]] = {
    "by its length": post,
    "in one chunk": lambda body: post_chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
    "in small chunks": lambda body: post_chunked(
        b"".join(
            b"%x\r\n%b\r\n" % (len(piece), piece)
            for piece in (body[at : at + 9] for at in range(0, len(body), 9))
        )
        + b"0\r\nX-Sum: 5\r\n\r\n"
    ),
}


@pytest.mark.parametrize("how", [say_whole, say_bytewise, say_head_first])
@pytest.mark.parametrize("framed", FRAMED)
@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_was_read_ahead_goes_on_unchanged(
    body: str, framed: str, how: Callable[[Line, bytes], None]
) -> None:
    with chat_world() as world:
        client = world.client()
        how(client, FRAMED[framed](BODIES[body]))
        world.settle_down()
        (read,) = world.upstream.all_requests
        assert read.body == BODIES[body]
        assert held(world) == 107
        world.upstream.lines[-1].say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        assert settled(world).bytes_in == len(BODIES[body])
        world.check_books()


def test_requests_behind_one_another_are_each_read_ahead() -> None:
    with chat_world() as world:
        world.upstream.answers = lambda _: ANSWER
        client = world.client()
        bodies = [chat(max_tokens=count) for count in (1, 2, 3)]
        client.say(b"".join(map(post, bodies)))
        world.settle_down()
        assert [read.body for read in world.upstream.all_requests] == bodies
        assert sorted(event["held"] for event in map(orjson.loads, world.redis.events)) == [101, 102, 103]
        assert client.sent.count(b"HTTP/1.1 200 OK") == 3
        world.check_books()


def test_a_refused_request_leaves_the_next_one_on_its_connection_alone() -> None:
    with chat_world() as world:
        world.upstream.answers = lambda _: ANSWER
        client = world.client()
        client.say(post(b'{"model":"huge"}') + post(SMALL))
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 400 ")
        assert client.sent.endswith(b"hello")
        assert [read.body for read in world.upstream.all_requests] == [SMALL]
        world.check_books()


def test_a_client_that_waits_for_100_is_told_to_go_on_and_the_upstream_is_not_asked() -> None:
    with chat_world() as world:
        client = world.client()
        request = post(SMALL, b"Expect: 100-continue")
        client.say(request[: -len(SMALL)])
        world.settle_down()
        assert client.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert world.redis.commands["admit"] == 0
        client.say(SMALL)
        world.settle_down()
        (read,) = world.upstream.all_requests
        assert (read.body, [value for name, value in read.fields if name.lower() == b"expect"]) == (SMALL, [])
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert client.sent.count(b"100 Continue") == 1
        assert client.sent.endswith(b"hello")
        world.check_books()


def test_an_old_client_is_not_told_of_100() -> None:
    with chat_world() as world:
        client = world.client()
        client.say(post(SMALL).replace(b"HTTP/1.1", b"HTTP/1.0")[: -len(SMALL)])
        world.settle_down()
        assert client.sent == b""


# -- while it is read ahead


def test_a_body_that_stands_still_while_it_is_read_ahead_is_given_up_and_nothing_is_held() -> None:
    with chat_world() as world:
        settings = world.proxy.settings
        world.proxy.settings = settings.model_copy(update={"body_timeout_s": 5.0})
        client = world.client()
        client.say(post(SMALL)[:-5])
        world.advance(4.5)
        client.say(post(SMALL)[-5:-4])
        world.advance(4.5)
        assert client.sent == b"", "it went on"
        world.advance(1.0)
        assert refusal(client)[:2] == (408, "request_timeout")
        assert client.is_closing() or client.has_ended
        assert world.redis.commands["admit"] == 0
        assert world.proxy.metrics.events["body_timeout"] == 1
        world.check_books()


@pytest.mark.parametrize("goes", ["lose", "end"])
def test_a_client_that_goes_while_it_is_read_ahead_leaves_nothing_behind(goes: str) -> None:
    with chat_world() as world:
        client = world.client()
        client.say(post(SMALL)[:-5])
        world.settle_down()
        getattr(client, goes)()
        world.advance(3.0)
        assert world.redis.commands["admit"] == 0
        assert world.upstream.calls == []
        assert world.redis.events == []
        world.check_books()


def test_a_malformed_body_is_refused_while_it_is_read_ahead() -> None:
    with chat_world() as world:
        status, code, _ = refused_unheld(world, post_chunked(b'5\r\n{"mod\r\nzz\r\n'))
        assert (status, code) == (400, "bad_request")


def test_a_redis_that_went_while_the_body_was_read_is_not_ready() -> None:
    with chat_world() as world:
        client = world.client()
        client.say(post(SMALL)[:-5])
        world.settle_down()
        assert world.redis.line is not None
        world.redis.line.lose()
        world.loop.turn(3)
        client.say(post(SMALL)[-5:])
        world.loop.turn(3)
        assert refusal(client)[:2] == (503, "not_ready")
        assert world.upstream.calls == []


def test_a_request_that_is_asked_about_twice_is_held_for_once_and_goes_on_whole() -> None:
    with chat_world() as world:
        run = world.redis.run
        answers: list[Any] = [hiredis.ReplyError("NOSCRIPT No matching script. Please use EVAL.")]

        def reply(command: list[bytes]) -> Any:
            if world.redis.name_of(command) == "admit" and answers:
                return answers.pop()
            return run(command)

        world.redis.replies = reply
        assert passed(world, post(LONG)) == LONG
        assert (held(world), len(world.redis.admitted)) == (107, 1)


@pytest.mark.parametrize("ahead", [1_024, EARLY_BYTES_MAX, 200_000])
def test_a_large_body_of_a_token_not_seen_before_is_read_ahead_too(ahead: int) -> None:
    """Its first bytes wait until the token is recognised; then the client must be read on."""
    body = chat(max_tokens=7, text="x" * 150_000)
    with metered_world(replace(CHAT, read_ahead_bytes=ahead), knows_caller=False) as world:
        world.is_prompt = False
        client = world.client()
        request = post(body)
        for at in range(0, len(request), 40_000):
            client.say(request[at : at + 40_000])
        world.turn(3)
        assert client.is_paused
        world.is_prompt = True
        world.settle_down()
        (read,) = world.upstream.all_requests
        assert (read.body == body, held(world)) == (True, 107)


def test_no_more_of_a_body_is_kept_than_may_be_read_ahead() -> None:
    with chat_world(replace(CHAT, read_ahead_bytes=100_000)) as world:
        world.is_prompt = False
        client = world.client()
        request = post(chat(text="x" * 900_000))
        for at in range(0, len(request), 20_000):
            client.say(request[at : at + 20_000])
        world.turn(3)
        assert client.is_paused
        taken = len(request) - sum(map(len, client.unread))
        assert 100_000 <= taken <= 100_000 + 2 * 20_000
        world.is_prompt = True
        world.settle_down()
        assert len(world.upstream.all_requests) == 1
