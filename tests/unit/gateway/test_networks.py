"""Lists of networks: what is in them, and which texts are none."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.networks import NETWORKS_MAX, Networks

LIST = " 10.0.0.0/8, 192.0.2.7 ,2001:db8::/32,, ::1,fe80::/10 "


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.0", "10.255.255.255", "192.0.2.7", "2001:db8::", "2001:DB8:ffff::1", "::1", "0:0:0:0:0:0:0:1",
        "::ffff:10.1.2.3", "::ffff:c000:0207", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_an_address_is_in_the_list_however_it_is_written(address: str) -> None:
    assert Networks(LIST).holds(address)


@pytest.mark.parametrize(
    "address",
    [
        "11.0.0.0", "9.255.255.255", "192.0.2.6", "192.0.2.8", "2001:db9::", "::2", "::ffff:11.0.0.1", "127.0.0.1",
        "::10.0.0.1", "", "-", "localhost", "10.0.0.1:80", "[::1]", "10.0.0.0/8", "010.0.0.1", "10.0.0", " 10.0.0.1", "unknown",
    ],
)  # fmt: skip
def test_any_other_address_and_what_is_none_is_not(address: str) -> None:
    assert not Networks(LIST).holds(address)


@pytest.mark.parametrize("text", ["", "  ", ",", " , ,"])
def test_a_list_may_be_empty_and_holds_nothing_then(text: str) -> None:
    networks = Networks(text)
    assert not networks
    assert not networks.holds("127.0.0.1")


def test_a_list_that_is_not_empty_says_so() -> None:
    assert Networks("127.0.0.1")


@pytest.mark.parametrize(
    "part",
    [
        "example.org", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "/8", "10.0.0.0-10.0.0.9", "10.*",
        "2001:db8::1/32", "[::1]", "10.0.0.1:80", "fe80::1%eth0/10", "1", "10.0.0.0/8;11.0.0.0/8", "*",
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused_by_its_name(part: str) -> None:
    with pytest.raises(ValueError) as caught:
        Networks(f"127.0.0.1, {part}")
    assert repr(part) in str(caught.value)


def test_a_list_has_a_bound() -> None:
    most = ",".join(f"10.0.{number}.0/24" for number in range(NETWORKS_MAX))
    assert Networks(most).holds("10.0.255.1")
    with pytest.raises(ValueError, match=str(NETWORKS_MAX)):
        Networks(f"{most},127.0.0.1")


@given(st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), max_size=4), st.ip_addresses())
def test_any_address_is_in_a_list_if_it_is_in_one_of_its_networks(
    given_networks: list[tuple[object, int]], address: object
) -> None:
    networks = [ip_network(f"{base}/{length}", strict=False) for base, length in given_networks]
    listed = Networks(",".join(map(str, networks)))
    parsed = ip_address(str(address))
    mapped = getattr(parsed, "ipv4_mapped", None)
    expected = any((mapped or parsed) in network for network in networks)
    assert listed.holds(str(address)) is expected
    assert listed.holds(str(address)) is expected, "and again, from memory"


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    networks = Networks("10.0.0.0/8")
    for number in range(10_000):
        networks.holds(f"10.0.{number >> 8}.{number & 255}")
    assert networks.holds.cache_info().currsize <= 4096
