"""Requests made to be read in two ways, each with the one thing that may become of it.

A case is refused (400 or another status that is documented, and the connection ends), or it arrives as exactly one message.
Behind nearly every one, in the same bytes, comes `POISON`: a request without a token that no upstream may ever see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

TOKEN = b"@token@"
"""Stands for the workload's token, as `CASE` does for the number of the case."""
CASE = b"@case@"
FORGED = b"forged-in-a-field"
"""A value that must never arrive."""

POISON = (
    b"GET /raw/poison HTTP/1.1\r\nHost: gateway.test\r\nX-Principal: service-account/acme/root\r\n"
    b"Connection: close\r\n\r\n"
)
HIDDEN = (
    b"GET /raw/poison HTTP/1.1\r\nHost: gateway.test\r\nX-Principal: service-account/acme/root\r\nX-Rest: "
)
"""The beginning of a request that would swallow what comes behind it."""

REFUSED = (400,)
PASSED = (200, 401)
"""It arrived as one message; the poison was a request of its own, and had no token."""
LAST = (200,)
"""It arrived as one message, and nothing that came behind it was read."""
UNROUTED = (404, 401)


@dataclass(frozen=True, slots=True)
class Case:
    """`data` is sent with what comes behind it at once; `rest` not before its head has reached the upstream."""

    name: str
    data: bytes
    statuses: tuple[int, ...] = REFUSED
    """Of all answers, interim ones aside; then the connection is closed."""
    body: bytes | None = None
    """What the message that arrives has as its body."""
    target: bytes | None = None
    behind: bytes = field(default=POISON, repr=False)
    rest: bytes = b""
    hangs_up: bool = False
    """The client says that it sends no more."""


LINE = b"POST /raw/" + CASE + b" HTTP/1.1"
HOST = b"Host: gateway.test"
AUTHORIZATION = b"Authorization: Bearer " + TOKEN


