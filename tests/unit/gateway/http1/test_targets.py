"""Several targets of one route: each request goes to one that can take it, and a target that fails is left out for a while."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from gateway.http1.targets import TargetRow
from gateway.routing import Ejection, HealthCheck, Route, Timeouts, Upstream
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, World, get, post

HOSTS = ("a.example", "b.example", "c.example")
EJECTION = Ejection(after_failures=3, for_s=1.0, for_max_s=10.0, slow_start_s=0.0)
REFUSED = ConnectionRefusedError("refused by the test")


def route(*hosts: str, ejection: Ejection = EJECTION, **words: Any) -> Route:
    upstreams = tuple(Upstream("http", host, 80) for host in hosts or HOSTS)
    return Route("models", b"/", upstreams, timeouts=Timeouts(2.0, 5.0, 5.0), ejection=ejection, **words)


def asks(world: World, request: bytes = get()) -> Line:
    """A client that asks for something, and is answered if everybody is prompt."""
    client = world.client()
    client.say(request)
    world.settle_down()
    return client


def status(client: Line) -> int:
    return int(client.sent[9:12] or 0)


def counts(world: World) -> Counter[str]:
    """How many requests have arrived at each host."""
    return Counter({host: len(world.upstream.requests_at(host)) for host in HOSTS})


def rows(world: World) -> list[TargetRow]:
    return world.proxy.lanes["models"].targets.rows()


def up(world: World) -> list[int]:
    return [row[2] for row in rows(world)]


def refusal(client: Line) -> dict[str, Any]:
    body = orjson.loads(bytes(client.sent).partition(b"\r\n\r\n")[2])
    assert isinstance(body, dict)
    return body


# -- which one is taken


def test_requests_that_come_one_by_one_are_spread_evenly() -> None:
    with World((route(),)) as world:
        for _ in range(9):
            assert status(asks(world)) == 200
        assert counts(world) == dict.fromkeys(HOSTS, 3)


def test_a_request_goes_to_the_target_with_the_fewest_under_way() -> None:
    with World((route(),)) as world:
        world.upstream.answers = None
        clients = [asks(world) for _ in range(3)]
        assert counts(world) == dict.fromkeys(HOSTS, 1)
        world.upstream.lines_at("b.example")[-1].say(ANSWER)
        world.settle_down()
        for _ in range(4):
            clients.append(asks(world))
            world.upstream.lines_at("b.example")[-1].say(ANSWER)
            world.settle_down()
        assert counts(world) == {"a.example": 1, "b.example": 5, "c.example": 1}
        for client in clients:
            client.lose()
        world.settle_down()
        world.check_books()


def test_requests_that_wait_for_a_connection_count_as_well() -> None:
    with World((route(),), upstream_connections_max=1, upstream_waiting_max=100) as world:
        world.upstream.answers = None
        clients = [asks(world) for _ in range(30)]
        assert [(row[3], row[4]) for row in rows(world)] == [(1, 10)] * 3
        for client in clients:
            client.lose()
        world.settle_down()
        assert [(row[3], row[4]) for row in rows(world)] == [(0, 0)] * 3
        world.check_books()


def test_each_target_is_named_as_the_table_names_it() -> None:
    targets = (Upstream("http", "a.example", 8080), Upstream("https", "::1", 443, b"/x"))
    with World((Route("models", b"/", targets),)) as world:
        assert [row[:3] for row in rows(world)] == [("models", "a.example:8080", 1), ("models", "[::1]", 1)]
        asks(world)
        asks(world)
        sent = {(read.target, dict(read.fields)[b"Host"]) for read in world.upstream.all_requests}
        assert sent == {(b"/x", b"a.example:8080"), (b"/x/x", b"[::1]")}


# -- what cannot be connected to


@pytest.mark.parametrize("request_", [get(), post(b"hello")])
def test_a_request_whose_target_cannot_be_connected_to_goes_to_another(request_: bytes) -> None:
    with World((route(),)) as world:
        world.upstream.refuses_at = {"a.example": REFUSED, "b.example": OSError("no route to host")}
        for _ in range(3):
            assert status(asks(world, request_)) == 200
        assert counts(world) == {"a.example": 0, "b.example": 0, "c.example": 3}
        bodies = {read.body for read in world.upstream.all_requests}
        assert bodies == {request_.partition(b"\r\n\r\n")[2]}
        assert (
            world.proxy.metrics.events["connect_retried"]
            == world.proxy.metrics.events["upstream_unreachable"]
            > 0
        )
        world.check_books()


def test_a_target_that_does_not_pick_up_is_given_up_in_time_for_another() -> None:
    with World((route("a.example", "b.example"),)) as world:
        world.upstream.silent = {"a.example"}
        clients = [asks(world) for _ in range(2)]
        assert sorted(map(status, clients)) == [0, 200]
        world.advance(2.2)
        assert list(map(status, clients)) == [200, 200]
        assert world.proxy.metrics.events["upstream_timeout"] == 1
        world.check_books()


def test_each_target_is_tried_once_and_the_last_one_that_failed_is_named() -> None:
    with World((route(),)) as world:
        world.upstream.refuses = REFUSED
        client = asks(world)
        assert status(client) == 502
        assert sorted(world.upstream.calls) == list(HOSTS)
        said = refusal(client)
        position = HOSTS.index(world.upstream.calls[-1]) + 1
        assert (said["code"], said["route"], said["phase"], said["target"]) == (
            "upstream_unreachable", "models", "connect", position,
        )  # fmt: skip
        world.check_books()


def test_a_client_that_goes_while_its_request_is_offered_to_another_target_is_not_charged() -> None:
    with World((route("a.example", "b.example"),)) as world:
        world.upstream.refuses_at = {"a.example": REFUSED}
        world.upstream.silent = {"b.example"}
        client = asks(world)
        client.lose()
        world.settle_down()
        world.upstream.silent = set()
        world.settle_down()
        assert counts(world).total() == 0
        assert set(world.redis.costs.values()) <= {0}
        world.check_books()


def test_a_request_on_a_stale_connection_is_sent_again_to_whichever_target_is_least_busy() -> None:
    with World((route("a.example", "b.example"),)) as world:
        for _ in range(2):
            asks(world)
        world.upstream.answers = None
        client = asks(world)
        (line,) = [line for line in world.upstream.lines if line.sent.count(b"GET ") == 2]
        world.upstream.answers = lambda _: ANSWER
        line.lose()
        world.settle_down()
        assert status(client) == 200
        assert up(world) == [1, 1], "a kept connection may be closed by any server"
        world.check_books()


# -- ejection


def test_a_target_that_fails_several_times_in_a_row_is_left_out_and_comes_back() -> None:
    with World((route("a.example", "b.example"),)) as world, capture_logs() as lines:
        world.upstream.refuses_at = {"a.example": REFUSED}
        for _ in range(6):
            assert status(asks(world)) == 200
        calls = world.upstream.calls.count("a.example")
        assert calls == 3
        assert up(world) == [0, 1]
        assert world.proxy.metrics.events["target_ejected"] == 1
        (said,) = [line for line in lines if line["event"] == "target_ejected"]
        assert (said["route"], said["target"], said["why"], said["for_s"]) == (
            "models", "a.example", "unreachable", 1.0,
        )  # fmt: skip
        for _ in range(8):
            world.advance(0.1)
            assert status(asks(world)) == 200
        assert world.upstream.calls.count("a.example") == calls, "nobody waits for a target that is out"
        world.upstream.refuses_at.clear()
        world.advance(0.2)
        assert up(world) == [1, 1]
        for _ in range(2):
            asks(world)
        assert counts(world)["a.example"] > 0


def test_a_target_that_goes_on_failing_is_asked_ever_more_rarely() -> None:
    with World((route("a.example", "b.example"),)) as world:
        world.upstream.refuses_at = {"a.example": REFUSED}
        for _ in range(3):
            asks(world)
            asks(world)
        calls = []
        for _ in range(300):
            world.advance(0.1)
            before = len(world.upstream.calls)
            assert status(asks(world)) == 200
            if "a.example" in world.upstream.calls[before:]:
                calls.append(world.loop.now)
        assert [round(later - earlier) for earlier, later in pairwise(calls)] == [2, 4, 8, 10]
        assert world.proxy.metrics.events["target_ejected"] == 1 + len(calls)


def test_where_all_targets_are_out_they_are_tried_all_the_same() -> None:
    with World((route("a.example", "b.example"),)) as world:
        world.upstream.refuses = REFUSED
        for _ in range(6):
            assert status(asks(world)) == 502
        assert up(world) == [0, 0]
        world.upstream.refuses = None
        assert status(asks(world)) == 200
        world.check_books()


def test_a_target_without_others_is_never_left_out() -> None:
    with World((route("a.example"),)) as world:
        world.upstream.refuses = REFUSED
        for _ in range(10):
            assert status(asks(world)) == 502
        assert up(world) == [1]
        assert world.proxy.metrics.events["target_ejected"] == 0
        assert world.upstream.calls == ["a.example"] * 10


def fails(world: World, how: str) -> None:
    """One request, at the target that has just been called, fails in this way or goes well."""
    client = asks(world)
    line = world.upstream.lines[-1]
    if how == "lost":
        line.lose()
    elif how == "closed":
        line.end()
    elif how == "no HTTP":
        line.say(b"SSH-2.0-OpenSSH_9\r\n\r\n")
    elif how == "no answer in time":
        world.advance(5.2, 0.2)
    elif how == "an unknown 101":
        line.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n")
    elif how == "lost within the body":
        line.say(ANSWER[:-1])
        line.lose()
    elif how == "a status of 500":
        line.say(ANSWER.replace(b"200 OK", b"500 Oh"))
    elif how == "a client that goes":
        client.lose()
    world.settle_down()
    if not client.is_closing():
        client.lose()
    world.settle_down()


@pytest.mark.parametrize("how", ["lost", "closed", "no HTTP", "no answer in time"])
def test_these_are_failures_of_the_target(how: str) -> None:
    with World((route("a.example", "b.example", ejection=Ejection(after_failures=1)),)) as world:
        world.upstream.answers = None
        fails(world, how)
        assert sorted(up(world)) == [0, 1]
        world.check_books()


@pytest.mark.parametrize(
    "how", ["an unknown 101", "lost within the body", "a status of 500", "a client that goes"]
)
def test_these_are_not(how: str) -> None:
    with World((route("a.example", "b.example", ejection=Ejection(after_failures=1)),)) as world:
        world.upstream.answers = None
        for _ in range(4):
            fails(world, how)
        assert up(world) == [1, 1]
        world.check_books()


def test_a_target_that_dies_under_load_costs_only_what_was_sent_to_it() -> None:
    with World((route(),)) as world:
        world.upstream.answers = None
        first = [asks(world) for _ in range(9)]
        world.upstream.refuses_at = {"b.example": REFUSED}
        for line in world.upstream.lines_at("b.example"):
            line.lose()
        world.settle_down()
        assert sorted(map(status, first)) == [0] * 6 + [502] * 3
        world.upstream.answers = lambda _: ANSWER
        world.settle_down()
        assert sorted(map(status, first)) == [200] * 6 + [502] * 3
        assert up(world) == [1, 0, 1]
        for _ in range(30):
            world.advance(0.1)
            assert status(asks(world)) == 200
        world.check_books()


def test_a_target_that_is_back_is_not_flooded() -> None:
    slow = Ejection(after_failures=1, for_s=1.0, slow_start_s=10.0)
    with World((route("a.example", "b.example", ejection=slow),)) as world:
        world.upstream.refuses_at = {"a.example": REFUSED}
        for _ in range(2):
            asks(world)
        assert up(world) == [0, 1]
        world.upstream.refuses_at.clear()
        world.advance(1.2)
        world.upstream.forget()
        world.upstream.answers = None
        clients = [asks(world) for _ in range(22)]
        assert counts(world)["a.example"] <= 3
        for client in clients:
            client.lose()
        world.advance(10.0)
        world.upstream.forget()
        clients = [asks(world) for _ in range(20)]
        assert counts(world) == {"a.example": 10, "b.example": 10, "c.example": 0}
        for client in clients:
            client.lose()
        world.settle_down()
        world.check_books()


def test_a_target_that_fails_its_health_checks_is_left_out_for_good_until_it_passes_them() -> None:
    check = HealthCheck(b"/healthz", every_s=0.5, timeout_s=0.4, healthy_after=1, unhealthy_after=1)
    ill = ANSWER.replace(b"200 OK", b"503 Oh")
    with World((route("a.example", "b.example", health=check),)) as world:
        world.upstream.answers_at = {"a.example": lambda read: ill if read.target == b"/healthz" else ANSWER}
        world.advance(1.0)
        assert up(world) == [0, 1]
        world.upstream.answers_at["b.example"] = world.upstream.answers_at["a.example"]
        world.advance(1.0)
        assert up(world) == [0, 0]
        client = asks(world)
        assert (status(client), refusal(client)["code"]) == (503, "upstream_unhealthy")
        world.upstream.answers_at.clear()
        world.advance(1.0)
        assert up(world) == [1, 1]
        assert world.proxy.metrics.events["target_unhealthy"] == 2
        group = world.proxy.lanes["models"].targets
        group.retire()
        group.close()
        calls = len(world.upstream.calls)
        world.advance(2.0)
        assert len(world.upstream.calls) == calls
        world.check_books()


# -- the end of a group


def test_a_route_that_is_gone_keeps_no_idle_connection_and_finishes_what_is_under_way() -> None:
    with World((route("a.example", "b.example"),)) as world:
        asks(world)
        world.upstream.answers = None
        client = asks(world)
        group = world.proxy.lanes["models"].targets
        world.use_routes()
        world.settle_down()
        idle, busy = world.upstream.lines
        assert idle.is_lost
        assert not busy.is_closing()
        busy.say(ANSWER)
        world.settle_down()
        assert status(client) == 200
        assert busy.is_lost, "it is lent to nobody any more"
        assert [row[3] for row in group.rows()] == [0, 0]
        world.check_books()


def test_at_the_end_of_the_process_every_connection_is_closed() -> None:
    with World((route(),)) as world:
        for _ in range(2):
            asks(world)
        world.upstream.silent = set(HOSTS)
        world.upstream.answers = None
        asks(world)
        world.proxy.lanes["models"].targets.close()
        world.settle_down()
        assert all(line.is_lost for line in world.upstream.lines)
        assert [row[3] for row in rows(world)] == [0, 0, 0]
