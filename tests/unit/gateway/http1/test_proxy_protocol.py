"""PROXY protocol headers: the same bytes in any split name the same client, no byte behind them is taken, and what cannot
become a header is refused at the byte that says so.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import product

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.http1.proxy_protocol import (
    BLOCK_LENGTH_MAX,
    LINE_LENGTH_MAX,
    ProxyHeader,
    ProxyHeaderError,
    ProxyHeaderReader,
)

AFTER = b"\x16\x03\x01\x02\x00\r\n PROXY"
NOBODY = ProxyHeader(None, None)
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNIX, UNSPEC = 0x11, 0x21, 0x31, 0x00
BLOCK4 = bytes(range(1, 9)) + b"\x00\x50\x01\xbb"
HEADER4 = ProxyHeader(("1.2.3.4", 80), ("5.6.7.8", 443))


def line(family: str, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    return f"PROXY {family} {source[0]} {destination[0]} {source[1]} {destination[1]}\r\n".encode()


def fixed(command: int, kind: int, length: int) -> bytes:
    return SIGNATURE + bytes([command, kind]) + length.to_bytes(2, "big")


def binary(command: int, kind: int, block: bytes) -> bytes:
    return fixed(command, kind, len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + len(value).to_bytes(2, "big") + value


def block(source: tuple[bytes, int], destination: tuple[bytes, int]) -> bytes:
    return source[0] + destination[0] + source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")


def take(data: bytes, sizes: list[int]) -> tuple[ProxyHeader | None, int]:
    """The header, and how many bytes were taken, where `data` arrives in pieces of these sizes and then at once. Raises
    ProxyHeaderError.
    """
    reader, position, arrivals = ProxyHeaderReader(), 0, iter(sizes)
    while reader.wanted and position < len(data):
        read = data[position : position + min(next(arrivals, len(data)), reader.wanted)]
        position += len(read)
        header = reader.feed(read)
        if header is not None:
            assert reader.wanted == 0
            return header, position
    return None, position


def first_refused(data: bytes) -> int | None:
    """The index of the byte that is refused, where each arrives alone."""
    reader = ProxyHeaderReader()
    for at in range(len(data)):
        try:
            if reader.feed(data[at : at + 1]) is not None:
                return None
        except ProxyHeaderError:
            return at
    return None


PORTS = st.one_of(st.integers(0, 65_535), st.sampled_from([0, 1, 65_535]))
SIZES = st.lists(st.integers(1, 9), max_size=60)


@st.composite
def spelled_ipv6(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """How it is written, how it is to be given, and its bytes."""
    low = draw(st.ip_addresses(v=4))
    mapped = IPv6Address(b"\x00" * 10 + b"\xff\xff" + low.packed)
    embedding = IPv6Address(draw(st.binary(min_size=12, max_size=12)) + low.packed)
    address = draw(st.one_of(st.ip_addresses(v=6), st.sampled_from([mapped, embedding])))
    dotted = ":".join(address.exploded.split(":")[:6]) + f":{IPv4Address(address.packed[12:])}"
    forms = [address.compressed, address.exploded, address.exploded.upper(), dotted]
    is_mapped = address.packed[:12] == mapped.packed[:12]
    given_as = str(IPv4Address(address.packed[12:])) if is_mapped else address.compressed
    return draw(st.sampled_from(forms)), given_as, address.packed


@st.composite
def lines(draw: st.DrawFn) -> tuple[bytes, ProxyHeader]:
    ports = draw(PORTS), draw(PORTS)
    family = draw(st.sampled_from(["TCP4", "TCP6", "UNKNOWN"]))
    if family == "TCP4":
        source, destination = str(draw(st.ip_addresses(v=4))), str(draw(st.ip_addresses(v=4)))
        header = ProxyHeader((source, ports[0]), (destination, ports[1]))
        return line(family, (source, ports[0]), (destination, ports[1])), header
    if family == "TCP6":
        (source, source_as, _), (destination, destination_as, _) = draw(spelled_ipv6()), draw(spelled_ipv6())
        coded = line(family, (source, ports[0]), (destination, ports[1]))
        if len(coded) <= LINE_LENGTH_MAX:
            return coded, ProxyHeader((source_as, ports[0]), (destination_as, ports[1]))
    said = draw(st.one_of(st.just(b""), st.binary(max_size=92), st.just(b" :: :: 1 2"))).replace(b"\n", b"\r")
    return b"PROXY UNKNOWN" + said + b"\r\n", NOBODY


@st.composite
def binaries(draw: st.DrawFn) -> tuple[bytes, ProxyHeader]:
    ports = draw(PORTS), draw(PORTS)
    tlvs = b"".join(
        tlv(*it) for it in draw(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=4))
    )
    kind = draw(st.sampled_from([TCP4, TCP4, TCP6, TCP6, UNIX, UNSPEC, 0x01, 0x10, 0x20, 0x30]))
    command = draw(st.sampled_from([PROXY, PROXY, PROXY, LOCAL]))
    if command == LOCAL or kind == 0x01 or not kind & 0x0F:
        anything = draw(st.binary(max_size=40))
        least = 0 if command == LOCAL else {0x10: 12, 0x20: 36, 0x30: 216}.get(kind, 0)
        return binary(command, kind, bytes(least) + anything), NOBODY
    if kind == UNIX:
        return binary(PROXY, kind, draw(st.binary(min_size=216, max_size=216)) + tlvs), NOBODY
    if kind == TCP4:
        source, destination = draw(st.ip_addresses(v=4)), draw(st.ip_addresses(v=4))
        addresses = block((source.packed, ports[0]), (destination.packed, ports[1]))
        header = ProxyHeader((str(source), ports[0]), (str(destination), ports[1]))
        return binary(PROXY, kind, addresses + tlvs), header
    (_, source_as, source_bytes), (_, destination_as, destination_bytes) = (
        draw(spelled_ipv6()),
        draw(spelled_ipv6()),
    )
    addresses = block((source_bytes, ports[0]), (destination_bytes, ports[1]))
    return binary(PROXY, kind, addresses + tlvs), ProxyHeader(
        (source_as, ports[0]), (destination_as, ports[1])
    )


HEADERS = st.one_of(lines(), binaries())


@settings(max_examples=500, deadline=None)
@given(HEADERS, SIZES)
def test_any_split_names_the_same_client_and_takes_no_byte_behind_the_header(
    stream: tuple[bytes, ProxyHeader], sizes: list[int]
) -> None:
    coded, meant = stream
    assert take(coded + AFTER, sizes) == (meant, len(coded))
    assert take(coded, [1] * len(coded)) == (meant, len(coded))


@settings(deadline=None)
@given(HEADERS, SIZES)
def test_no_more_is_wanted_than_the_header_has_left(
    stream: tuple[bytes, ProxyHeader], sizes: list[int]
) -> None:
    coded, _ = stream
    reader, position, arrivals = ProxyHeaderReader(), 0, iter(sizes)
    while position < len(coded):
        assert 0 < reader.wanted <= len(coded) - position
        size = min(next(arrivals, len(coded)), reader.wanted)
        reader.feed(coded[position : position + size])
        position += size
    assert reader.wanted == 0


def wanted(data: bytes) -> int:
    reader = ProxyHeaderReader()
    for at in range(len(data)):
        reader.feed(data[at : at + 1])
    return reader.wanted


def test_the_first_read_asks_for_the_shortest_header_and_no_more() -> None:
    assert wanted(b"") == len(b"PROXY UNKNOWN\r\n") == 15
    assert wanted(b"PROXY") == 10


def test_a_line_is_taken_two_bytes_at_a_time_and_the_last_alone() -> None:
    coded = line("TCP4", ("1.2.3.4", 5), ("6.7.8.9", 10))
    assert [wanted(coded[:at]) for at in range(15, len(coded) + 1)] == [2] * (len(coded) - 16) + [1, 0]
    assert [wanted(b"PROXY UNKNOWN" + said) for said in (b"", b"\r", b"\r\r", b"\rx", b"\r\n")] == [
        2,
        1,
        1,
        2,
        0,
    ]


def test_version_2_is_taken_as_its_fixed_part_and_then_as_its_announced_length() -> None:
    coded = fixed(PROXY, TCP4, 300)
    assert [wanted(coded[:at]) for at in (1, 12, 15, 16)] == [15, 4, 1, 300]
    assert wanted(coded + BLOCK4) == 288


def test_taking_more_than_is_wanted_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        ProxyHeaderReader().feed(b"PROXY UNKNOWN\r\nG")


FF = "ffff:ffff:ffff:ffff:ffff:ffff:"
READ = {
    "the specification's example": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        ProxyHeader(("192.168.0.1", 56_324), ("192.168.0.11", 443)),
    ),
    "the longest TCP4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        ProxyHeader(("255.255.255.255", 65_535), ("255.255.255.255", 65_535)),
    ),
    "the shortest TCP4": (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", ProxyHeader(("0.0.0.0", 0), ("0.0.0.0", 0))),
    "the longest plain TCP6": (
        f"PROXY TCP6 {FF}ffff:ffff {FF}FFFF:FFFF 65535 65535\r\n".encode(),
        ProxyHeader((f"{FF}ffff:ffff", 65_535), (f"{FF}ffff:ffff", 65_535)),
    ),
    "the shortest TCP6": (b"PROXY TCP6 :: :: 0 0\r\n", ProxyHeader(("::", 0), ("::", 0))),
    "an IPv4-mapped source": (
        b"PROXY TCP6 ::ffff:192.0.2.1 2001:DB8::1 1 2\r\n",
        ProxyHeader(("192.0.2.1", 1), ("2001:db8::1", 2)),
    ),
    "an IPv4-mapped destination": (
        b"PROXY TCP6 1:2:3:4:5:6:7:: ::FFFF:c000:201 1 2\r\n",
        ProxyHeader(("1:2:3:4:5:6:7:0", 1), ("192.0.2.1", 2)),
    ),
    "UNKNOWN alone": (b"PROXY UNKNOWN\r\n", NOBODY),
    "UNKNOWN with addresses": (b"PROXY UNKNOWN 1.2.3.4 5.6.7.8 1 2\r\n", NOBODY),
    "UNKNOWN with anything": (b"PROXY UNKNOWN\x00\n\r \xff\r\r\n", NOBODY),
    "version 2, TCP over IPv4": (binary(PROXY, TCP4, BLOCK4), HEADER4),
    "version 2, TCP over IPv6": (
        binary(PROXY, TCP6, bytes(15) + b"\x01" + b"\x20\x01" + bytes(14) + b"\x00\x01\xff\xff"),
        ProxyHeader(("::1", 1), ("2001::", 65_535)),
    ),
    "version 2, IPv4 mapped": (
        binary(
            PROXY, TCP6, bytes(10) + b"\xff\xff\x01\x02\x03\x04" + bytes(15) + b"\x01" + b"\x00\x01\x00\x02"
        ),
        ProxyHeader(("1.2.3.4", 1), ("::1", 2)),
    ),
    "TLVs": (binary(PROXY, TCP4, BLOCK4 + tlv(4, b"") + tlv(0xEA, b"x" * 256) + tlv(3, b"nocrc")), HEADER4),
    "LOCAL with nothing": (binary(LOCAL, UNSPEC, b""), NOBODY),
    "LOCAL with addresses": (binary(LOCAL, TCP4, BLOCK4), NOBODY),
    "LOCAL with fewer than its family's addresses": (binary(LOCAL, TCP6, b"x"), NOBODY),
    "LOCAL of datagrams": (binary(LOCAL, 0x12, b""), NOBODY),
    "sockets of a file system": (binary(PROXY, UNIX, b"/" * 216 + tlv(4, b"x")), NOBODY),
}


@pytest.mark.parametrize("what", READ)
def test_a_header_names_whom_it_names(what: str) -> None:
    coded, meant = READ[what]
    assert take(coded + AFTER, []) == (meant, len(coded))


@pytest.mark.parametrize(("kind", "least"), [(UNSPEC, 0), (0x01, 0), (0x10, 12), (0x20, 36), (0x30, 216)])
@pytest.mark.parametrize("more", [b"", b"x", b"not a TLV"])
def test_what_is_unspecified_names_nobody_and_is_skipped(kind: int, least: int, more: bytes) -> None:
    coded = binary(PROXY, kind, b"\x01" * least + more)
    assert take(coded + AFTER, []) == (NOBODY, len(coded))


# What has come, and the byte that makes it hopeless.
MALFORMED = {
    "a request": (b"", b"G"),
    "a TLS ClientHello": (b"", b"\x16"),
    "a request by a method that begins alike": (b"P", b"O"),
    "another case": (b"PROXY TCP", b"t"),
    "no space after PROXY": (b"PROXY", b"\t"),
    "two spaces after PROXY": (b"PROXY ", b" "),
    "UDP": (b"PROXY ", b"D"),
    "another TCP": (b"PROXY TCP", b"5"),
    "TCP4 and no more": (b"PROXY TCP4", b"\r"),
    "UNKNOWN cut short": (b"PROXY UNKNOW", b"\r"),
    "two spaces before the source": (b"PROXY TCP4 ", b" "),
    "two spaces before the destination": (b"PROXY TCP4 1.2.3.4 ", b" "),
    "two spaces before the source's port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 ", b" "),
    "two spaces before the destination's port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 ", b" "),
    "a tab": (b"PROXY TCP4 1.2.3.4", b"\t"),
    "a space at the end": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2", b" "),
    "NUL in an address": (b"PROXY TCP4 1.2.3.4", b"\x00"),
    "an octet above 255": (b"PROXY TCP4 25", b"6"),
    "an octet of four digits": (b"PROXY TCP4 100", b"0"),
    "a leading zero in an octet": (b"PROXY TCP4 0", b"1"),
    "an empty octet": (b"PROXY TCP4 1.", b"."),
    "three octets": (b"PROXY TCP4 1.2.3", b" "),
    "five octets": (b"PROXY TCP4 1.2.3.4", b"."),
    "a network": (b"PROXY TCP4 1.2.3.4", b"/"),
    "a sign": (b"PROXY TCP4 ", b"-"),
    "a digit that is not ASCII": (b"PROXY TCP4 1.2.3.", b"\xb2"),
    "IPv6 in TCP4": (b"PROXY TCP4 ", b":"),
    "IPv4 in TCP6": (b"PROXY TCP6 1", b"."),
    "IPv4 in TCP6's destination": (b"PROXY TCP6 ::1 127", b"."),
    "a group of five digits": (b"PROXY TCP6 1234", b"5"),
    "a letter that is no digit": (b"PROXY TCP6 f", b"g"),
    "a second double colon": (b"PROXY TCP6 1::2:", b":"),
    "three colons": (b"PROXY TCP6 1::", b":"),
    "one colon first": (b"PROXY TCP6 :", b"1"),
    "seven groups": (b"PROXY TCP6 1:2:3:4:5:6:7", b" "),
    "nine groups": (b"PROXY TCP6 1:2:3:4:5:6:7:8", b":"),
    "one colon last": (b"PROXY TCP6 1:2:3:4:5:6:7:", b" "),
    "nine groups with a double colon": (b"PROXY TCP6 1::3:4:5:6:7:8", b":"),
    "a zone": (b"PROXY TCP6 fe80::1", b"%"),
    "a zone of the destination": (b"PROXY TCP6 ::1 fe80::1", b"%"),
    "a leading zero in an embedded IPv4": (b"PROXY TCP6 ::ffff:1.0", b"2"),
    "brackets": (b"PROXY TCP6 ", b"["),
    "a malformed destination": (b"PROXY TCP4 1.2.3.4 25", b"6"),
    "a destination cut short": (b"PROXY TCP4 1.2.3.4 5.6.7", b" "),
    "a port above 65535": (b"PROXY TCP4 1.2.3.4 5.6.7.8 6553", b"6"),
    "a port of six digits": (b"PROXY TCP4 1.2.3.4 5.6.7.8 10000", b"0"),
    "a leading zero in a port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 0", b"1"),
    "a port in hexadecimal": (b"PROXY TCP4 1.2.3.4 5.6.7.8 0", b"x"),
    "a port with a sign": (b"PROXY TCP4 1.2.3.4 5.6.7.8 ", b"+"),
    "a port with an underscore": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1", b"_"),
    "a port that is an address": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1", b"."),
    "a second port above 65535": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 6553", b"6"),
    "a leading zero in the second port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 0", b"0"),
    "a field too many": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2", b" "),
    "no addresses": (b"PROXY TCP4 ", b"\r"),
    "no destination": (b"PROXY TCP4 1.2.3.4", b"\r"),
    "no ports": (b"PROXY TCP4 1.2.3.4 5.6.7.8", b"\r"),
    "one port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1", b"\r"),
    "an empty second port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 ", b"\r"),
    "bare LF": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2", b"\n"),
    "bare CR": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r", b"G"),
    "two CR": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r", b"\r"),
    "an UNKNOWN too long": (b"PROXY UNKNOWN" + b"x" * 92, b"x"),
    "an UNKNOWN too long by its LF": (b"PROXY UNKNOWN" + b"\n" * 92, b"\n"),
    "an UNKNOWN too long after a CR": (b"PROXY UNKNOWN" + b"x" * 92 + b"\r", b"\r"),
    "a destination that leaves no room": (
        f"PROXY TCP6 {FF}255.255.255.255 {FF}255.255.255.25".encode(),
        b"5",
    ),
    "a port that leaves no room": (f"PROXY TCP6 {FF}255.255.255.255 {FF}255.255.255.2 12".encode(), b"3"),
    "a second port that leaves no room": (
        f"PROXY TCP6 {FF}255.255.255.255 {FF}255.255.255.2 1 23".encode(),
        b"4",
    ),
    "another signature": (b"\r\n\r\n\x00\r\nQUIT", b"\r"),
    "empty lines before a request": (b"\r\n", b"G"),
    "a binary header's version 1": (SIGNATURE, b"\x11"),
    "a binary header's version 3": (SIGNATURE, b"\x31"),
    "an unknown command": (SIGNATURE, b"\x22"),
    "a family above UNIX": (SIGNATURE + b"\x21", b"\x41"),
    "datagrams over IPv4": (SIGNATURE + b"\x21", b"\x12"),
    "datagrams over IPv6": (SIGNATURE + b"\x21", b"\x22"),
    "datagrams of a file system": (SIGNATURE + b"\x21", b"\x32"),
    "datagrams of no family": (SIGNATURE + b"\x21", b"\x02"),
    "an unknown transport": (SIGNATURE + b"\x21", b"\x13"),
    "no room for IPv4 addresses": (fixed(PROXY, TCP4, 11)[:-1], b"\x0b"),
    "no room for IPv6 addresses": (fixed(PROXY, TCP6, 35)[:-1], b"\x23"),
    "no room for a file system's addresses": (fixed(PROXY, UNIX, 215)[:-1], b"\xd7"),
    "no room for IPv4 addresses of an unspecified transport": (fixed(PROXY, 0x10, 11)[:-1], b"\x0b"),
    "no room for IPv6 addresses of an unspecified transport": (fixed(PROXY, 0x20, 35)[:-1], b"\x23"),
    "no room for a file system's of an unspecified transport": (fixed(PROXY, 0x30, 215)[:-1], b"\xd7"),
    "no room for a TLV of one byte": (fixed(PROXY, TCP4, 13)[:-1], b"\x0d"),
    "no room for a TLV of two bytes": (fixed(PROXY, TCP4, 14)[:-1], b"\x0e"),
    "a length above its bound": (fixed(PROXY, TCP4, 2049)[:-1], b"\x01"),
    "a LOCAL's length above its bound": (fixed(LOCAL, UNSPEC, 2049)[:-1], b"\x01"),
    "a length above its bound by its first byte": (SIGNATURE + b"\x21\x11", b"\x09"),
    "a TLV longer than what is left": (fixed(PROXY, TCP4, 16) + BLOCK4 + b"\x04\x00", b"\x02"),
    "a TLV longer by its first byte": (fixed(PROXY, TCP4, 270) + BLOCK4 + b"\x04", b"\x01"),
    "a TLV that leaves one byte": (fixed(PROXY, TCP4, 16) + BLOCK4 + b"\x04\x00", b"\x00"),
    "a TLV that leaves two bytes": (fixed(PROXY, UNIX, 222) + bytes(216) + b"\x04\x00", b"\x01"),
    "a second TLV longer than what is left": (
        fixed(PROXY, TCP4, 19) + BLOCK4 + tlv(4, b"x") + b"\x04\x00",
        b"\x01",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_cannot_become_a_header_is_refused_at_the_byte_that_says_so(what: str) -> None:
    good, bad = MALFORMED[what]
    assert first_refused(good + bad + AFTER) == len(good)


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("size", [1, 2, 7, 1 << 20])
def test_what_is_malformed_is_refused_by_the_read_that_brings_it(what: str, size: int) -> None:
    good, bad = MALFORMED[what]
    with pytest.raises(ProxyHeaderError):
        take(good + bad + b"\r", [size] * len(good))


PIECES = [
    b"", b" ", b"\r", b"\n", b"\r\n", b"0", b"1", b"9", b"f", b"F", b"g", b":", b"::", b".", b".1", b"%", b"-", b"\x00",
    b"\x01", b"\x0c", b"\xff", b"\xb9", b"1:2:3", b"65535",
]  # fmt: skip


@st.composite
def tampered(draw: st.DrawFn) -> bytes:
    data, _ = draw(HEADERS)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(PIECES)) + data[at + draw(st.integers(0, 2)) :]
    return data


def outcome(data: bytes, sizes: list[int]) -> tuple[ProxyHeader | None, int] | str:
    try:
        return take(data, sizes)
    except ProxyHeaderError:
        return "refused"


@settings(max_examples=500, deadline=None)
@given(tampered(), SIZES)
def test_a_tampered_header_has_one_outcome_in_any_split(data: bytes, sizes: list[int]) -> None:
    at_once, split, bytewise = outcome(data, []), outcome(data, sizes), outcome(data, [1] * len(data))
    event("refused" if at_once == "refused" else "read")
    assert at_once == split == bytewise


def ways_on(data: bytes) -> Iterator[bytes]:
    """Ends that may make a header of a beginning; one of them does, if any does."""
    if not data.startswith(b"\r"):
        for start in (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN"):
            if start.startswith(data[:13]):
                yield (
                    start[len(data) :]
                    + {b"4": b"0.0.0.0 0.0.0.0 0 0", b"6": b":: :: 0 0"}.get(start[9:10], b"")
                    + b"\r\n"
                )
        endings = ["", "0", ":", "::", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "0.0.0.0"]
        rests = ["\r\n", " 0\r\n", " 0 0\r\n", " :: 0 0\r\n", " 0.0.0.0 0 0\r\n"]
        yield b"\n"
        yield from ((ending + rest).encode() for ending, rest in product(endings, rests))
        return
    whole = data + fixed(PROXY, TCP4, 300)[len(data) :]
    if len(data) == 15:
        whole = data + (b"\x00" if data[14] == 8 else b"\xf0")
    left = 16 + int.from_bytes(whole[14:16], "big") - len(whole)
    bodies = [bytes(left)]
    bodies += [bytes(some) + tlv(0, bytes(left - some - 3)) for some in range(left - 2)]
    bodies += [(left - 2).to_bytes(2, "big") + bytes(left - 2)] if left >= 2 else []
    bodies += [bytes([(left - 1) & 0xFF]) + bytes(left - 1)] if left >= 1 else []
    yield from (whole[len(data) :] + body for body in bodies)


def is_read(data: bytes) -> bool:
    found = outcome(data, [])
    return found != "refused" and found[0] is not None and found[1] == len(data)


@settings(max_examples=400, deadline=None)
@given(st.one_of(tampered(), HEADERS.map(lambda header: header[0])), st.data())
def test_what_is_not_refused_can_still_become_a_header(data: bytes, drawn: st.DataObject) -> None:
    refused = first_refused(data)
    length = len(data) if refused is None else refused
    beginning = data[: length - drawn.draw(st.one_of(st.just(0), st.integers(0, length)))]
    if outcome(beginning, []) != (None, len(beginning)):
        event("a whole header lies in it")
        return
    assert any(is_read(beginning + way) for way in ways_on(beginning))


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_line_may_just_be_as_long_as_its_bound(size: int) -> None:
    longest = f"PROXY TCP6 {FF}255.255.255.255 {FF}255.255.255.25 1 2\r\n".encode()
    unknown = b"PROXY UNKNOWN" + b"x" * 92 + b"\r\n"
    assert len(longest) == len(unknown) == LINE_LENGTH_MAX == 107
    sizes = [size] * LINE_LENGTH_MAX
    meant = ProxyHeader((f"{FF}ffff:ffff", 1), (f"{FF}ffff:ff19", 2))
    assert take(longest + AFTER, sizes) == (meant, LINE_LENGTH_MAX)
    assert take(unknown + AFTER, sizes) == (NOBODY, LINE_LENGTH_MAX)


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_a_binary_header_may_just_be_as_long_as_its_bound(size: int) -> None:
    one = binary(PROXY, TCP4, BLOCK4 + tlv(4, b"x" * (BLOCK_LENGTH_MAX - 15)))
    many = binary(PROXY, UNIX, bytes(216) + tlv(4, b"") * 609 + tlv(4, b"xx"))
    assert len(one) == len(many) == 16 + BLOCK_LENGTH_MAX == 2064
    assert take(one + AFTER, [size] * len(one)) == (HEADER4, len(one))
    assert take(many + AFTER, [size] * len(many)) == (NOBODY, len(many))


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(ProxyHeaderError) as refused:
        take(b"PROXY TCP4 1.2.3.4.secret", [])
    assert "1.2" not in str(refused.value)
