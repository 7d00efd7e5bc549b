"""What the requests of a worker share: a new route table, who is connected, what is counted, and the end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.contract.money import Microcredits
from gateway.http1.client import ClientConnection
from gateway.http1.client_end import ClientEnd
from gateway.json_pointer import parse_pointer
from gateway.pricing import Estimate, Price, Rate, RateTable
from gateway.proxy import Lane, group_key, pseudonym
from gateway.redis_pipe import bulk
from gateway.refusals import Reason
from gateway.routing import Ejection, HealthCheck, Route, Timeouts, Upstream, UpstreamTls
from gateway.tls import TlsFilesError
from tests.certificates import make_authority, write_file
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, PEPPER, ROUTE, World, get

OTHER = Route("git", b"/git/", (Upstream("http", "git.example", 80),))


def asks(world: World, path: bytes = b"/x") -> Line:
    client = world.client()
    client.say(get(path))
    world.settle_down()
    return client


def status(client: Line) -> int:
    return int(client.sent[9:12] or 0)


# -- another route table


def test_a_new_table_holds_from_the_next_request_on() -> None:
    with World() as world:
        client = world.client()
        client.say(get(b"/git/x"))
        world.settle_down()
        world.use_routes(ROUTE, OTHER)
        client.say(get(b"/git/x"))
        world.settle_down()
        assert [len(world.upstream.requests_at(host)) for host in ("up.example", "git.example")] == [1, 1]
        world.use_routes(OTHER)
        client.say(get(b"/x"))
        world.settle_down()
        assert bytes(client.sent).rpartition(b"HTTP/1.1 ")[2].startswith(b"404 ")
        world.check_books()


def test_the_same_head_is_routed_anew_and_charged_by_the_new_table() -> None:
    with World() as world:
        client = world.client()
        for price in (700, 900):
            route = replace(ROUTE, hold=Microcredits(price), price=Price(Microcredits(price)))
            world.use_routes(route)
            for _ in range(2):
                client.say(get())
                world.settle_down()
        assert list(world.redis.costs.values())[-4:] == [700, 700, 900, 900]


def test_connections_to_targets_that_stay_are_kept_and_those_to_others_are_not() -> None:
    with World((ROUTE, OTHER)) as world:
        asks(world, b"/x")
        asks(world, b"/git/x")
        kept, gone = world.upstream.lines
        assert not kept.is_lost
        cheaper = replace(ROUTE, price=Price(Microcredits(1)), path=b"/v1/", errors="openai")
        world.use_routes(cheaper)
        world.settle_down()
        assert not kept.is_lost
        assert gone.is_lost
        assert status(asks(world, b"/v1/x")) == 200
        assert len(world.upstream.lines) == 2, "the kept connection was used"


CHANGES = {
    "another name": replace(ROUTE, name="other"),
    "another target": replace(ROUTE, upstreams=(Upstream("http", "up.example", 81),)),
    "one target more": replace(ROUTE, upstreams=(*ROUTE.upstreams, Upstream("http", "b.example", 80))),
    "another authority": replace(ROUTE, tls=UpstreamTls(verify=False)),
    "another ejection": replace(ROUTE, ejection=Ejection(after_failures=1)),
    "health checks": replace(ROUTE, health=HealthCheck(b"/healthz")),
    "another time to connect": replace(ROUTE, timeouts=replace(ROUTE.timeouts, connect_s=1.0)),
}
SAME = {
    "another price": replace(ROUTE, price=Price(Microcredits(1)), hold=Microcredits(5)),
    "another path": replace(ROUTE, path=b"/v1/", strip_path=True, raw_path=True),
    "other words": replace(
        ROUTE, host=b"a", methods=frozenset((b"GET",)), errors="plain", quota_status=429, upgrade=False,
        client_certificate=True, timeouts=Timeouts(ROUTE.timeouts.connect_s, 1.0, 1.0, 1.0, 1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_concerns_the_targets_makes_a_route_another_one(what: str) -> None:
    assert group_key(CHANGES[what]) != group_key(ROUTE)


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_concern_the_targets_leaves_their_connections_alone(what: str) -> None:
    assert group_key(SAME[what]) == group_key(ROUTE)


def test_targets_are_others_when_the_files_that_prove_them_have_changed(tmp_path: Path) -> None:
    ca = write_file(tmp_path / "ca.pem", make_authority("one").pem)
    secure = replace(ROUTE, upstreams=(Upstream("https", "up.example", 443),), tls=UpstreamTls(ca=str(ca)))
    with World((secure,)) as world:
        asks(world)
        (line,) = world.upstream.lines
        world.use_routes(replace(secure, hold=Microcredits(5)))
        world.settle_down()
        assert [line.is_lost for line in world.upstream.lines] == [False]
        write_file(ca, make_authority("two").pem)
        world.use_routes(secure)
        world.settle_down()
        assert line.is_lost
        assert status(asks(world)) == 200


def test_a_table_whose_files_cannot_be_used_leaves_the_old_one_in_force(tmp_path: Path) -> None:
    with World() as world:
        asks(world)
        (line,) = world.upstream.lines
        missing = UpstreamTls(ca=str(tmp_path / "missing.pem"))
        bad = Route("secure", b"/secure/", (Upstream("https", "a.example", 443),), tls=missing)
        for routes in ((OTHER, bad), (bad, OTHER)):
            with pytest.raises(TlsFilesError):
                world.use_routes(*routes)
        world.settle_down()
        assert not line.is_lost
        assert [route.name for route in world.proxy.routes.routes] == list(world.proxy.lanes) == ["models"]
        assert status(asks(world)) == 200
        assert len(world.upstream.lines) == 1


def test_what_is_under_way_when_the_table_changes_ends_by_the_old_one() -> None:
    with World() as world:
        world.upstream.answers = None
        client = asks(world)
        world.use_routes(OTHER)
        world.settle_down()
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert status(client) == 200
        assert list(world.redis.costs.values())[-1] == 700
        world.check_books()


def test_who_waits_for_a_target_that_goes_still_gets_a_connection_to_it() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.answers = None
        first, second = asks(world), asks(world)
        world.use_routes(OTHER)
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert world.upstream.lines[0].is_lost
        world.upstream.lines[1].say(ANSWER)
        world.settle_down()
        assert [status(first), status(second)] == [200, 200]
        world.check_books()


# -- what a worker calls itself and its requests


def test_request_ids_are_unique_and_of_one_length() -> None:
    with World() as world, World() as other:
        ids = [proxy.next_request_id() for proxy in (world.proxy, other.proxy) for _ in range(1000)]
        assert len(set(ids)) == 2000
        assert all(re.fullmatch(rb"[0-9a-f]{24}", made) for made in ids)


def test_a_worker_calls_itself_what_its_whole_installation_does() -> None:
    with World() as world:
        assert world.proxy.pseudonym == pseudonym(PEPPER)
        assert PEPPER.hex().encode() not in world.proxy.pseudonym


# -- what is prepared for a route


def lane(route: Route) -> Lane:
    with World((route,)) as world:
        return world.proxy.lanes[route.name]


TOKENS: dict[str, Rate] = {"tokens": Rate(Microcredits(5))}
MODEL, MOST = parse_pointer("/model"), parse_pointer("/max_tokens")


def test_a_hold_that_no_request_changes_is_prepared_once() -> None:
    prepared = lane(ROUTE)
    assert (prepared.amount, prepared.ahead, prepared.meters) == (bulk(ROUTE.hold), None, None)
    assert not prepared.is_fixed


def test_a_hold_by_the_announced_length_is_worked_out_for_each_request_without_reading_it() -> None:
    estimate = Estimate(ROUTE.hold, per_kib=Microcredits(3))
    prepared = lane(replace(ROUTE, estimate=estimate))
    assert (prepared.amount, prepared.ahead) == (None, None)


def test_what_is_looked_for_in_a_body_is_each_pointer_once() -> None:
    table = RateTable({"small": TOKENS}, None, request=(MODEL, MOST))
    estimate = Estimate(json=(MOST,), unit="tokens", missing=9)
    prepared = lane(replace(ROUTE, estimate=estimate, price=Price(table=table)))
    assert prepared.amount is None
    assert prepared.ahead is not None
    assert sorted(map(str, prepared.ahead.pointers)) == ["/max_tokens", "/model"]
    assert prepared.rates == {}, "nothing has a rate before the model is known"


def test_rates_by_the_answer_are_those_of_what_is_not_in_the_table_until_it_speaks() -> None:
    table = RateTable({"small": {"tokens": Rate(Microcredits(1))}}, TOKENS, answer=(MODEL,))
    prepared = lane(replace(ROUTE, price=Price(table=table)))
    assert (prepared.rates, prepared.ahead) == (TOKENS, None)
    assert prepared.amount == bulk(ROUTE.hold)


# -- who is connected


def test_a_connection_is_counted_from_its_beginning_to_its_end() -> None:
    with World() as world:
        assert world.proxy.snapshot()["gauges"]["client_connections"] == 0
        clients = [world.client() for _ in range(3)]
        assert world.proxy.snapshot()["gauges"]["client_connections"] == 3
        clients[0].lose()
        world.settle_down()
        assert world.proxy.snapshot()["gauges"]["client_connections"] == 2


def test_a_connection_that_was_never_taken_in_is_not_let_go() -> None:
    with World() as world:
        client = ClientConnection(world.proxy, "10.0.0.1")
        world.proxy.take_in(client)
        stranger = ClientConnection(world.proxy, "10.0.0.1")
        world.proxy.let_go(stranger)
        assert world.proxy._clients_from == {"10.0.0.1": 1}
        for _ in range(2):
            world.proxy.let_go(client)
        assert world.proxy._clients_from == {}


def test_a_connection_too_many_is_counted_and_said_why() -> None:
    with World(connections_max=3, connections_per_address_max=2) as world:
        proxy = world.proxy
        clients = [ClientConnection(proxy, peer) for peer in ("a", "a", "a", "a", "b", "c")]
        refusals = [proxy.take_in(client) for client in clients]
        reasons = [refusal.reason if refusal else None for refusal in refusals]
        too_many = Reason.TOO_MANY_CONNECTIONS
        assert reasons == [None, None, too_many, too_many, None, Reason.OVERLOADED]
        events = proxy.metrics.events
        assert (events["address_connections_refused"], events["connections_refused"]) == (2, 1)
        assert (proxy.clients_from("a"), proxy.clients_from("b"), proxy.clients_from("c")) == (2, 1, 0)
        assert proxy.turned_away == {clients[2], clients[3], clients[5]}, (
            "who cannot stay takes nobody's place"
        )
        for client in clients:
            proxy.let_go(client)
        assert proxy.clients == proxy.turned_away == set()


def test_one_connection_that_fails_in_a_tick_leaves_the_others_their_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with World(idle_timeout_s=1.0, head_timeout_s=1.0) as world:
        line, quiet = world.client(), world.client()
        broken = next(client for client in world.proxy.clients if client._transport is line)
        monkeypatch.setattr(type(broken), "on_tick", _failing_for(broken, type(broken).on_tick))
        world.advance(2.0)
        assert quiet.is_lost
        assert world.loop.failures
        world.loop.failures.clear()


def _failing_for(broken: ClientEnd, tick: Callable[[ClientEnd, float], None]) -> Any:
    def on_tick(client: ClientEnd, now: float) -> None:
        if client is broken:
            raise RuntimeError("raised by the test")
        tick(client, now)

    return on_tick


# -- what is counted


def test_a_snapshot_says_what_is_under_way_and_how_the_targets_are() -> None:
    with World(upstream_connections_max=1) as world:
        world.upstream.answers = None
        clients = [asks(world) for _ in range(3)]
        snapshot = world.proxy.snapshot()
        gauges = snapshot["gauges"]
        assert {name: gauges[name] for name in ("in_flight", "upstream_connections", "upstream_waiting")} == {
            "in_flight": 3, "upstream_connections": 1, "upstream_waiting": 2,
        }  # fmt: skip
        assert (gauges["ready"], gauges["workers"], gauges["known_callers"]) == (1, 1, 1)
        assert snapshot["targets"] == [["models", "up.example", 1, 1, 3]]
        assert orjson.loads(orjson.dumps(snapshot)) == snapshot
        world.proxy.is_draining = True
        gauges = world.proxy.snapshot()["gauges"]
        assert (gauges["ready"], gauges["workers"]) == (0, 0)
        for client in clients:
            client.lose()
        world.settle_down()


# -- the end


def test_the_end_waits_for_what_is_to_be_settled_and_closes_everything() -> None:
    with World() as world:
        asks(world)
        world.is_prompt = False
        client = world.client()
        client.say(get())
        world.turn(3)
        world.redis.answer()
        world.turn(3)
        world.upstream.lines[0].say(ANSWER)
        world.turn(3)
        closing = world.loop.create_task(world.proxy.close())
        world.turn(3)
        assert not closing.done()
        world.is_prompt = True
        world.advance(0.3)
        assert closing.done()
        assert world.redis.holds == set()
        assert all(line.is_lost for line in world.upstream.lines)
        assert world.redis.line is not None
        assert world.redis.line.is_lost


def test_the_end_waits_for_the_counts_of_refusals_too() -> None:
    with World() as world:
        world.redis.refusal = [b"budget", b"key", 5, 5, 0, 0]
        assert status(asks(world)) == 402
        world.is_prompt = False
        closing = world.loop.create_task(world.proxy.close())
        world.turn(3)
        assert not closing.done()
        assert world.redis.waiting == ["xadd"]
        world.is_prompt = True
        world.advance(0.3)
        assert closing.done()
        assert len(world.redis.events) == 1


def test_the_end_does_not_wait_for_a_redis_that_is_away() -> None:
    with World() as world:
        world.upstream.answers = None
        asks(world)
        assert world.redis.line is not None
        world.is_prompt = False
        world.redis.line.lose()
        world.turn(3)
        world.upstream.lines[0].say(ANSWER)
        world.turn(3)
        assert world.proxy.ledger.unsettled == 1
        closing = world.loop.create_task(world.proxy.close(settle_s=3.0))
        world.advance(2.5)
        assert not closing.done()
        world.advance(1.0)
        assert closing.done()
