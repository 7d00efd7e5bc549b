"""What the gateway says of a request's way: Via, X-Forwarded-…, Forwarded, X-Request-Id; who the access log says that the
client is; and what becomes of a request that goes round in a circle.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from control.embedded import wait_until
from tests.system.conftest import StartGateway
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway
from tests.system.recording_upstream import RecordingUpstream, Seen
from tests.system.wire import Wire, request, wire

WAY = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded")
OURS = re.compile(r"1\.[01] tollkeeper-[0-9a-f]{10}")
MADE_ID = re.compile(r"[0-9a-f]{24}")
WITHIN_S = 15.0
PROXY = "127.0.0.2"
"""Where the trusted proxy of these tests connects from."""

FORGED = (
    ("X-Forwarded-For: 6.6.6.6",), ("x-forwarded-FOR: 6.6.6.6, 6.6.6.7", "X-Forwarded-For: 6.6.6.8"), ("X-Forwarded-For:",),
    ("X_Forwarded_For: 6.6.6.6", "X.Forwarded.For: 6.6.6.6", "X_Forwarded-Host: evil.test", "x!forwarded!proto: evil.test"),
    ("X-Forwarded-Proto: evil.test", "X-Forwarded-Host: evil.test", "X-Forwarded-Host: evil.test"),
    ("Forwarded: for=6.6.6.6;host=evil.test;proto=evil.test;by=evil.test", 'FORWARDED: for="[2001:db8::666]"'),
    ("Connection: X-Forwarded-For, Forwarded, Via, X-Forwarded-Host", "X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6"),
)  # fmt: skip
SIGNS_OF_FORGERY = ("6.6.6", "evil.test", "db8::666")


@pytest.fixture(scope="module")
def behind_proxy(addresses: Addresses, data_dir: Path, routes: Path) -> Iterator[Gateway]:
    """A gateway that trusts a proxy."""
    log = data_dir / "gateways.log"
    with another_gateway(
        addresses.redis, data_dir / "pepper", log, routes, trusted_networks=f"{PROXY}, 10.0.0.0/8"
    ) as started:
        yield started


def way(seen: Seen) -> dict[str, str]:
    """The fields of the way, each of which has to be there once under any spelling."""
    return {name: seen.one(name) for name in WAY}


DIRECT = {
    "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "http", "x-forwarded-host": "gateway.test",
    "forwarded": "for=127.0.0.1;host=gateway.test;proto=http",
}  # fmt: skip


@asynccontextmanager
async def wire_over_ipv6(port: int) -> AsyncIterator[Wire]:
    opened = Wire(*await asyncio.open_connection("::1", port))
    try:
        yield opened
    finally:
        opened.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def asked(client: Wire, upstream: RecordingUpstream, workload: Workload, data: bytes) -> Seen:
    """What the upstream sees of a request that the gateway has to let through."""
    count = len(upstream.of(workload.key))
    client.send(data)
    assert (await client.answer()).status == 200
    (seen,) = upstream.of(workload.key)[count:]
    return seen


@pytest.mark.parametrize("forged", FORGED, ids=lambda lines: lines[0].partition(":")[0])
async def test_what_a_stranger_says_of_its_way_is_replaced(
    installation: Installation, upstream: RecordingUpstream, forged: tuple[str, ...]
) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        seen = await asked(client, upstream, workload, request(workload, "/free/", *forged))
    assert way(seen) == DIRECT
    assert OURS.fullmatch(seen.one("via"))
    assert not [field for field in seen.fields for sign in SIGNS_OF_FORGERY if sign in str(field)]


async def test_a_way_is_told_of_each_request_and_not_of_the_one_before(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    heads = [
        ("1.1", "a.test"),
        ("1.1", "b.test:81"),
        ("1.1", "b.test:81"),
        ("1.0", "b.test:81"),
        ("1.1", "[::1]:8080"),
    ]
    async with wire(installation.addresses.gateway_port) as client:
        for version, host in heads:
            data = request(workload, "/free/", "Connection: keep-alive", version=version)
            seen = await asked(client, upstream, workload, data.replace(b"gateway.test", host.encode()))
            written = f'"{host}"' if ":" in host else host
            assert way(seen) == DIRECT | {
                "x-forwarded-host": host,
                "forwarded": f"for=127.0.0.1;host={written};proto=http",
            }
            assert seen.one("via").startswith(f"{version} ")
        data = request(workload, "/free/", version="1.0").replace(b"Host: gateway.test\r\n", b"")
        seen = await asked(client, upstream, workload, data)
        assert seen.all("x-forwarded-host") == []
        assert seen.one("forwarded") == "for=127.0.0.1;proto=http"


EXTENDED: tuple[tuple[tuple[str, ...], dict[str, str]], ...] = (
    ((), {}),
    (("X-Forwarded-For: 203.0.113.9",), {"x-forwarded-for": f"203.0.113.9, {PROXY}"}),
    (
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9", "X-A: 1", "x-forwarded-for: 198.51.100.7"),
        {"x-forwarded-for": f"6.6.6.6, 203.0.113.9, 198.51.100.7, {PROXY}"},
    ),
    (
        ("X-Forwarded-Proto: https", "X-Forwarded-Host: shop.test:8443"),
        {"x-forwarded-proto": "https", "x-forwarded-host": "shop.test:8443"},
    ),
    (("X-Forwarded-Proto: not a scheme", "X-Forwarded-Host:", "X-Forwarded-For:", "Forwarded:"), {}),
    (
        ('Forwarded: for="[2001:db8::17]:4711";proto=https', "Forwarded: for=198.51.100.7;by=203.0.113.60"),
        {
            "forwarded": 'for="[2001:db8::17]:4711";proto=https, for=198.51.100.7;by=203.0.113.60, '
            f"for={PROXY};host=gateway.test;proto=http"
        },
    ),
    (("X_Forwarded_For: 6.6.6.6", "X.Forwarded.Host: evil.test"), {}),
)


async def test_what_a_trusted_proxy_says_is_added_to_and_what_its_neighbour_says_is_not(
    installation: Installation, upstream: RecordingUpstream, behind_proxy: Gateway
) -> None:
    workload, port = await installation.workload(), behind_proxy.port
    told = DIRECT | {
        "x-forwarded-for": PROXY,
        "forwarded": f"for={PROXY};host=gateway.test;proto=http",
    }
    async with wire(port, source=PROXY) as proxy, wire(port) as stranger:
        for given, expected in EXTENDED:
            data = request(workload, "/free/", "Via: 1.1 edge", *given)
            seen = await asked(proxy, upstream, workload, data)
            assert way(seen) == told | expected, given
            assert seen.all("via")[0] == "1.1 edge"
            assert OURS.fullmatch(seen.all("via")[1])
            assert way(await asked(stranger, upstream, workload, data)) == DIRECT, given


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
async def test_an_address_of_version_6_is_written_as_each_field_has_it(
    installation: Installation, upstream: RecordingUpstream, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with(listen="[::1]:0", trusted_networks="::/64")
    async with wire_over_ipv6(gateway.port) as client:
        seen = await asked(client, upstream, workload, request(workload, "/free/"))
        assert way(seen) == DIRECT | {
            "x-forwarded-for": "::1",
            "forwarded": 'for="[::1]";host=gateway.test;proto=http',
        }
        data = request(workload, "/free/", "X-Forwarded-For: 2001:db8::17")
        seen = await asked(client, upstream, workload, data)
        assert seen.one("x-forwarded-for") == "2001:db8::17, ::1"


CLIENTS = (
    ("", PROXY), ("203.0.113.9", "203.0.113.9"), ("6.6.6.6, 203.0.113.9", "203.0.113.9"), ("203.0.113.9:4711", "203.0.113.9"),
    ("6.6.6.6, 203.0.113.9, 10.1.2.3, 10.4.5.6", "203.0.113.9"), ("10.1.2.3", "10.1.2.3"), ("[2001:db8::17]:1", "2001:db8::17"),
    ("203.0.113.9, unknown", PROXY), ("203.0.113.9, 10.1.2.3, \"x\":1}", PROXY), ("2001:DB8:0::17", "2001:db8::17"),
)  # fmt: skip


async def test_the_access_log_names_the_nearest_address_that_nobody_vouches_for(
    installation: Installation, behind_proxy: Gateway, data_dir: Path
) -> None:
    workload, port = await installation.workload(), behind_proxy.port
    mark = secrets.token_hex(6)
    expected = {}
    async with wire(port, source=PROXY) as proxy, wire(port) as stranger:
        for number, (addresses, client) in enumerate(CLIENTS):
            for who, name in ((proxy, client), (stranger, "127.0.0.1")):
                for token, status in ((workload, 200), (None, 401)):
                    own = f"{mark}-{number}-{name}-{status}"
                    expected[own] = name
                    given = f"X-Forwarded-For: {addresses}"
                    who.send(request(token, "/free/", f"X-Request-Id: {own}", given))
                    assert (await who.answer()).status == status

    def lines() -> list[dict[str, Any]]:
        said = (data_dir / "gateways.log").read_text().splitlines()
        return [json.loads(line) for line in said if mark in line and line.startswith('{"log":"access"')]

    await wait_until(lambda: len(lines()) == len(expected), WITHIN_S, "the access log to be written")
    assert {line["client_request_id"]: line["client"] for line in lines()} == expected


# -- X-Request-Id and trace context


async def test_a_sane_request_id_is_kept_and_the_ledger_has_it_beside_our_own(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    mark = secrets.token_hex(6)
    ids = [mark, f"{mark}-2/a.b_c~d:e+f=g@h", f"{mark}3".ljust(128, "z"), f"0{mark}", f"{mark}-UPPER"]
    async with wire(installation.addresses.gateway_port) as client:
        for name, own in zip(
            ("X-Request-Id", "x-request-id", "X-REQUEST-ID", "X-Request-ID", "x-Request-id"), ids, strict=True
        ):
            client.send(request(workload, "/free/", f"{name}: {own}"))
            assert (await client.answer()).all("x-request-id") == [own]
    assert [seen.request_id for seen in upstream.of(workload.key)] == ids
    rows = await installation.settled(workload.tag)
    assert [row["client_request_id"] for row in rows] == ids
    assert all(MADE_ID.fullmatch(row["request_id"]) for row in rows)


async def test_any_other_request_id_is_replaced_by_one_that_client_upstream_and_ledger_share(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    good = secrets.token_hex(6)
    insane: list[tuple[str, ...]] = [
        (), ("X-Request-Id:",), (f"X-Request-Id: {'a' * 129}",), ("X-Request-Id: two words",), ('X-Request-Id: "quoted"',),
        ("X-Request-Id: a,b",), ("X-Request-Id: {}",), ("X-Request-Id: a\tb",), ("X-Request-Id: \xe4",), ("X-Request-Id: -a",),
        (f"X-Request-Id: {workload.token}",), (f"X-Request-Id: a{workload.token}",), ("X-Request-Id: 'or 1",),
        (f"X-Request-Id: {good}-1", f"X-Request-Id: {good}-2"), (f"X-Request-Id: {good}", f"x-request-id: {good}"),
        (f"X_Request_Id: {good}",), (f"X-Request-Id: {good}", "X-Request-Id: not sane"), (f"X.Request.Id: {good}",),
        (f"X-Request-Id: {good}", "Connection: X-Request-Id", "X-Request-Id: "),
    ]  # fmt: skip
    told = []
    async with wire(installation.addresses.gateway_port) as client:
        for lines in insane:
            client.send(request(workload, "/free/", *lines))
            told.append((await client.answer())["x-request-id"])
    assert all(MADE_ID.fullmatch(own) for own in told), told
    assert len(set(told)) == len(insane)
    assert [seen.request_id for seen in upstream.of(workload.key)] == told
    assert not [field for seen in upstream.of(workload.key) for field in seen.fields if good in str(field)]
    rows = await installation.settled(workload.tag)
    assert [(row["request_id"], row["client_request_id"]) for row in rows] == [(own, None) for own in told]


async def test_a_refusal_bears_the_clients_own_request_id(installation: Installation) -> None:
    own = secrets.token_hex(6)
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(None, "/free/", f"X-Request-Id: {own}"))
        answer = await client.answer()
    assert (answer.status, answer["x-request-id"], json.loads(answer.body)["request_id"]) == (401, own, own)


async def test_trace_context_is_carried_on_and_the_ledger_has_the_parent(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    parent = f"00-{secrets.token_hex(16)}-b7ad6b7169203331-01"
    lines = (
        f"traceparent: {parent}",
        "tracestate: a=1,b=2",
        "tracestate: c=3",
        "baggage: who=me",
        "X-B3-TraceId: 80f1",
    )
    async with wire(installation.addresses.gateway_port) as client:
        seen = await asked(client, upstream, workload, request(workload, "/free/", *lines))
        client.send(request(workload, "/free/", f"traceparent: {workload.token}"))
        await client.answer()
    carried = [f"{name}: {value}" for name, value in seen.fields]
    assert [line for line in carried if line in lines] == list(lines)
    first, second = await installation.settled(workload.tag)
    assert (first["trace"], second["trace"]) == (parent, None)
    assert all(workload.token not in str(each.fields) for each in upstream.of(workload.key))


# -- Circles

LOOP_ROUTES = """
[[route]]
name = "loop"
path = "/loop/"
upstream = "http://127.0.0.1:{port}"
price.request = "0.10"
"""


async def test_a_route_to_the_gateway_itself_ends_after_one_round(
    installation: Installation, gateway_with: StartGateway, data_dir: Path
) -> None:
    workload = await installation.workload("5")
    routes, log = data_dir / "loop.toml", data_dir / "gateways.log"
    routes.write_text(LOOP_ROUTES.format(port=9))
    gateway = gateway_with(config=str(routes))
    routes.write_text(LOOP_ROUTES.format(port=gateway.port))
    start = log.stat().st_size
    gateway.process.send_signal(signal.SIGHUP)
    await wait_until(
        lambda: b'"reloaded"' in log.read_bytes()[start:], WITHIN_S, "the routes to be read again"
    )

    async def go_round(number: int) -> None:
        async with wire(gateway.port) as client:
            for data in (
                request(workload, f"/loop/{number}"),
                request(workload, f"/loop/{number}", method="POST", body=b"body"),
                request(
                    workload, f"/loop/{number}", "X-Forwarded-For: 6.6.6.6", "Via: 1.1 edge", method="DELETE"
                ),
            ):
                client.send(data)
                answer = await client.answer()
                assert (answer.status, answer["content-type"]) == (508, "application/problem+json")
                assert json.loads(answer.body)["code"] == "loop_detected"
                assert len(answer.all("x-request-id")) == 1

    await asyncio.gather(*map(go_round, range(10)))
    async with wire(gateway.port) as client:
        client.send(request(workload, "/loop/head", method="HEAD"))
        assert (await client.answer(to_head=True)).status == 508
    rows = await installation.settled(workload.tag)
    assert [(row["status"], row["outcome"], row["cost"]) for row in rows] == [
        (508, "completed", 100_000)
    ] * 31


async def test_whoever_says_that_a_request_has_been_here_is_believed_and_not_charged(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload("1")
    port = installation.addresses.gateway_port
    async with wire(port) as client:
        seen = await asked(client, upstream, workload, request(workload, "/priced/"))
    pseudonym = seen.one("via").split()[1]
    for via in (
        (f"1.1 {pseudonym}",), (f"1.0 fred, 1.0 {pseudonym.upper()} (again), 1.1 p",), ("1.1 a", f"1.1\t{pseudonym}", "1.1 b"),
    ):  # fmt: skip
        async with wire(port) as client:
            client.send(request(workload, "/priced/", *(f"Via: {value}" for value in via)))
            answer = await client.answer()
            assert (answer.status, json.loads(answer.body)["code"]) == (508, "loop_detected"), via
    elsewhere = (
        f"1.1 x{pseudonym}",
        f"1.1 {pseudonym}x",
        f"1.1 p ({pseudonym})",
        "1.1 tollkeeper-0000000000",
        f"1.1 {pseudonym}.test",
    )
    async with wire(port) as client:
        for value in elsewhere:
            seen = await asked(client, upstream, workload, request(workload, "/priced/", f"Via: {value}"))
            assert seen.all("via") == [value, f"1.1 {pseudonym}"]
    assert len(await installation.settled(workload.tag)) == 1 + len(elsewhere)
