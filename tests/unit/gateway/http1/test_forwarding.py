"""Which way a request has come: nobody but a trusted proxy is believed, and what is written can be read in one way."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.token import Pepper
from gateway.http1.fields import Field, Kind, request_lines
from gateway.http1.forwarding import Hop, client_address, forwarded_fields, has_come_round
from gateway.networks import Networks
from gateway.proxy import pseudonym

US = b"tollkeeper-0123456789"
TRUSTED = Networks("10.0.0.0/8, fd00::/8")
STRANGER = Hop("192.0.2.7", False, b"http")
BALANCER = Hop("10.0.0.1", True, b"http")
HOST = b"api.example:8080"

FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"X-Forwarded-For", b"x-forwarded-proto", b"X-Forwarded-Host", b"FORWARDED"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.encode),
    ),
    max_size=5,
)


def said(name: bytes, value: bytes) -> Field:
    """What the client's field line says, as the head has it."""
    return request_lines[name + b": " + value + b"\r\n"]


def written(hop: Hop, *given: Field, host: bytes = HOST, minor: int = 1) -> dict[bytes, bytes]:
    """The lines for the upstream, which come in one order and each once."""
    block = forwarded_fields(hop, US, minor, host, given)
    assert block.endswith(b"\r\n")
    pairs = [line.split(b": ", 1) for line in block[:-2].split(b"\r\n")]
    names = [name for name, _ in pairs]
    expected = [b"Via", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Forwarded"]
    assert names == [name for name in expected if host or name != b"X-Forwarded-Host" or name in names]
    return {pair[0]: pair[1] for pair in pairs}


def test_a_direct_request_has_come_from_its_peer() -> None:
    assert written(STRANGER) == {
        b"Via": b"1.1 " + US,
        b"X-Forwarded-For": b"192.0.2.7",
        b"X-Forwarded-Proto": b"http",
        b"X-Forwarded-Host": HOST,
        b"Forwarded": b'for=192.0.2.7;host="api.example:8080";proto=http',
    }


def test_a_request_of_http_1_0_says_so_and_may_have_no_host() -> None:
    lines = written(Hop("192.0.2.7", False, b"https"), host=b"", minor=0)
    assert lines[b"Via"] == b"1.0 " + US
    assert b"X-Forwarded-Host" not in lines
    assert lines[b"Forwarded"] == b"for=192.0.2.7;proto=https"


@pytest.mark.parametrize(
    ("peer", "element"),
    [("2001:db8::1", b'for="[2001:db8::1]"'), ("10.0.0.9", b"for=10.0.0.9"), ("-", b"for=unknown")],
)
def test_a_node_is_written_as_the_standard_has_it(peer: str, element: bytes) -> None:
    lines = written(Hop(peer, False, b"http"), host=b"api.example")
    assert lines[b"Forwarded"] == element + b";host=api.example;proto=http"
    assert lines[b"X-Forwarded-For"] == peer.encode()


@given(FIELDS)
def test_what_a_stranger_says_of_its_way_is_replaced(lines: list[tuple[bytes, bytes]]) -> None:
    given_fields = [said(name, value) for name, value in lines]
    assert written(STRANGER, *given_fields) == written(STRANGER)


def test_what_a_trusted_proxy_says_is_added_to() -> None:
    lines = written(
        BALANCER,
        said(b"X-Forwarded-For", b"203.0.113.5, 10.0.0.2"), said(b"X-Forwarded-For", b"10.0.0.3"),
        said(b"X-Forwarded-Proto", b"https"), said(b"X-Forwarded-Host", b"shop.example"),
        said(b"Forwarded", b"for=203.0.113.5;proto=https"), said(b"Forwarded", b"for=10.0.0.2, for=10.0.0.3"),
    )  # fmt: skip
    assert lines == {
        b"Via": b"1.1 " + US,
        b"X-Forwarded-For": b"203.0.113.5, 10.0.0.2, 10.0.0.3, 10.0.0.1",
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-Host": b"shop.example",
        b"Forwarded": b"for=203.0.113.5;proto=https, for=10.0.0.2, for=10.0.0.3, "
        b'for=10.0.0.1;host="api.example:8080";proto=http',
    }


def test_of_several_the_nearest_one_counts() -> None:
    lines = written(
        BALANCER,
        said(b"X-Forwarded-Proto", b"http"), said(b"X-Forwarded-Proto", b"https"),
        said(b"X-Forwarded-Host", b"forged.example"), said(b"X-Forwarded-Host", b"shop.example"),
    )  # fmt: skip
    assert (lines[b"X-Forwarded-Proto"], lines[b"X-Forwarded-Host"]) == (b"https", b"shop.example")


@pytest.mark.parametrize(
    "scheme", [b"", b"https, http", b"ht tp", b"1http", b"https;", b"h" * 33, b"\xe9", b'"https"']
)
def test_a_scheme_that_is_none_is_not_passed_on(scheme: bytes) -> None:
    assert written(BALANCER, said(b"X-Forwarded-Proto", scheme))[b"X-Forwarded-Proto"] == b"http"


def test_what_a_trusted_proxy_leaves_out_or_empty_is_ours_to_say() -> None:
    empty = [said(name, b"") for name in (b"X-Forwarded-For", b"X-Forwarded-Host", b"Forwarded")]
    assert written(BALANCER, *empty) == written(BALANCER)


def test_bytes_outside_ascii_in_a_trusted_proxys_words_go_on_unchanged() -> None:
    lines = written(BALANCER, said(b"Forwarded", b'for=_a;by="\xc3\xa9\xff"'))
    assert lines[b"Forwarded"].startswith(b'for=_a;by="\xc3\xa9\xff", for=10.0.0.1;')


# -- a circle


@pytest.mark.parametrize(
    "via",
    [
        [b"1.1 " + US], [b"1.0 " + US.upper()], [b"HTTP/1.1 " + US + b" (a comment, of two parts)"],
        [b"1.1 a, 1.1 " + US + b", 1.1 b"], [b"1.1 a", b"1.1 b,1.1\t" + US], [b" ,, 1.1   " + US + b"   "],
    ],
)  # fmt: skip
def test_a_request_that_has_been_here_is_known_again(via: list[bytes]) -> None:
    assert has_come_round(via, US)


@pytest.mark.parametrize(
    "via",
    [
        [], [b""], [US], [b"1.1 a"], [b"1.1 " + US + b"0"], [b"1.1 x" + US], [b"1.1 a (" + US + b")"], [b"1.1 " + US[:-1]],
        [b"1.1 " + US + b":80"],
    ],
)  # fmt: skip
def test_a_request_that_has_only_been_elsewhere_is_not(via: list[bytes]) -> None:
    assert not has_come_round(via, US)


def test_what_is_added_to_via_is_known_again() -> None:
    for minor in (0, 1):
        assert has_come_round([written(STRANGER, minor=minor)[b"Via"]], US)


def test_gateways_of_one_installation_know_each_other_and_no_other() -> None:
    one, other = Pepper(b"a" * 32), Pepper(b"b" * 32)
    assert pseudonym(one) == pseudonym(one) != pseudonym(other)
    assert re.fullmatch(rb"tollkeeper-[0-9a-f]{10}", pseudonym(one))
    assert has_come_round([b"1.1 " + pseudonym(one)], pseudonym(one))


# -- who the client is


def nearest(*values: bytes, hop: Hop = BALANCER) -> str:
    return client_address(hop, [said(b"X-Forwarded-For", value) for value in values], TRUSTED)


def test_a_stranger_is_who_it_is_whatever_it_says() -> None:
    assert nearest(b"203.0.113.5", hop=STRANGER) == "192.0.2.7"


def test_a_proxy_that_says_nothing_is_the_client() -> None:
    assert nearest() == nearest(b"") == "10.0.0.1"


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([b"203.0.113.5"], "203.0.113.5"),
        ([b"198.51.100.1, 203.0.113.5"], "203.0.113.5"),
        ([b"198.51.100.1, 203.0.113.5, 10.0.0.2"], "203.0.113.5"),
        ([b"198.51.100.1, 203.0.113.5", b"10.0.0.2,fd00::2"], "203.0.113.5"),
        ([b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ([b"2001:db8::1"], "2001:db8::1"), ([b"2001:DB8:0::1"], "2001:db8::1"), ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"[2001:db8::1]:443"], "2001:db8::1"), ([b"203.0.113.5:80"], "203.0.113.5"),
        ([b"  203.0.113.5\t"], "203.0.113.5"), ([b"forged, 203.0.113.5, 10.0.0.2"], "203.0.113.5"),
    ],
)  # fmt: skip
def test_the_client_is_the_nearest_address_that_nobody_vouches_for(values: list[bytes], client: str) -> None:
    assert nearest(*values) == client