def request(*lines: bytes, first: bytes = LINE, host: bytes = HOST, body: bytes = b"") -> bytes:
    """A request with Host, the token and these lines."""
    head = [first, host, AUTHORIZATION, *lines] if host else [first, AUTHORIZATION, *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def get(*lines: bytes, target: bytes = b"/raw/" + CASE, host: bytes = HOST) -> bytes:
    return request(*lines, first=b"GET " + target + b" HTTP/1.1", host=host)


def with_length(*lines: bytes, body: bytes) -> bytes:
    return request(*lines, b"Content-Length: %d" % len(body), body=body)


def chunked(coded: bytes) -> bytes:
    return request(b"Transfer-Encoding: chunked", body=coded)


def shown(data: bytes) -> str:
    """For names of cases: what is long, by its ends."""
    text = data.decode("latin-1").encode("unicode_escape").decode()
    return text if len(text) <= 90 else f"{text[:60]}...{text[-20:]}"


def each(
    kind: str,
    values: Iterable[bytes],
    made: Callable[[bytes], bytes],
    statuses: tuple[int, ...] = REFUSED,
    body: bytes | None = None,
) -> Iterator[Case]:
    """A case for each of these values, with the same thing to become of it."""
    for value in values:
        yield Case(f"{kind} {shown(value)}", made(value), statuses, body)


# -- framing: which of two lengths, or whether there is one

_CODINGS_REFUSED = (
    b"", b" xchunked", b" chunkedx", b" chunked, chunked", b" chunked,", b" ,chunked", b" chunked, identity",
    b" identity, chunked", b" gzip, chunked", b" chunked, gzip", b' "chunked"', b" 'chunked'", b" chunked;q=1",
    b" chunked ; a=b", b" chun ked", b" chu\tnked", b"\x0bchunked", b" \x0cchunked", b" chunked\x0b", b" chunked\x00",
    b" \x00chunked", b" chunked\x1f", b" \x7fchunked", b" \xa0chunked", b" chunked\xa0", b" chun\xe2\x84\xaaed",
    b" \xef\xbb\xbfchunked", b" \xe2\x80\x8bchunked", b" [chunked]", b" chunked=1", b" chunked/1.0", b" chunked\\",
    b" ,", b" chunked\n", b" \nchunked", b" chunked\r", b" \rchunked", b"\r\n chunked", b"\r\n\tchunked",
    b" chunked\r\n ", b" chunked\r\n\tidentity", b" identity\r\n chunked", b": chunked", b" chunked: chunked",
)  # fmt: skip
_CODINGS_UNKNOWN = (
    b" identity",
    b" gzip",
    b" cow",
    b" chunke",
    b" gzip, deflate",
    b" x-chunk",
    b" %63hunked",
)
_CODINGS_GOOD = (b"chunked", b" CHUNKED", b" Chunked", b"\tchunked", b" \t chunked \t ")
_CODING_LINES_REFUSED = (
    b"Transfer-Encoding : chunked", b"Transfer-Encoding\t: chunked", b"Transfer-Encoding\x0b: chunked",
    b"Transfer-Encoding\xa0: chunked", b" Transfer-Encoding: chunked", b"\tTransfer-Encoding: chunked",
    b"\x0bTransfer-Encoding: chunked", b"Transfer\r\n-Encoding: chunked", b"Transfer-Encoding\r\n: chunked",
    b"X-A: b\nTransfer-Encoding: chunked", b"X-A: b\rTransfer-Encoding: chunked",
    b"X-A: b\x00Transfer-Encoding: chunked", b"X-A: b\n\rTransfer-Encoding: chunked",
    b"X-A: b\r\r\nTransfer-Encoding: chunked", b"Transfer-\x00Encoding: chunked", b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding;: chunked", b"Transfer-Encoding=chunked", b"Transfer-Encoding chunked",
    b"Transfer Encoding: chunked", b"Transfer\xadEncoding: chunked", b'"Transfer-Encoding": chunked',
    b"(Transfer-Encoding): chunked", b"Transfer-Encoding,: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
    b"Transfer-Encoding: chunked\r\nTRANSFER-ENCODING: identity", b"Transfer-Encoding: chunked\r\nTransfer-encoding:",
    b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
)  # fmt: skip
_IMITATIONS = (
    b"Transfer_Encoding: chunked", b"Transfer.Encoding: chunked", b"TRANSFER~ENCODING: chunked",
    b"Transfer-Encodin: chunked", b"X-Transfer-Encoding: chunked", b"TransferEncoding: chunked",
    b"Transfer--Encoding: chunked",
)  # fmt: skip


def transfer_codings() -> Iterator[Case]:
    end = b"0\r\n\r\n"
    refused = [(b"Transfer-Encoding:" + value, 400) for value in _CODINGS_REFUSED]
    refused += [(line, 400) for line in _CODING_LINES_REFUSED]
    refused += [(b"Transfer-Encoding:" + value, 501) for value in _CODINGS_UNKNOWN]
    refused += [(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", 501)]
    for line, status in refused:
        yield Case(f"coding alone {shown(line)}", request(line, body=end), (status,))
        yield Case(f"coding and length {shown(line)}", with_length(line, body=end + HIDDEN), (status,))
    for value in _CODINGS_GOOD:
        line = b"Transfer-Encoding:" + value
        yield Case(
            f"good coding {shown(value)}", request(line, body=b"3\r\nabc\r\n0\r\n\r\n"), PASSED, b"abc"
        )
        yield Case(f"good coding and length {shown(value)}", with_length(line, body=end + HIDDEN))
        yield Case(
            f"length and good coding {shown(value)}",
            request(b"Content-Length: 4", line, body=b"5c\r\n" + HIDDEN),
        )
        old = LINE.replace(b"1.1", b"1.0")
        yield Case(f"coding in 1.0 {shown(value)}", request(line, first=old, body=end))
        keeps = b"Connection: keep-alive"
        yield Case(f"coding in kept 1.0 {shown(value)}", request(line, keeps, first=old, body=end))
    for line in _IMITATIONS:
        yield Case(f"no coding {shown(line)}", request(line, body=end), (200, 400), b"")
        body = end + HIDDEN
        yield Case(f"no coding but a length {shown(line)}", with_length(line, body=body), PASSED, body)


_LENGTHS_REFUSED = (
    b"", b" ", b" +5", b" -5", b" -0", b" 0x5", b" 5 5", b" 5,5", b" 5, 5", b" 5,", b" ,5", b' "5"', b" '5'", b" 5.0",
    b" 5e0", b" 5;q=1", b" 5\x00", b" \x005", b" 5\x0b", b" \x0c5", b" 5\xa0", b" \xb5", b" \xd9\xa5", b" 0b101",
    b" 1_0", b" 5h", b" h", b" five", b" 00000000000000000005", b" 18446744073709551621", b" 99999999999999999999999",
    b" 4294967301:5", b" 5\n", b" \n5", b" 5\r", b"\r\n 5", b"\r\n\t5", b" 5\r\n ", b" 5\r\n 6",
    b" 5\r\nContent-Length: 5", b" 5\r\nContent-Length: 6", b": 5", b" 6\r\nContent-Length: 5",
    b" 5\r\ncontent-length:", b" 0\r\nCONTENT-LENGTH: 5", b" 5\r\nContent-Length: 0", b" %35", b" (5)",
)  # fmt: skip
_LENGTH_LINES_REFUSED = (
    b"Content-Length : 5", b"Content-Length\t: 5", b" Content-Length: 5", b"\tContent-Length: 5",
    b"Content-Length\x00: 5", b"X-A: b\nContent-Length: 5", b"X-A: b\rContent-Length: 5", b"Content-Length 5",
    b"Content-Length=5", b"Content Length: 5", b"Content-Length\r\n: 5", b"Content-\r\n Length: 5",
    b"Content-Length,: 5", b"\x0cContent-Length: 5", b"Content-Length\xa0: 5",
)  # fmt: skip


def lengths() -> Iterator[Case]:
    yield from each("length", _LENGTHS_REFUSED, lambda it: request(b"Content-Length:" + it, body=b"hello"))
    yield from each("length line", _LENGTH_LINES_REFUSED, lambda it: request(it, body=b"hello"))
    for value in (b"5", b" 05", b" 000000000000000005", b"\t5 ", b" \t 5\t"):
        good = request(b"Content-Length:" + value, body=b"hello")
        yield Case(f"good length {shown(value)}", good, PASSED, b"hello")
    yield Case("a length that is too large", request(b"Content-Length: 99999999999999"), (413,))
    imitations = (b"Content_Length: 5", b"Content.Length: 5", b"X-Content-Length: 5", b"ContentLength: 5")
    yield from each("no length", imitations, lambda it: request(it, body=b"hello"), PASSED, b"")
    body = b"0\r\n\r\n" + POISON
    yield Case("a request within a body of a POST", with_length(body=body), PASSED, body)
    within = get(b"Content-Length: %d" % len(POISON)) + POISON
    yield Case("a request within a body of a GET", within, PASSED, POISON)
    yield Case(
        "a chunked body of a GET",
        get(b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        PASSED,
        b"abc",
    )
    head = request(b"Content-Length: 3", first=b"HEAD /raw/" + CASE + b" HTTP/1.1", body=b"abc")
    yield Case("a body of a HEAD", head, PASSED, b"abc")
    options = request(b"Content-Length: 3", first=b"OPTIONS /raw/" + CASE + b" HTTP/1.1", body=b"abc")
    yield Case("a body of an OPTIONS", options, PASSED, b"abc")
    yield Case("a POST without a framing", request(), PASSED, b"")
    yield Case("a length of 0 before a request", request(b"Content-Length: 0"), PASSED, b"")
    old = LINE.replace(b"1.1", b"1.0")
    yield Case("1.0 with a length", request(b"Content-Length: 5", first=old, body=b"hello"), LAST, b"hello")
    kept = request(b"Content-Length: 5", b"Connection: keep-alive", first=old, body=b"hello")
    yield Case("1.0 kept with a length", kept, PASSED, b"hello")
    yield Case("1.0 without a length", request(first=old, body=b"hello"), LAST, b"")


# -- chunked bodies

_CODED_REFUSED = (
    b"0x3\r\nabc\r\n0\r\n\r\n", b"+3\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n", b"0_3\r\nabc\r\n0\r\n\r\n",
    b" 3\r\nabc\r\n0\r\n\r\n", b"3 \r\nabc\r\n0\r\n\r\n", b"3\t\r\nabc\r\n0\r\n\r\n", b"3\x00\r\nabc\r\n0\r\n\r\n",
    b"3\x0b\r\nabc\r\n0\r\n\r\n", b"3,\r\nabc\r\n0\r\n\r\n", b"3h\r\nabc\r\n0\r\n\r\n", b"g\r\n0\r\n\r\n",
    b"\r\n3\r\nabc\r\n0\r\n\r\n", b"\xef\xbc\x93\r\nabc\r\n0\r\n\r\n", b'"3"\r\nabc\r\n0\r\n\r\n',
    b"3.0\r\nabc\r\n0\r\n\r\n", b"0" * 16 + b"\r\n\r\n", b"0000000000000003\r\nabc\r\n0\r\n\r\n",
    b"10000000000000003\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    b"8000000000000000\r\nabc\r\n0\r\n\r\n", b"3\nabc\r\n0\r\n\r\n", b"3\rabc\r\n0\r\n\r\n", b"3\r\rabc\r\n0\r\n\r\n",
    b"3\n\rabc\r\n0\r\n\r\n", b"3\r\nabc\n0\r\n\r\n", b"3\r\nabc\r0\r\n\r\n", b"3\r\nabc0\r\n\r\n",
    b"3\r\nabcXX0\r\n\r\n", b"3\r\nabc\r\n\r\n0\r\n\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"4\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\n\r0\r\n\r\n", b"3;\nabc\r\n0\r\n\r\n", b"3;\rabc\r\n0\r\n\r\n", b"3;a=\x00\r\nabc\r\n0\r\n\r\n",
    b"3;a=\n3\r\nabc\r\n0\r\n\r\n", b"3;a\x0b\r\nabc\r\n0\r\n\r\n", b"3;a=\x7f\r\nabc\r\n0\r\n\r\n",
    b'3;a="\n"\r\nabc\r\n0\r\n\r\n', b"3;" + b"a" * 1100 + b"\r\nabc\r\n0\r\n\r\n", b"3 a=b\r\nabc\r\n0\r\n\r\n",
    (b"1;" + b"a" * 500 + b"\r\nx\r\n") * 60 + b"0\r\n\r\n", b"0\n\r\n", b"0\r\r\n\r\n", b"0\r\n\n", b"0\r\n\rX",
    b"0;\n\r\n", b"-0\r\n\r\n", b"0\r\nX-A: b\n\r\n", b"0\r\nX-A: b\r\n\n\r\n", b"0\r\nX-A: b\rX-C: d\r\n\r\n",
    b"0\r\nX-A : b\r\n\r\n", b"0\r\n X-A: b\r\n\r\n", b"0\r\nX-A: b\r\n c\r\n\r\n", b"0\r\n: b\r\n\r\n",
    b"0\r\nno colon\r\n\r\n", b"0\r\nX-A: \x00\r\n\r\n", b"0\r\nX-\x00A: b\r\n\r\n", b"0\r\nX\xe9: b\r\n\r\n",
    b"0\r\nX-A: \x0b\r\n\r\n", b"0\r\nContent-Length: x\r\n\r\n", b"0\r\nHost: a b\r\n\r\n",
    b"0\r\nGET / HTTP/1.1\r\n\r\n", b"0\r\n" + b"X-A: b\r\n" * 65 + b"\r\n", b"0\r\nX-A: " + b"b" * 9000 + b"\r\n\r\n",
)  # fmt: skip
_CODED_GOOD = (
    b"3;a=b\r\nabc\r\n0\r\n\r\n", b"3;a\r\nabc\r\n0;b\r\n\r\n", b'3;a="x;y"\r\nabc\r\n0\r\n\r\n',
    b"3 ; a=b\r\nabc\r\n0\r\n\r\n", b"03\r\nabc\r\n00\r\n\r\n", b'3;a="\r\nabc\r\n0\r\n\r\n',
    b"000000000000003\r\nabc\r\n0\r\n\r\n", b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", b"3;\xff\r\nabc\r\n0\r\n\r\n",
)  # fmt: skip
_FORGED_TRAILERS = (
    b"X-Principal: " + FORGED, b"x_principal: " + FORGED, b"X-Principal-Id:" + FORGED, b"X-PRINCIPAL-KEY-ID: " + FORGED,
    b"X.Principal: " + FORGED, b"X-Principal_Organization: " + FORGED, b"Host: " + FORGED,
    b"Authorization: Bearer " + FORGED, b"X-Api-Key: " + FORGED, b"Transfer-Encoding: " + FORGED,
    b"Connection: " + FORGED, b"Content-Length: 5\r\nX-Request-Id: " + FORGED, b"Proxy-Authorization: " + FORGED,
    b"Forwarded: for=" + FORGED, b"X-Forwarded-For: " + FORGED, b"Upgrade: " + FORGED, b"Expect: " + FORGED,
    b"TE: " + FORGED, b"Transfer_Encoding: " + FORGED, b"X-Plain: " + TOKEN, b"X-Forwarded-Host: " + FORGED,
)  # fmt: skip


def bodies_in_chunks() -> Iterator[Case]:
    head = chunked(b"")
    for coded in _CODED_REFUSED:
        yield Case(f"chunks {shown(coded)}", head + coded)
        yield Case(f"late chunks {shown(coded)}", head + b"1\r\nz\r\n", behind=b"", rest=coded + POISON)
    for coded in _CODED_GOOD:
        yield Case(f"good chunks {shown(coded)}", head + coded, PASSED, b"abc")
        begun = head + b"1\r\nz\r\n"
        name, rest = f"late good chunks {shown(coded)}", coded + POISON
        yield Case(name, begun, PASSED, b"zabc", behind=b"", rest=rest)
    forged = head + b"3\r\nabc\r\n0\r\n%b\r\nSum: 1\r\n\r\n"
    yield from each("trailer", _FORGED_TRAILERS, lambda it: forged % it, PASSED, b"abc")
    yield Case("a chunk without an end", head + b"fffffffffffffff\r\nabc\r\n0\r\n\r\n", (408,))
    within = b"%x\r\n%b\r\n0\r\n\r\n" % (len(POISON), POISON)
    yield Case("a request in a chunk", head + within, PASSED, POISON)


# -- upgrades and expectations

_HANDSHAKE = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
_KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
_KEYS = (
    _KEY, _KEY + b"\r\n" + _KEY, b"Sec-WebSocket-Key: c2hvcnQ=", b"Sec-WebSocket-Key: !!!", b"X-No-Key: 1",
    _KEY + b"\r\nSec-WebSocket-Version: 8", b"Sec_WebSocket_Key: dGhlIHNhbXBsZSBub25jZQ==", _KEY + b", x",
)  # fmt: skip
_PROTOCOLS = (
    b"h2c", b"H2C", b"h2c, websocket", b"HTTP/2.0", b"TLS/1.0", b"h2c\r\nUpgrade: websocket", b"h3", b"a b", b",",
    b"ec\xe9ho", b"h2c-14", b"spdy/3",
)  # fmt: skip
_NO_UPGRADE = (
    b"Connection: upgraded", b"Connection: keep-alive", b"Connection: x-upgrade", b"Proxy-Connection: upgrade",
    b'Connection: "upgrade"', b"Connection_: upgrade",
)  # fmt: skip


def upgrades() -> Iterator[Case]:
    asks = (b"Connection: Upgrade", b"Upgrade: echo")
    yield Case("early bytes behind an upgrade that is not granted", get(*asks), LAST, b"")
    yield Case("an upgrade of a POST", with_length(*asks, body=b"abc"), LAST, b"abc")
    yield Case("an upgrade of a POST without a body", request(*asks), LAST, b"")
    coded = request(*asks, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")
    yield Case("an upgrade of a chunked POST", coded, LAST, b"")
    with_body = get(*asks, b"Content-Length: %d" % len(POISON))
    yield Case("an upgrade of a GET with a body", with_body, LAST, POISON)
    yield Case("an upgrade of a GET with a length of 0", get(*asks, b"Content-Length: 0"), LAST, b"")
    yield Case("an upgrade that expects", get(*asks, b"Expect: 100-continue"), LAST, b"")
    yield Case("an upgrade in 1.0", request(*asks, first=b"GET /raw/" + CASE + b" HTTP/1.0"), LAST, b"")
    settings = (b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQ")
    yield from each("an upgrade to", _PROTOCOLS, lambda it: get(*settings, b"Upgrade: " + it), LAST, b"")
    yield from each("no upgrade by", _NO_UPGRADE, lambda it: get(it, b"Upgrade: echo"), PASSED, b"")
    yield from each("a websocket with", _KEYS, lambda it: get(*_HANDSHAKE, it), LAST, b"")


_UNKNOWN_EXPECTATIONS = (
    b" never", b"", b" 100-continue, 100-continue", b" y 100-continue", b" 100", b" 100-continue;q=1",
    b' "100-continue"',
)  # fmt: skip
_EXPECTS_REFUSED = (
    b"Expect : 100-continue", b"Expect:\n100-continue", b"Expect:\r\n 100-continue", b" Expect: 100-continue",
    b"Expect: 100-continue\x00", b"X-A: b\nExpect: 100-continue",
)  # fmt: skip
_EXPECTS_GOOD = (
    b"Expect: 100-Continue", b"Expect: 100-continue\r\nExpect: 100-continue", b"X-Expect: 100-continue",
    b"Expect_: 100-continue",
)  # fmt: skip


def expectations() -> Iterator[Case]:
    values, unmet = _UNKNOWN_EXPECTATIONS, (417,)
    yield from each("expects", values, lambda it: with_length(b"Expect:" + it, body=b"abc"), unmet)
    yield from each("expects by", _EXPECTS_REFUSED, lambda it: with_length(it, body=b"abc"))
    yield from each("expects well", _EXPECTS_GOOD, lambda it: with_length(it, body=b"abc"), PASSED, b"abc")
    yield Case("expects without a body", get(b"Expect: 100-continue"), PASSED, b"")
    lines = (b"Expect: 100-continue", b"Content-Length: 3")
    old = request(*lines, first=LINE.replace(b"1.1", b"1.0"), body=b"abc")
    yield Case("expects in 1.0", old, LAST, b"abc")
    unknown = b"\r\n".join((LINE, HOST, *lines, b"", b""))
    yield Case("expects without a token", unknown, (401,))
