"""Health checks: a target is asked again and again, and requests go only where the answers are good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from gateway.routing import Ejection, HealthCheck, Route, Timeouts, Upstream
from tests.unit.gateway.http1.referee import Read
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, World, get

HOSTS = ("a.example", "b.example")
CHECK = HealthCheck(b"/healthz", every_s=1.0, timeout_s=0.5, healthy_after=2, unhealthy_after=2)
ROUTE = Route(
    "models", b"/", tuple(Upstream("http", host, 80) for host in HOSTS), timeouts=Timeouts(2.0, 5.0, 5.0),
    ejection=Ejection(after_failures=100, slow_start_s=0.0), health=CHECK,
)  # fmt: skip
ILL = ANSWER.replace(b"200 OK", b"503 Oh")


def is_check(read: Read) -> bool:
    return read.target.endswith(b"/healthz")


def checks_at(world: World, host: str) -> list[Read]:
    return [read for read in world.upstream.requests_at(host) if is_check(read)]


def answering(checks: bytes) -> Callable[[Read], bytes]:
    """A host that answers its health checks with this, and all else well."""
    return lambda read: checks if is_check(read) else ANSWER


def asks(world: World) -> Line:
    client = world.client()
    client.say(get())
    world.settle_down()
    return client


def status(client: Line) -> int:
    return int(client.sent[9:12] or 0)


def up(world: World) -> list[int]:
    return [row[2] for row in world.proxy.lanes["models"].targets.rows()]


def world_of(route: Route = ROUTE, **settings: Any) -> World:
    return World((route,), **settings)


# -- the question


def test_every_target_is_asked_at_once_and_then_as_often_as_the_route_says() -> None:
    with world_of() as world:
        world.upstream.forget()
        world.advance(10.05)
        assert [len(checks_at(world, host)) for host in HOSTS] == [10, 10]


def test_a_check_is_a_plain_get_on_a_connection_of_its_own() -> None:
    targets = (Upstream("http", "a.example", 8080, b"/base"), Upstream("http", "b.example", 80))
    with world_of(replace(ROUTE, upstreams=targets)) as world:
        world.upstream.forget()
        world.advance(1.2)
        (line,) = world.upstream.lines_at("a.example")
        assert bytes(line.sent) == (
            b"GET /base/healthz HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: tollkeeper-health\r\nConnection: close\r\n\r\n"
        )
        assert line.is_lost, "what a check was asked on is lent to no request"
        assert world.redis.commands["admit"] == 0


def test_a_check_asks_for_a_new_connection_even_if_there_is_a_kept_one() -> None:
    with world_of() as world:
        world.upstream.forget()
        asks(world)
        asks(world)
        kept = list(world.upstream.lines)
        world.advance(1.5)
        assert all(not line.is_lost and line.sent.count(b"healthz") == 0 for line in kept)
        assert [len(checks_at(world, host)) for host in HOSTS] == [1, 1]


def test_one_question_is_asked_at_a_time() -> None:
    slow = replace(CHECK, every_s=1.0, timeout_s=10.0)
    with world_of(replace(ROUTE, health=slow)) as world:
        world.upstream.forget()
        world.upstream.answers = None
        world.advance(5.0)
        assert [len(checks_at(world, host)) for host in HOSTS] == [1, 1]
        world.upstream.answers = lambda _: ANSWER
        world.advance(0.3)
        assert [len(checks_at(world, host)) for host in HOSTS] == [2, 2]


# -- the answer


@pytest.mark.parametrize("code", [200, 204, 299, 302, 399])
def test_an_answer_of_200_to_399_is_a_good_one(code: int) -> None:
    with world_of() as world:
        world.upstream.answers_at["a.example"] = answering(ANSWER.replace(b"200 OK", b"%d Fine" % code))
        world.advance(10.0)
        assert up(world) == [1, 1]
        assert world.proxy.metrics.events["target_unhealthy"] == 0


BAD_ANSWERS = {
    "400": ANSWER.replace(b"200 OK", b"400 Oh"),
    "500": ANSWER.replace(b"200 OK", b"500 Oh"),
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n\r\n",
    "half an answer": ANSWER[:-1],
    "an interim answer alone": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "a switch of protocols": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_a_target_without_a_good_answer_gets_no_requests(what: str) -> None:
    with world_of() as world, capture_logs() as lines:
        world.upstream.answers_at["a.example"] = answering(BAD_ANSWERS[what])
        world.advance(3.5)
        assert up(world) == [0, 1]
        for _ in range(6):
            assert status(asks(world)) == 200
        assert len(world.upstream.requests_at("b.example")) - len(checks_at(world, "b.example")) == 6
        assert world.proxy.metrics.events["target_unhealthy"] == 1
        (said,) = [line for line in lines if line["event"] == "target_unhealthy"]
        assert (said["route"], said["target"]) == ("models", "a.example")
        assert said["why"]
        world.check_books()


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_target_that_cannot_be_connected_to_gets_no_requests(how: str) -> None:
    with world_of() as world:
        if how == "refused":
            world.upstream.refuses_at["a.example"] = ConnectionRefusedError("refused by the test")
        else:
            world.upstream.silent.add("a.example")
        world.advance(3.5)
        assert up(world) == [0, 1]


def test_an_interim_answer_and_a_long_body_come_before_the_end_of_a_good_answer() -> None:
    long = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"3\r\nabc\r\n" * 50
    )
    with world_of() as world:
        world.upstream.answers_at["a.example"] = answering(long + b"0\r\n\r\n")
        world.advance(5.0)
        assert up(world) == [1, 1]


def test_a_single_bad_answer_changes_nothing_and_neither_does_a_single_good_one() -> None:
    with world_of() as world:
        seen = 0

        def alternating(read: Read) -> bytes:
            nonlocal seen
            seen += is_check(read)
            return ILL if is_check(read) and seen % 2 else ANSWER

        world.upstream.answers_at["a.example"] = alternating
        world.advance(10.0)
        assert seen >= 9
        assert up(world) == [1, 1]
        world.upstream.answers_at["a.example"] = answering(ILL)
        world.advance(3.0)
        assert up(world) == [0, 1]
        world.upstream.answers_at["a.example"] = alternating
        world.advance(10.0)
        assert up(world) == [0, 1]


def test_a_target_that_is_well_again_gets_requests_again() -> None:
    with world_of() as world, capture_logs() as lines:
        world.upstream.answers_at["a.example"] = answering(ILL)
        world.advance(3.5)
        assert up(world) == [0, 1]
        world.upstream.answers_at.clear()
        world.advance(1.0)
        assert up(world) == [0, 1], "one good answer is not enough"
        world.advance(1.5)
        assert up(world) == [1, 1]
        world.upstream.forget()
        for _ in range(4):
            asks(world)
        requests = [read for read in world.upstream.requests_at("a.example") if not is_check(read)]
        assert len(requests) == 2
        assert [line["target"] for line in lines if line["event"] == "target_well"] == ["a.example"]


def test_where_no_target_is_well_the_client_is_told_so() -> None:
    with world_of() as world:
        world.upstream.answers = answering(ILL)
        world.advance(3.5)
        assert up(world) == [0, 0]
        client = asks(world)
        assert status(client) == 503
        assert b"\r\nRetry-After: 1\r\n" in client.sent
        said = orjson.loads(bytes(client.sent).partition(b"\r\n\r\n")[2])
        assert (said["code"], said["route"], said["phase"]) == ("upstream_unhealthy", "models", "connect")
        assert world.proxy.metrics.events["upstream_unhealthy"] == 1
        world.upstream.answers = lambda _: ANSWER
        world.advance(2.5)
        assert status(asks(world)) == 200
        world.check_books()


def test_where_the_only_target_is_ill_the_client_is_told_so() -> None:
    with world_of(replace(ROUTE, upstreams=ROUTE.upstreams[:1])) as world:
        world.upstream.answers = answering(ILL)
        world.advance(3.5)
        assert status(asks(world)) == 503
        world.check_books()


def test_where_the_one_that_is_well_cannot_be_connected_to_the_client_is_told_that() -> None:
    """Not that none passes its health checks: one does."""
    with world_of() as world:
        world.upstream.answers_at["a.example"] = answering(ILL)
        world.advance(3.5)
        assert up(world) == [0, 1]
        world.upstream.refuses_at["b.example"] = ConnectionRefusedError("refused by the test")
        client = asks(world)
        assert status(client) == 502
        said = orjson.loads(bytes(client.sent).partition(b"\r\n\r\n")[2])
        assert (said["code"], said["phase"], said["target"]) == ("upstream_unreachable", "connect", 2)
        world.check_books()


# -- what says nothing of a target


@pytest.mark.parametrize("waiting_max", [0, 100])
def test_a_target_whose_connections_are_all_lent_is_not_ill_for_that(waiting_max: int) -> None:
    with world_of(upstream_connections_max=1, upstream_waiting_max=waiting_max) as world:
        world.advance(0.7)
        world.upstream.answers = lambda read: ANSWER if is_check(read) else b""
        clients = [asks(world) for _ in range(2)]
        lent = [world.upstream.lines_at(host)[-1] for host in HOSTS]
        for line in lent:
            line.say(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
        for _ in range(8):
            world.advance(1.0)
            for line in lent:
                line.say(b"x")
        assert up(world) == [1, 1]
        for client in clients:
            client.lose()
        world.settle_down()
        world.check_books()


def test_a_target_whose_connections_are_all_idle_is_not_ill_for_that() -> None:
    with world_of(upstream_connections_max=1) as world:
        world.advance(0.7)
        for _ in range(2):
            assert status(asks(world)) == 200
        world.advance(5.0)
        assert up(world) == [1, 1]
        for _ in range(2):
            assert status(asks(world)) == 200


def test_a_connection_that_comes_too_late_for_its_question_is_not_mixed_up_with_the_next() -> None:
    check = replace(CHECK, every_s=0.5, timeout_s=0.3)
    with world_of(replace(ROUTE, upstreams=ROUTE.upstreams[:1], health=check)) as world:
        world.upstream.silent = {"a.example"}
        world.upstream.answers = None
        world.advance(1.1)  # the first question was given up, and another connection is asked for
        assert len(world.upstream.calls) == 2
        world.upstream.silent = set()
        world.settle_down()
        asked = [line for line in world.upstream.lines if line.sent and not line.is_lost]
        assert len(asked) == 1, "one question at a time"
        world.upstream.answers = lambda _: ANSWER
        world.settle_down()
        idle = [line for line in world.upstream.lines if not line.is_lost]
        assert not any(b"healthz" in line.sent for line in idle)
        world.advance(5.0)
        assert up(world) == [1]
        assert world.loop.failures == []


# -- the end


def test_a_route_that_is_gone_is_not_asked_about_any_more() -> None:
    with world_of() as world:
        world.upstream.forget()
        world.upstream.answers = None
        world.advance(1.2)
        assert [len(checks_at(world, host)) for host in HOSTS] == [1, 1]
        world.use_routes()
        world.settle_down()
        assert all(line.is_lost for line in world.upstream.lines), "nobody waits for the answer"
        calls = len(world.upstream.calls)
        world.advance(5.0)
        assert len(world.upstream.calls) == calls
        assert world.loop.failures == []


def test_a_connection_that_comes_after_the_end_is_closed() -> None:
    with world_of() as world:
        world.upstream.silent = set(HOSTS)
        world.advance(1.2)
        world.upstream.forget()
        world.use_routes()
        world.upstream.silent = set()
        world.settle_down()
        assert all(line.is_lost and not line.sent for line in world.upstream.lines)


def test_a_refusal_that_comes_after_the_end_says_nothing() -> None:
    with world_of() as world:
        group = world.proxy.lanes["models"].targets
        world.upstream.silent = set(HOSTS)
        world.advance(1.2)
        world.use_routes()
        world.upstream.refuses, world.upstream.silent = ConnectionRefusedError("refused by the test"), set()
        world.settle_down()
        group.retire()
        assert [row[2] for row in group.rows()] == [1, 1]
        assert world.loop.failures == []


def test_at_the_end_of_the_process_nobody_is_asked_any_more() -> None:
    with world_of() as world:
        world.upstream.answers = None
        world.advance(1.2)
        world.proxy.lanes["models"].targets.close()
        world.settle_down()
        calls = len(world.upstream.calls)
        world.advance(3.0)
        assert len(world.upstream.calls) == calls
        assert all(line.is_lost for line in world.upstream.lines)


def test_checks_that_go_well_do_not_excuse_requests_that_do_not() -> None:
    ejecting = replace(ROUTE, ejection=Ejection(after_failures=3, for_s=60.0, for_max_s=60.0))
    with world_of(ejecting) as world:
        world.upstream.answers_at = {
            "a.example": lambda read: ANSWER if is_check(read) else b"not HTTP\r\n\r\n"
        }
        for _ in range(12):
            asks(world)
            world.advance(1.1)  # a check goes well between any two
        assert up(world) == [0, 1]
