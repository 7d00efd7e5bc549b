"""What a head says of its hop and of the way it has come: upgrades, trailers, earlier hops, and the client's own request id."""

from __future__ import annotations

import pytest

from tests.unit.gateway.http1.test_head import read_answer, read_fields


def test_most_requests_say_nothing_of_their_hops() -> None:
    assert read_fields(b"Accept: a", b"X-Request-Id: 1").hop is None


@pytest.mark.parametrize(
    ("lines", "upgrade"),
    [
        ((b"Upgrade: websocket", b"Connection: Upgrade"), b"websocket"),
        ((b"Connection: keep-alive, UPGRADE", b"upgrade: WebSocket "), b"WebSocket"),
        ((b"Upgrade: a", b"Connection: x", b"Connection: upgrade", b"Upgrade: b/2"), b"a, b/2"),
        ((b"Upgrade: websocket",), b""),
        ((b"Upgrade: websocket", b"Connection: keep-alive"), b""),
        ((b"Upgrade: websocket", b"Connection: upgrades, x-upgrade"), b""),
        ((b"Upgrade:", b"Connection: upgrade"), b""),
    ],
)  # fmt: skip
def test_an_upgrade_is_meant_only_if_connection_says_so(lines: tuple[bytes, ...], upgrade: bytes) -> None:
    head = read_fields(*lines)
    assert head.hop is not None
    assert head.hop.upgrade == upgrade
    assert head.fields == []


@pytest.mark.parametrize(
    ("values", "wants"),
    [
        ([b"trailers"], True), ([b"TRAILERS"], True), ([b"gzip, trailers;q=0.5"], True), ([b"gzip", b"trailers"], True),
        ([b"gzip"], False), ([b"trailersx, x-trailers"], False), ([b""], False), ([b"trailers", b"gzip"], True),
    ],
)  # fmt: skip
def test_trailers_are_understood_by_whoever_says_so(values: list[bytes], wants: bool) -> None:
    head = read_fields(*(b"TE: " + value for value in values))
    assert head.hop is not None
    assert (head.hop.wants_trailers, head.fields) == (wants, [])


def test_the_way_a_request_has_come_is_kept_in_order() -> None:
    head = read_fields(
        b"Via: 1.1 a", b"X-Forwarded-For: 1", b"Forwarded: for=2", b"X-Forwarded-Proto: https", b"x-forwarded-for: 3",
        b"VIA: 1.0 b", b"X-Forwarded-Host: h",
    )  # fmt: skip
    assert head.hop is not None
    assert head.hop.via == [b"1.1 a", b"1.0 b"]
    assert [(name, value) for _, name, value in head.hop.forwarded] == [
        (b"x-forwarded-for", b"1"), (b"forwarded", b"for=2"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-for", b"3"),
        (b"x-forwarded-host", b"h"),
    ]  # fmt: skip
    assert head.fields == [b"Via: 1.1 a\r\n", b"VIA: 1.0 b\r\n"]


def test_a_circle_is_seen_even_if_connection_nominates_via() -> None:
    head = read_fields(b"Connection: via", b"Via: 1.1 a")
    assert head.hop is not None
    assert (head.hop.via, head.fields) == ([b"1.1 a"], [])


SANE_IDS = [
    b"a",
    b"0",
    b"8dea2e846ca3d10000000001",
    b"a._~:+/=@-z",
    b"a" * 128,
    b"6ba7b810-9dad-11d1-80b4-00c04fd430c8",
]
ODD_IDS = [
    b"", b"-a", b".a", b"a b", b"a,b", b'a"b', b"a;b", b"a" * 129, b"\xe9", b"a\tb", b"<a>", b"{a}", b"a%20", b"a\\b",
    b"tk_Acme010123456789_" + b"a" * 49,
]  # fmt: skip


@pytest.mark.parametrize("value", SANE_IDS)
def test_a_sane_id_of_the_clients_is_kept(value: bytes) -> None:
    head = read_fields(b"X-Request-ID:  " + value)
    assert (head.request_id, head.fields) == (value, [])


@pytest.mark.parametrize("value", ODD_IDS)
def test_an_odd_id_is_not(value: bytes) -> None:
    head = read_fields(b"X-Request-Id: " + value)
    assert not head.request_id
    assert head.fields == []


def test_of_several_ids_none_is_kept() -> None:
    for values in ([b"a", b"b"], [b"a", b"a"], [b"a", b"b", b"c"], [b" ", b"a"]):
        assert not read_fields(*(b"X-Request-Id: " + value for value in values)).request_id


@pytest.mark.parametrize(
    ("lines", "upgrade", "switches"),
    [
        ((b"Upgrade: websocket", b"Connection: Upgrade"), b"websocket", True),
        ((b"Upgrade: a", b"Upgrade: b", b"Connection: close, upgrade"), b"a, b", True),
        ((b"Upgrade: websocket",), b"websocket", False), ((b"Connection: upgrade",), b"", False),
    ],
)  # fmt: skip
def test_an_answer_switches_if_it_names_what_to_and_says_so(
    lines: tuple[bytes, ...], upgrade: bytes, switches: bool
) -> None:
    head = read_answer(*lines, status=b"101 Switching Protocols")
    assert (head.upgrade, head.switches, head.fields) == (upgrade, switches, b"")
