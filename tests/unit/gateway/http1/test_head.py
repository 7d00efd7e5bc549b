"""Heads: what is accepted and how it is read; what is refused, and with which status."""

import pytest

from gateway.http1.fields import Kind
from gateway.http1.head import (
    CHUNKED,
    CLOSE_DELIMITED,
    HeadError,
    RequestHead,
    ResponseHead,
    find_head_end,
    parse_request,
    parse_response,
    reject_early,
)

HOST = b"Host: api.example\r\n"


def read(head: bytes, *, fields: int = 100, target: int = 8192) -> RequestHead:
    return parse_request(head, field_count_max=fields, target_length_max=target)


def read_fields(*lines: bytes, minor: int = 1) -> RequestHead:
    block = b"".join(line + b"\r\n" for line in lines)
    return read(b"POST /v1/x HTTP/1.%d\r\n%b%b\r\n" % (minor, HOST, block))


def read_answer(*lines: bytes, status: bytes = b"200 OK", minor: int = 1) -> ResponseHead:
    block = b"".join(line + b"\r\n" for line in lines)
    return parse_response(b"HTTP/1.%d %b\r\n%b\r\n" % (minor, status, block), field_count_max=100)


HOSTILE = {
    # lines and bytes
    "bare LF after the request line": (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    "bare CR in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", 400),
    "bare CR before the CRLF": (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
    "NUL in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n", 400),
    "NUL in a name": (b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", 400),
    "NUL in the target": (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "escape character in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n", 400),
    "DEL in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", 400),
    # fields
    "folded with a space": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
    "folded with a tab": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", 400),
    "folded right after the request line": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
    "tab before the colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n", 400),
    "empty name": (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    "name with a slash": (b"GET / HTTP/1.1\r\nHost: a\r\nX/Y: b\r\n\r\n", 400),
    "name with a quote": (b'GET / HTTP/1.1\r\nHost: a\r\n"X": b\r\n\r\n', 400),
    "name that is not ASCII": (b"GET / HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n", 400),
    # Host
    "no Host": (b"GET / HTTP/1.1\r\nX: b\r\n\r\n", 400),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "the same Host twice": (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    "two Hosts in HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "Host with a path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "Host with a user": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "Host with a space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "Host with a port that is no number": (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "Host with two ports": (b"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400),
    "Host that is not ASCII": (b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n", 400),
    "Host that lists two": (b"GET / HTTP/1.1\r\nHost: [a, b]\r\n\r\n", 400),
    # the request line
    "no version": (b"GET /\r\n" + HOST + b"\r\n", 400),
    "two spaces after the method": (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "two spaces before the version": (b"GET /  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "tab for a space": (b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space before the method": (b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "space after the version": (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "target that is not ASCII": (b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "empty target": (b"GET  HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "empty method": (b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "method with a slash": (b"GE/T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "method that is not ASCII": (b"G\xe9T / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "an empty line first": (b"\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "lower-case http": (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\n" + HOST + b"\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\n" + HOST + b"\r\n", 505),
    "HTTP/2.0": (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
    "HTTP/3": (b"GET / HTTP/3\r\n" + HOST + b"\r\n", 505),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 505),
    # sizes
    "target too long": (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
    "too many fields": (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 100 + b"\r\n", 431),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_head_that_can_be_read_in_two_ways_is_refused(what: str) -> None:
    head, status = HOSTILE[what]
    with pytest.raises(HeadError) as caught:
        read(head)
    assert caught.value.status == status
    assert caught.value.reason.endswith(".")


HOSTILE_FRAMING: dict[str, tuple[tuple[bytes, ...], int]] = {
    "a length and a coding": ((b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
    "a coding and a length": ((b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400),
    "a length of nothing and a coding": ((b"Content-Length: 0", b"Transfer-Encoding: chunked"), 400),
    "two lengths": ((b"Content-Length: 5", b"Content-Length: 6"), 400),
    "the same length twice": ((b"Content-Length: 5", b"Content-Length: 5"), 400),
    "the same length twice in one": ((b"Content-Length: 5, 5",), 400),
    "the length of nothing twice": ((b"Content-Length: 0", b"content-length: 0"), 400),
    "a plus sign": ((b"Content-Length: +5",), 400),
    "a minus sign": ((b"Content-Length: -1",), 400),
    "hexadecimal": ((b"Content-Length: 0x5",), 400),
    "hexadecimal digits": ((b"Content-Length: a",), 400),
    "a space inside": ((b"Content-Length: 1 2",), 400),
    "an empty length": ((b"Content-Length:",), 400),
    "a length of spaces": ((b"Content-Length:   ",), 400),
    "a decimal point": ((b"Content-Length: 5.0",), 400),
    "an exponent": ((b"Content-Length: 1e3",), 400),
    "an underscore": ((b"Content-Length: 1_0",), 400),
    "a length beyond 64 bits": ((b"Content-Length: 18446744073709551617",), 400),
    "a digit that is not ASCII": ((b"Content-Length: \xb2",), 400),
    "chunked with something before it": ((b"Transfer-Encoding: xchunked",), 400),
    "chunked with something behind it": ((b"Transfer-Encoding: chunkedx",), 400),
    "chunked twice in one": ((b"Transfer-Encoding: chunked, chunked",), 400),
    "chunked in two fields": ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "gzip in another field": ((b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"), 501),
    "chunked, then gzip in another field": ((b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip"), 400),
    "gzip under chunked": ((b"Transfer-Encoding: gzip, chunked",), 400),
    "identity": ((b"Transfer-Encoding: identity",), 501),
    "gzip": ((b"Transfer-Encoding: gzip",), 501),
    "a parameter": ((b"Transfer-Encoding: chunked;q=1",), 400),
    "an empty parameter": ((b"Transfer-Encoding: chunked;",), 400),
    "a comma behind": ((b"Transfer-Encoding: chunked,",), 400),
    "a comma before": ((b"Transfer-Encoding: ,chunked",), 400),
    "quotes": ((b'Transfer-Encoding: "chunked"',), 400),
    "an empty coding": ((b"Transfer-Encoding:",), 400),
    "a vertical tab": ((b"Transfer-Encoding: \x0bchunked",), 400),
    "two tokens": ((b"Authorization: Bearer a", b"authorization: Bearer b"), 400),
    "two keys": ((b"X-Api-Key: a", b"x-api-key: b"), 400),
    "an expectation nobody knows": ((b"Expect: 200-ok",), 417),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_FRAMING)
def test_framing_and_credentials_have_one_spelling_or_are_refused(what: str) -> None:
    lines, status = HOSTILE_FRAMING[what]
    with pytest.raises(HeadError) as caught:
        read_fields(*lines)
    assert caught.value.status == status


def test_a_transfer_coding_in_http_1_0_is_refused() -> None:
    with pytest.raises(HeadError) as caught:
        read_fields(b"Transfer-Encoding: chunked", minor=0)
    assert caught.value.status == 400


def test_a_plain_head_is_read_as_it_stands() -> None:
    head = read(b"GET /v1/x?q=1 HTTP/1.1\r\nHost: api.example:8080\r\nAccept:  */* \r\nX-Empty:\r\n\r\n")
    assert (head.method, head.target, head.minor, head.host) == (b"GET", b"/v1/x?q=1", 1, b"api.example:8080")
    assert head.fields == [b"Accept:  */* \r\n", b"X-Empty:\r\n"]
    assert (head.length, head.is_framed, head.keep_alive, head.expects_continue) == (0, False, True, False)
    assert (head.token, head.scheme, head.is_attributed) == (None, None, False)


@pytest.mark.parametrize(
    "host",
    [b"a", b"api.example", b"api.example:", b"10.0.0.1:80", b"[::1]", b"[fe80::1]:443", b"xn--9ca", b"a_b.c"],
)
def test_a_good_host_is_kept_as_it_came(host: bytes) -> None:
    head = read(b"GET / HTTP/1.1\r\nhOST:\t%b \t\r\n\r\n" % host)
    assert head.host == host
    assert head.fields == []


@pytest.mark.parametrize(
    ("line", "length"),
    [
        (b"Content-Length: 0", 0), (b"CONTENT-LENGTH:5", 5), (b"Content-Length: 00012 ", 12),
        (b"Content-Length: 999999999999999999", 999_999_999_999_999_999),
        (b"Transfer-Encoding: chunked", CHUNKED), (b"transfer-encoding:\tCHUNKED\t", CHUNKED),
    ],
)  # fmt: skip
def test_a_body_is_framed_by_what_the_client_said(line: bytes, length: int) -> None:
    head = read_fields(line)
    assert (head.length, head.is_framed, head.fields) == (length, True, [])


def test_limits_are_what_may_just_pass() -> None:
    assert read(b"GET /" + b"a" * 8191 + b" HTTP/1.1\r\n" + HOST + b"\r\n").method == b"GET"
    assert len(read(b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 99 + b"\r\n").fields) == 99


@pytest.mark.parametrize(
    ("minor", "lines", "keeps"),
    [
        (1, (), True), (0, (), False),
        (1, (b"Connection: close",), False), (1, (b"connection: CLOSE",), False),
        (1, (b"Connection: keep-alive",), True), (0, (b"Connection: Keep-Alive",), True),
        (1, (b"Connection: te, close",), False), (1, (b"Connection: te", b"Connection: close"), False),
        (0, (b"Connection: keep-alive, close",), False), (1, (b"Connection: closed",), True),
        (1, (b"Connection:",), True), (0, (b"Connection: ,, keep-alive ,",), True),
    ],
)  # fmt: skip
def test_the_connection_is_kept_or_closed_as_asked(minor: int, lines: tuple[bytes, ...], keeps: bool) -> None:
    assert read_fields(*lines, minor=minor).keep_alive is keeps


HOP_BY_HOP = (
    b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"Proxy-Authorization: Basic eDp5", b"TE: trailers",
    b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk", b"Connection: keep-alive",
)  # fmt: skip


@pytest.mark.parametrize("line", HOP_BY_HOP)
def test_a_field_of_this_hop_is_not_passed_on(line: bytes) -> None:
    assert read_fields(b"Accept: a", line, b"X-Last: b").fields == [b"Accept: a\r\n", b"X-Last: b\r\n"]


def test_what_connection_nominates_is_not_passed_on() -> None:
    head = read_fields(b"X-A: 1", b"Connection: x-a, X-B", b"x-b: 2", b"X-C: 3", b"X-A: 4", b"X-AB: 5")
    assert head.fields == [b"X-C: 3\r\n", b"X-AB: 5\r\n"]


def test_nominating_framing_host_or_token_does_not_remove_them() -> None:
    head = read_fields(
        b"Connection: host, content-length, authorization, x-principal",
        b"Content-Length: 7", b"Authorization: Bearer t",
    )  # fmt: skip
    assert (head.host, head.length, head.token) == (b"api.example", 7, b"Bearer t")


NEVER_PASSED = (
    b"x-principal", b"x-principal-id", b"x-principal-organization", b"x-principal-key-id", b"x-request-id",
    b"authorization", b"x-api-key", b"host", b"content-length", b"transfer-encoding", b"connection", b"te",
    b"proxy-authorization", b"expect", b"upgrade",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NEVER_PASSED if b"-" in name])
def test_a_name_that_folds_to_a_special_one_is_dropped_and_not_obeyed(name: bytes) -> None:
    """Behind CGI and WSGI, `X_Principal` is read as `X-Principal`, and behind some so is every other mark that a name may
    hold: it is neither passed on nor believed."""
    for spelling in (
        *(name.replace(b"-", bytes((mark,))) for mark in b"!#$%&'*+.^_`|~"),
        name.replace(b"-", b"_"),
        name.replace(b"-", b"_", 1).upper(),
        name.title().replace(b"-", b"_"),
    ):
        head = read_fields(b"Accept: a", spelling + b": forged")
        assert head.fields == [b"Accept: a\r\n"], spelling
        assert (head.host, head.token, head.length) == (b"api.example", None, 0)


@pytest.mark.parametrize("name", [name for name in NEVER_PASSED if name.startswith((b"x-p", b"x-r"))])
def test_nobody_but_the_gateway_says_who_is_calling(name: bytes) -> None:
    spellings = (name, name.upper(), name.title(), name.replace(b"-", b"_"))
    lines = [spelling + b":forged" for spelling in spellings]
    assert read_fields(*lines, *lines).fields == []


def test_an_unknown_spelling_is_judged_alike_however_often_it_comes() -> None:
    for number in range(5000):  # more than are remembered
        head = read_fields(b"X-Free-%d: a" % number, b"X_Principal: forged", b"x-pRINCIPAL: forged")
        assert head.fields == [b"X-Free-%d: a\r\n" % number]


def test_authorization_wins_over_the_key_header_in_either_order() -> None:
    first = read_fields(b"Authorization: Bearer a", b"X-Api-Key: b")
    second = read_fields(b"X-Api-Key: b", b"Authorization: Bearer a")
    assert (first.token, first.scheme) == (second.token, second.scheme) == (b"Bearer a", Kind.AUTHORIZATION)
    alone = read_fields(b"x-API-key: b ")
    assert (alone.token, alone.scheme, alone.fields) == (b"b", Kind.API_KEY, [])


def test_attribution_is_read_and_passed_on() -> None:
    head = read_fields(b"X-Session-Id: s1", b"x-computer-id: c1 ", b"Traceparent: 00-ab-cd-01")
    assert (head.session, head.computer, head.trace) == (b"s1", b"c1", b"00-ab-cd-01")
    assert head.is_attributed
    assert sorted(head.fields) == [
        b"Traceparent: 00-ab-cd-01\r\n",
        b"X-Session-Id: s1\r\n",
        b"x-computer-id: c1 \r\n",
    ]


def test_attribution_that_connection_nominates_stays_on_this_hop() -> None:
    assert read_fields(b"X-Session-Id: s1", b"Connection: x-session-id").fields == []


@pytest.mark.parametrize(("minor", "expects"), [(1, True), (0, False)])
def test_an_expectation_is_met_in_http_1_1_only(minor: int, expects: bool) -> None:
    head = read_fields(b"Expect: 100-Continue", b"Content-Length: 1", minor=minor)
    assert (head.expects_continue, head.fields) == (expects, [])


def test_a_request_of_http_1_0_needs_no_host() -> None:
    head = read(b"GET / HTTP/1.0\r\n\r\n")
    assert (head.host, head.minor, head.keep_alive) == (b"", 0, False)


def test_the_end_of_a_head_is_found_once_it_is_there() -> None:
    assert find_head_end(b"GET / HTTP/1.1\r\n\r\nbody") == 18
    assert find_head_end(b"GET / HTTP/1.1\r\n\r") == -1


@pytest.mark.parametrize(
    "beginning", [b"", b"G", b"GET / HTTP/1.1", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\nX: y\r"]
)
def test_a_beginning_that_can_still_become_good_is_waited_for(beginning: bytes) -> None:
    reject_early(beginning)


@pytest.mark.parametrize(
    "beginning", [b"\n", b"GET / HTTP/1.1\n", b"GET\r / ", b"\x00", b"GET / HTTP/1.1\r\nX: a\nb"]
)
def test_a_beginning_that_cannot_is_refused_without_waiting(beginning: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        reject_early(beginning)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        (b"NONSENSE\r\nX: y", "request line"), (b"NONSENSE\r\nX: \n", "request line"), (b"GET / HTTP/1.1\r\nX: \n", "CR LF"),
        (b"GET /\n\r\nX: y", "CR LF"), (b"GET / HTTP/2.0\r\nX: y", "HTTP/1.1"),
    ],
)  # fmt: skip
def test_of_two_things_that_are_wrong_with_a_beginning_the_first_is_told(
    beginning: bytes, words: str
) -> None:
    with pytest.raises(HeadError) as caught:
        reject_early(beginning)
    assert words in caught.value.reason


# -- answers


def test_an_answer_is_read_as_it_stands() -> None:
    head = read_answer(b"Content-Type: text/plain", b"Content-Length: 12", b"Set-Cookie: a", b"Set-Cookie: b")
    assert (head.status, head.status_text, head.length, head.keep_alive) == (200, b"200 OK", 12, True)
    assert head.fields == (
        b"Content-Type: text/plain\r\nContent-Length: 12\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
    )


@pytest.mark.parametrize("status", [b"200", b"200 ", b"404 Not Found", b"418 I'm a teapot \xe9"])
def test_a_reason_phrase_is_passed_on_as_it_came(status: bytes) -> None:
    assert read_answer(status=status).status_text == status


def test_fields_of_the_hop_to_the_upstream_are_not_passed_on() -> None:
    head = read_answer(
        b"A: 1", b"Keep-Alive: timeout=5", b"Proxy-Connection: close", b"Upgrade: h2c", b"X-Request-Id: 9",
        b"Connection: x-b", b"X-B: 2", b"transfer_encoding: chunked", b"Content_Length: 9", b"C: 3",
    )  # fmt: skip
    assert (head.fields, head.length, head.keep_alive) == (b"A: 1\r\nC: 3\r\n", CLOSE_DELIMITED, True)


def test_an_answer_keeps_its_length_even_if_connection_nominates_it() -> None:
    """Without it the client could not tell where the body ends, and would take the next answer for more of it."""
    head = read_answer(b"Connection: content-length, x-b", b"Content-Length: 5", b"X-B: 2")
    assert (head.length, head.fields) == (5, b"Content-Length: 5\r\n")


def test_a_chunked_answer_is_framed_anew() -> None:
    head = read_answer(b"Transfer-Encoding: Chunked", b"A: 1")
    assert (head.length, head.fields) == (CHUNKED, b"A: 1\r\n")


@pytest.mark.parametrize(
    ("minor", "lines", "keeps"),
    [
        (1, (), True), (0, (), False), (1, (b"Connection: close",), False), (0, (b"Connection: keep-alive",), True),
        (0, (b"Connection: Keep-Alive ",), True), (1, (b"Connection: close", b"Connection: keep-alive"), False),
        (1, (b"Connection: keep-alive", b"Connection: close"), False), (0, (b"Connection: x, keep-alive",), True),
    ],
)  # fmt: skip
def test_a_connection_to_an_upstream_is_kept_as_it_says(
    minor: int, lines: tuple[bytes, ...], keeps: bool
) -> None:
    assert read_answer(*lines, minor=minor).keep_alive is keeps


HOSTILE_ANSWERS = {
    "no status": b"HTTP/1.1\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status that is none": b"HTTP/1.1 600 Odd\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "no version": b"200 OK\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nA: b\n\n",
    "bare LF in a field": b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
    "bare CR in a field": b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
    "folding": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "a length and a coding": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding and a length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "an empty length": b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "two codings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
}


@pytest.mark.parametrize("what", HOSTILE_ANSWERS)
def test_an_answer_that_can_be_read_in_two_ways_is_the_upstreams_failure(what: str) -> None:
    with pytest.raises(HeadError) as caught:
        parse_response(HOSTILE_ANSWERS[what], field_count_max=100)
    assert caught.value.status == 502


def test_the_length_of_a_204_can_be_dropped() -> None:
    head = read_answer(b"A: 1", b"content-LENGTH: 0", b"B: 2", status=b"204 No Content")
    assert head.fields_without_length() == b"A: 1\r\nB: 2\r\n"


def test_a_method_that_could_carry_a_secret_is_refused() -> None:
    with pytest.raises(HeadError) as refused:
        parse_request(
            b"G" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", field_count_max=100, target_length_max=8192
        )
    assert refused.value.status == 501
