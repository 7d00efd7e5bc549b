"""Who is let in and for how many requests, what a connection says of itself, and that none is forgotten."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from gateway.http1.client import ClientConnection
from gateway.http1.client_end import LINGER_S, QUIET_S
from gateway.http1.head import parse_request
from gateway.proxy import CLIENTS_A_SLICE, SLICE_S, SLICES_MAX, TICK_S, Proxy
from gateway.server import drain
from tests.unit.gateway.http1.clients import NO_TOKEN, asks, client_from, statuses, tls_client
from tests.unit.gateway.world import ANSWER, AUTHORIZATION, HOST, ROUTE, TOKEN, World, get

# -- limits


def test_beyond_the_limit_of_connections_a_client_is_told_so_and_left() -> None:
    with World(connections_max=3) as world:
        clients = [client_from(world, f"10.0.0.{number}") for number in range(3)]
        refused = client_from(world, "10.0.0.9")
        assert statuses(refused) == [503]
        assert b'"code":"overloaded"' in refused.sent
        assert b"\r\nConnection: close\r\n" in refused.sent
        asks(world, refused)
        assert statuses(refused) == [503]
        assert world.proxy.metrics.events["connections_refused"] == 1
        assert world.proxy.metrics.refusals[("", "overloaded")] == 1
        for client in clients:
            asks(world, client)
            assert statuses(client) == [200]
        world.advance(LINGER_S + 0.3)
        assert refused.is_lost
        clients[0].lose()
        world.settle_down()
        late = client_from(world, "10.0.0.9")
        asks(world, late)
        assert statuses(late) == [200]


def test_one_address_has_a_share_of_the_connections_and_leaves_the_rest_to_others() -> None:
    with World(connections_per_address_max=2) as world:
        own = [client_from(world, "10.0.0.1") for _ in range(3)]
        assert [statuses(client) for client in own] == [[], [], [503]]
        assert b'"code":"too_many_connections"' in own[2].sent
        assert b"\r\nRetry-After: 1\r\n" in own[2].sent
        assert world.proxy.metrics.events["address_connections_refused"] == 1
        assert world.proxy.metrics.refusals[("", "too_many_connections")] == 1
        other = client_from(world, "10.0.0.2")
        asks(world, other)
        assert statuses(other) == [200]
        for client in own:
            client.lose()
        world.settle_down()
        late = client_from(world, "10.0.0.1")
        asks(world, late)
        assert statuses(late) == [200]


def test_the_address_that_counts_is_the_peers_if_no_header_gave_another() -> None:
    with World(connections_per_address_max=1) as world:
        assert statuses(world.client()) == []
        assert statuses(world.client()) == [503]
        assert statuses(client_from(world, "192.0.2.1")) == []


def test_a_trusted_proxy_may_have_as_many_connections_as_there_are() -> None:
    with World(connections_per_address_max=2, connections_max=6, trusted_networks="10.0.0.0/8") as world:
        assert [statuses(client_from(world, "10.0.0.1")) for _ in range(7)] == [[]] * 6 + [[503]]
        assert world.proxy.metrics.events["address_connections_refused"] == 0


def test_what_is_counted_of_addresses_goes_with_their_connections() -> None:
    with World(connections_per_address_max=2) as world:
        clients = [client_from(world, f"10.0.{number >> 4}.1") for number in range(64)]
        for client in clients:
            client.lose()
        world.settle_down()
        assert world.proxy._clients_from == {}
        assert world.proxy.clients == set()


@pytest.mark.parametrize("request_", [get(), NO_TOKEN], ids=["admitted", "refused"])
def test_the_last_request_that_a_connection_may_make_is_answered_with_its_end(request_: bytes) -> None:
    with World(connection_requests_max=3) as world:
        client = world.client()
        asks(world, client, request_ * 3 + get(b"/never"))
        assert len(statuses(client)) == 3
        *before, last = client.sent.split(b"HTTP/1.1 ")[1:]
        assert all(b"\r\nConnection:" not in answer for answer in before)
        assert b"\r\nConnection: close\r\n" in last
        assert client.has_ended
        assert b"/never" not in {read.target for read in world.upstream.all_requests}
        world.check_books()


# -- draining


def test_a_connection_without_a_request_is_kept_a_moment_when_the_gateway_drains() -> None:
    with World() as world:
        idle, late, new = world.client(), world.client(), world.client()
        asks(world, idle)
        asks(world, late)
        world.loop.create_task(drain(world.proxy, 20.0))
        world.turn(2)
        after = world.client()  # it was accepted while nobody else would have taken it
        world.advance(QUIET_S - 0.3)
        assert not any(client.is_closing() for client in (idle, late, new, after))
        for client in (late, after):
            asks(world, client)
            assert statuses(client)[-1] in (200, 503)
            assert client.sent.count(b"\r\nConnection: close\r\n") == 1
            assert client.is_lost
        world.advance(0.6)
        assert idle.is_lost
        assert new.is_lost
        assert b"Connection: close" not in idle.sent


def test_a_head_that_has_begun_is_read_to_its_end_when_the_gateway_drains() -> None:
    with World() as world:
        client = world.client()
        client.say(get()[:20])
        for connection in list(world.proxy.clients):
            connection.stop(world.loop.now)
        world.advance(QUIET_S + 1.0)
        asks(world, client, get()[20:])
        assert statuses(client) == [200]
        assert b"\r\nConnection: close\r\n" in client.sent
        assert client.is_lost
        world.check_books()


def test_requests_pipelined_behind_the_one_under_way_are_not_begun_when_the_gateway_drains() -> None:
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        asks(world, client, get(b"/1") + get(b"/2"))
        for connection in list(world.proxy.clients):
            connection.stop(world.loop.now)
        world.upstream.lines[0].say(ANSWER)
        world.settle_down()
        assert statuses(client) == [200]
        assert b"\r\nConnection: close\r\n" in client.sent
        assert [read.target for read in world.upstream.all_requests] == [b"/1"]
        world.advance(LINGER_S + 0.3)
        assert client.is_lost
        world.check_books()


def test_a_connection_that_is_cut_is_closed_and_who_waits_on_it_is_told_why() -> None:
    with World() as world:
        idle, busy = world.client(), world.client()
        asks(world, idle)
        world.upstream.answers = None
        asks(world, busy)
        for connection in list(world.proxy.clients):
            connection.cut("The gateway is stopping.")
        world.settle_down()
        assert idle.is_lost
        assert busy.is_lost
        assert (statuses(idle), statuses(busy)) == ([200], [503])
        assert b"The gateway is stopping." in busy.sent
        world.check_books()


# -- what the connection says of itself


def test_a_client_of_http_1_0_that_wants_its_connection_kept_is_told_that_it_is() -> None:
    with World() as world:
        client = world.client()
        old = get(b"/x", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
        asks(world, client, old)
        assert client.sent.count(b"\r\nConnection: keep-alive\r\n") == 1
        asks(world, client, get(b"/x").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.sent.count(b"\r\nConnection: close\r\n") == 1
        assert client.is_lost


def ways(world: World) -> list[dict[bytes, bytes]]:
    names = (b"Via", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host")
    return [
        {name: value for name, value in read.fields if name in names} for read in world.upstream.all_requests
    ]


def test_each_request_says_which_way_it_has_come_itself() -> None:
    """The lines are made once a connection where they can be: not for another Host or version, nor for a proxy's words."""
    with World(trusted_networks="10.9.8.7") as world:
        client = world.client()
        other = get(b"/x").replace(HOST, b"Host: other.example\r\n")
        old = get(b"/x", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
        behind = get(b"/x", b"X-Forwarded-For: 192.0.2.1")
        for request_ in (get(), get(), other, get(), old, get(), behind, get()):
            asks(world, client, request_)
        hosts = [way[b"X-Forwarded-Host"] for way in ways(world)]
        assert hosts == [b"gateway.example"] * 2 + [b"other.example"] + [b"gateway.example"] * 5
        assert [way[b"Via"][:3] for way in ways(world)] == [b"1.1"] * 4 + [b"1.0"] + [b"1.1"] * 3
        assert [way[b"X-Forwarded-For"] for way in ways(world)] == [b"10.9.8.7"] * 6 + [
            b"192.0.2.1, 10.9.8.7", b"10.9.8.7",
        ]  # fmt: skip


def test_the_peer_is_the_one_of_the_header_and_the_scheme_that_of_the_connection() -> None:
    with World() as world:
        asks(world, client_from(world, "2001:db8::1"))
        asks(world, tls_client(world))
        first, second = ways(world)
        assert (first[b"X-Forwarded-For"], first[b"X-Forwarded-Proto"]) == (b"2001:db8::1", b"http")
        assert (second[b"X-Forwarded-For"], second[b"X-Forwarded-Proto"]) == (b"10.9.8.7", b"https")


def test_the_log_names_the_client_that_trusted_proxies_name() -> None:
    behind = parse_request(
        get(b"/x", b"X-Forwarded-For: forged, 192.0.2.1, 10.0.0.2"), field_count_max=9, target_length_max=99
    )
    direct = parse_request(get(), field_count_max=9, target_length_max=99)
    with World(trusted_networks="10.0.0.0/8") as world:
        for peer, addresses in (("10.0.0.1", [b"192.0.2.1", b"10.0.0.1"]), ("192.0.2.9", [b"192.0.2.9"] * 2)):
            client = ClientConnection(world.proxy, peer)
            world.loop.line(client)
            assert [client.address_of(head) for head in (behind, direct)] == addresses


def test_a_route_may_ask_for_a_client_certificate() -> None:
    guarded = replace(ROUTE, name="guarded", path=b"/guarded/", client_certificate=True)
    with World((ROUTE, guarded)) as world:
        shown: dict[str, object] = {"subject": ((("commonName", "workload"),),)}
        for client, code in (
            (tls_client(world, shown), 200),
            (tls_client(world), 403),
            (world.client(), 403),
        ):
            asks(world, client)
            asks(world, client, get(b"/guarded/x"))
            assert statuses(client) == [200, code]
            assert (b'"code":"certificate_required"' in client.sent) == (code == 403)
        assert len(world.upstream.all_requests) == 4
        world.check_books()


# -- ticks


class Watched(ClientConnection):
    """Notes when it is looked at."""

    __slots__ = ("looks",)

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy)
        self.looks: list[float] = []

    def on_tick(self, now: float) -> None:
        self.looks.append(now)
        super().on_tick(now)


