"""Which request may become a tunnel, and which 101 makes it one: everything else is read as HTTP to its end."""

import pytest

from gateway.http1.head import RequestHead, parse_request, parse_response
from gateway.http1.upgrade import is_granted, wanted_upgrade, websocket_accept

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The key and its answer of RFC 6455 §1.3."""
HANDSHAKE = (
    b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + KEY,
)  # fmt: skip


def head_with(*lines: bytes, method: bytes = b"GET", minor: int = 1) -> RequestHead:
    request = b"%b /x HTTP/1.%d\r\nHost: a\r\n" % (method, minor)
    request += b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    return parse_request(request, field_count_max=100, target_length_max=8192)


def handshake(without: bytes = b"\x00", *lines: bytes) -> RequestHead:
    """A WebSocket handshake, but for the line that begins like this one, and with these."""
    return head_with(*(line for line in HANDSHAKE if not line.startswith(without)), *lines)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ((b"Connection: upgrade", b"Upgrade: echo"), b"echo"),
        ((b"connection: UPGRADE", b"UPGRADE: Echo/1.2"), b"Echo/1.2"),
        ((b"Connection: keep-alive, Upgrade", b"Upgrade: echo"), b"echo"),
        ((b"Connection: x-a", b"Connection: upgrade", b"Upgrade: echo"), b"echo"),
        ((b"Upgrade: echo", b"Connection: upgrade"), b"echo"),
        ((b"Connection: upgrade", b"Upgrade: a,b ,\tc/1"), b"a, b, c/1"),
        ((b"Connection: upgrade", b"Upgrade: a", b"Upgrade: b"), b"a, b"),
        ((b"Connection: upgrade", b"Upgrade: h2c, echo"), b"echo"),
        ((b"Connection: upgrade", b"Upgrade: TLS/1.0, HTTP/2.0, echo"), b"echo"),
        (HANDSHAKE, b"websocket"),
        ((*HANDSHAKE[:1], b"Upgrade: WebSocket, echo", *HANDSHAKE[2:]), b"WebSocket, echo"),
    ],
)  # fmt: skip
def test_a_get_without_a_body_may_ask_for_any_protocol_but_http_and_tls(
    lines: tuple[bytes, ...], wanted: bytes
) -> None:
    assert wanted_upgrade(head_with(*lines)) == wanted


@pytest.mark.parametrize(
    "value",
    [
        b"h2", b"h2c", b"H2C", b"h2c/1", b"h3", b"h2c-14", b"HTTP/2.0", b"http/1.1", b"HTTP", b"TLS/1.2", b"tls", b"SSL/3",
        b"spdy/3.1", b"h2, TLS/1.0",
    ],
)  # fmt: skip
def test_what_would_carry_requests_of_its_own_is_never_asked_for(value: bytes) -> None:
    assert wanted_upgrade(head_with(b"Connection: upgrade", b"Upgrade: " + value)) == b""


@pytest.mark.parametrize(
    "value",
    [
        b"", b",", b"a,,b", b"a b", b"a/b/c", b"/1", b"a/", b"a;q=1", b'"a"', b"a(b)", b"\xe9cho", b"echo, \xff", b"a=b",
    ],
)  # fmt: skip
def test_an_upgrade_that_is_no_list_of_protocols_is_not_one(value: bytes) -> None:
    assert wanted_upgrade(head_with(b"Connection: upgrade", b"Upgrade: " + value)) == b""


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"OPTIONS", b"PUT", b"get", b"GETX"])
def test_no_other_method_may_ask(method: bytes) -> None:
    assert wanted_upgrade(head_with(b"Connection: upgrade", b"Upgrade: echo", method=method)) == b""


@pytest.mark.parametrize(
    "line",
    [b"Content-Length: 0", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Expect: 100-continue"],
)
def test_a_request_that_speaks_of_a_body_may_not_ask(line: bytes) -> None:
    assert wanted_upgrade(head_with(b"Connection: upgrade", b"Upgrade: echo", line)) == b""


def test_http_1_0_knows_no_upgrade() -> None:
    assert wanted_upgrade(head_with(b"Connection: upgrade", b"Upgrade: echo", minor=0)) == b""


@pytest.mark.parametrize(
    "lines",
    [
        (), (b"Upgrade: echo",), (b"Connection: upgrade",), (b"Connection: close", b"Upgrade: echo"),
        (b"Connection: upgraded", b"Upgrade: echo"), (b"Connection: up grade", b"Upgrade: echo"),
        (b'Connection: "upgrade"', b"Upgrade: echo"), (b"Connection: x-upgrade", b"Upgrade: echo"),
        (b"Proxy-Connection: upgrade", b"Upgrade: echo"), (b"Connection: upgrade;q=1", b"Upgrade: echo"),
    ],
)  # fmt: skip
def test_an_upgrade_counts_only_if_connection_says_so(lines: tuple[bytes, ...]) -> None:
    assert wanted_upgrade(head_with(*lines)) == b""


@pytest.mark.parametrize(
    ("without", "lines"),
    [
        (b"Sec-WebSocket-Key", ()),
        (b"Sec-WebSocket-Version", ()),
        (b"\x00", (b"Sec-WebSocket-Key: " + KEY,)),
        (b"\x00", (b"Sec-WebSocket-Version: 13",)),
        (b"\x00", (b"Sec-WebSocket-Version: 8",)),
        (b"Sec-WebSocket-Version", (b"Sec-WebSocket-Version: 8",)),
        (b"Sec-WebSocket-Version", (b"Sec-WebSocket-Version: 13, 8",)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key:",)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key: " + KEY[:-4],)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key: " + KEY[:-1],)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key: " + KEY + KEY,)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key: " + KEY + b", " + KEY,)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ!==",)),
        (b"Sec-WebSocket-Key", (b"Sec-WebSocket-Key: \xe9GhlIHNhbXBsZSBub25jZQ==",)),
        (b"Sec-WebSocket-Key", (b"Sec_WebSocket_Key: " + KEY,)),
    ],
)
def test_a_websocket_handshake_has_one_key_of_16_bytes_and_version_13(
    without: bytes, lines: tuple[bytes, ...]
) -> None:
    assert wanted_upgrade(handshake(without, *lines)) == b""
    among_others = handshake(without, *lines, b"Upgrade: echo")
    assert wanted_upgrade(among_others) == b"", "another protocol does not make up for it"


def granted(request: RequestHead, *lines: bytes, offered: bytes | None = None) -> bool:
    answer = b"HTTP/1.1 101 Switching Protocols\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    asked = wanted_upgrade(request) if offered is None else offered
    return is_granted(request, asked, parse_response(answer, field_count_max=100))


ECHO = head_with(b"Connection: upgrade", b"Upgrade: echo, Other/2")
SWITCHES = b"Connection: Upgrade"


@pytest.mark.parametrize(
    "lines",
    [
        (SWITCHES, b"Upgrade: echo"),
        (b"connection: keep-alive, UPGRADE", b"upgrade: ECHO"),
        (b"Upgrade: other/2", SWITCHES),
        (SWITCHES, b"Upgrade: echo", b"X-A: b"),
    ],
)
def test_a_101_that_takes_up_one_of_the_protocols_grants_it(lines: tuple[bytes, ...]) -> None:
    assert granted(ECHO, *lines)


@pytest.mark.parametrize(
    "lines",
    [
        (), (SWITCHES,), (b"Upgrade: echo",), (b"Connection: close", b"Upgrade: echo"), (SWITCHES, b"Upgrade:"),
        (SWITCHES, b"Upgrade: else"), (SWITCHES, b"Upgrade: other"), (SWITCHES, b"Upgrade: other/1"),
        (SWITCHES, b"Upgrade: echo, Other/2"), (SWITCHES, b"Upgrade: echo", b"Upgrade: other/2"),
        (SWITCHES, b"Upgrade: echo,"), (SWITCHES, b"Upgrade: ec"), (SWITCHES, b"Upgrade: h2c"),
        (SWITCHES, b"Upgrade: echo", b"Content-Length: 0"), (SWITCHES, b"Upgrade: echo", b"Content-Length: 5"),
        (SWITCHES, b"Upgrade: echo", b"Transfer-Encoding: chunked"),
    ],
)  # fmt: skip
def test_a_101_that_says_anything_else_grants_nothing(lines: tuple[bytes, ...]) -> None:
    assert not granted(ECHO, *lines)


def test_a_101_that_nobody_asked_for_grants_nothing() -> None:
    assert not granted(head_with(), SWITCHES, b"Upgrade: echo")
    assert not granted(head_with(), SWITCHES, b"Upgrade:")
    assert not granted(head_with(), SWITCHES)


def test_the_answer_of_rfc_6455_goes_with_its_key() -> None:
    assert websocket_accept(KEY) == ACCEPT
    for protocol in (b"websocket", b"WebSocket"):
        assert granted(handshake(), SWITCHES, b"Upgrade: " + protocol, b"Sec-WebSocket-Accept: " + ACCEPT)


@pytest.mark.parametrize(
    "lines",
    [
        (), (b"Sec-WebSocket-Accept:",), (b"Sec-WebSocket-Accept: " + KEY,), (b"Sec-WebSocket-Accept: " + ACCEPT.lower(),),
        (b"Sec-WebSocket-Accept: " + ACCEPT, b"Sec-WebSocket-Accept: " + ACCEPT), (b"Sec_WebSocket_Accept: " + ACCEPT,),
        (b"Sec-WebSocket-Accept: " + ACCEPT + b"=",), (b"Sec-WebSocket-Accept: " + ACCEPT + b", " + ACCEPT,),
    ],
)  # fmt: skip
def test_a_websocket_without_the_one_right_answer_to_its_key_is_not_granted(lines: tuple[bytes, ...]) -> None:
    assert not granted(handshake(), SWITCHES, b"Upgrade: websocket", *lines)