@pytest.mark.parametrize(
    "entry",
    [
        b"unknown", b"_hidden", b"", b"a:80", b"203.0.113.5:http", b"203.0.113.5:800000", b"[]:80", b"]",
        b'"203.0.113.5"', b"203.0.113.256", b"\xff", b"fe80::1%eth0", b'fe80::1%"x', b"fe80::1%\\", b"[fe80::1%\xe9]:80",
    ],
)  # fmt: skip
def test_what_is_no_address_ends_the_way_back(entry: bytes) -> None:
    """Whoever wrote it cannot be vouched for; the last one that can be is taken."""
    assert nearest(b"198.51.100.1, " + entry + b", 10.0.0.2") == "10.0.0.2"
    assert nearest(entry) == "10.0.0.1"


@given(st.lists(st.binary(max_size=20).filter(lambda value: not re.search(rb"[\r\n\x00-\x1f\x7f]", value))))
def test_whatever_is_said_the_client_is_an_address_and_safe_to_write_down(values: list[bytes]) -> None:
    address = nearest(*values)
    assert str(ip_address(address)) == address
    assert re.fullmatch(r"[0-9a-f.:]+", address)


def test_the_fields_of_the_way_are_all_of_one_kind() -> None:
    for name in (b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Forwarded"):
        assert said(name, b"a")[0] is Kind.FORWARDED