@pytest.mark.parametrize("count", [50, 1_000, 6_000])
def test_thousands_of_connections_are_looked_at_in_slices_and_none_is_forgotten(count: int) -> None:
    with World(head_timeout_s=60.0) as world:
        world.advance(0.1)
        clients = [Watched(world.proxy) for _ in range(count)]
        for client in clients:
            world.loop.line(client)
        seconds = 1.0
        world.advance(seconds, SLICE_S)
        at_once = Counter(look for client in clients for look in client.looks)
        assert max(at_once.values()) <= max(CLIENTS_A_SLICE, count // SLICES_MAX + 1)
        rounds = seconds / (TICK_S + SLICES_MAX * SLICE_S)
        for client in clients:
            assert len(client.looks) >= rounds - 1
            assert all(earlier < later < earlier + 3 * TICK_S for earlier, later in pairwise(client.looks))


def test_a_connection_that_goes_while_its_turn_is_to_come_is_no_trouble() -> None:
    with World(head_timeout_s=60.0) as world:
        lines = [world.client() for _ in range(1_000)]
        world.advance(TICK_S, SLICE_S)
        for line in lines[::2]:
            line.lose()
        world.advance(2 * TICK_S, SLICE_S)
        assert world.loop.failures == []
        assert len(world.proxy.clients) == 500


def test_each_request_on_a_connection_has_to_say_anew_who_it_is_from() -> None:
    with World() as world:
        client = world.client()
        asks(world, client, get() + NO_TOKEN + get().replace(AUTHORIZATION, b"") + get())
        assert statuses(client) == [200, 401, 401, 200]


def test_an_answer_to_head_has_no_body_whatever_is_refused_and_goes_by_the_clients_id() -> None:
    with World(body_bytes_max=10) as world:
        client = world.client()
        client.say(get(b"/x", b"Content-Length: 11", b"X-Request-Id: mine-1").replace(b"GET", b"HEAD", 1))
        world.settle_down()
        head, _, body = bytes(client.sent).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nX-Request-Id: mine-1" in head
        assert body == b""


@pytest.mark.parametrize("path", [b"/admin%2Fx", b"/%2Fadmin/x", b"/admin%5cx", b"/%61dmin/x"])
def test_a_raw_path_never_passes_a_route_that_it_can_be_read_as(path: bytes) -> None:
    raw = replace(ROUTE, name="raw", raw_path=True)
    guarded = replace(ROUTE, name="admin", path=b"/admin/")
    with World((raw, guarded)) as world:
        client = world.client()
        client.say(get(path))
        world.settle_down()
        targets = [read.target for read in world.upstream.all_requests]
        if client.sent.startswith(b"HTTP/1.1 200 "):
            assert targets == [b"/admin/x"], "it went to the guarded route, in its normal form"
        else:
            assert client.sent.startswith(b"HTTP/1.1 400 ")
            assert targets == []


@pytest.mark.parametrize(
    "name", [b"X-Principal-Scopes", b"x_principal_role", b"X.Principal.Id", b"X-PRINCIPAL-"]
)
def test_no_field_that_speaks_of_the_principal_is_the_clients(name: bytes) -> None:
    with World() as world:
        client = world.client()
        client.say(get(b"/x", name + b": forged"))
        world.settle_down()
        (read,) = world.upstream.all_requests
        assert b"forged" not in b"".join(value for _, value in read.fields)


def test_a_token_in_host_is_refused_and_one_in_a_forwarded_field_dropped() -> None:
    with World(trusted_networks="10.0.0.0/8") as world:
        for request, status in (
            (get().replace(HOST, b"Host: " + TOKEN + b"\r\n"), b"400"),
            (get(b"/x", b"X-Forwarded-Host: " + TOKEN), b"200"),
        ):
            client = world.client()
            client.say(request)
            world.settle_down()
            assert client.sent[9:12] == status
        assert all(TOKEN not in line.sent for line in world.upstream.lines)
