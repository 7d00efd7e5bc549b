"""Field lines: what becomes of each, in any spelling; and what is remembered of them, which is never a secret."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http1.fields import (
    REMEMBERED_LENGTH_MAX,
    REMEMBERED_LINES_MAX,
    TRAILER_COUNT_MAX,
    FieldError,
    FieldLines,
    Kind,
    answer_lines,
    request_lines,
)
from tests.unit.gateway.world import TOKEN

MARKS = b"!#$%&'*+.^_`|~"
"""All that a name may hold but letters, digits and the hyphen."""

REQUEST_KINDS = {
    Kind.HOST: [b"host"], Kind.AUTHORIZATION: [b"authorization"], Kind.API_KEY: [b"x-api-key"],
    Kind.CONTENT_LENGTH: [b"content-length"], Kind.TRANSFER_ENCODING: [b"transfer-encoding"],
    Kind.CONNECTION: [b"connection"], Kind.EXPECT: [b"expect"], Kind.SESSION: [b"x-session-id"],
    Kind.COMPUTER: [b"x-computer-id"], Kind.TRACE: [b"traceparent"], Kind.VIA: [b"via"], Kind.TE: [b"te"],
    Kind.UPGRADE: [b"upgrade"], Kind.REQUEST_ID: [b"x-request-id"],
    Kind.FORWARDED: [b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"],
    Kind.DROP: [
        b"keep-alive", b"proxy-connection", b"proxy-authorization", b"http2-settings", b"x-principal", b"x-principal-id",
        b"x-principal-organization", b"x-principal-key-id",
    ],
    Kind.PASS: [b"accept", b"x-principals", b"x", b"cookie", b"content-type", b"trailer", b"tracestate", b"hosts", b"te-"],
}  # fmt: skip
ANSWER_KINDS = {
    Kind.CONTENT_LENGTH: [b"content-length"], Kind.TRANSFER_ENCODING: [b"transfer-encoding"], Kind.UPGRADE: [b"upgrade"],
    Kind.CONNECTION: [b"connection"], Kind.DROP: [b"keep-alive", b"proxy-connection", b"x-request-id"],
    Kind.PASS: [b"server", b"date", b"set-cookie", b"via", b"authorization", b"x-principal", b"trailer", b"te"],
}  # fmt: skip
VALUES = {Kind.HOST: b"a", Kind.CONTENT_LENGTH: b"5"}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    request_lines.clear()
    answer_lines.clear()
    yield
    request_lines.clear()
    answer_lines.clear()


def test_every_kind_of_field_is_looked_at_here() -> None:
    assert set(REQUEST_KINDS) == set(Kind)


@pytest.mark.parametrize(("lines", "kinds"), [(request_lines, REQUEST_KINDS), (answer_lines, ANSWER_KINDS)])
def test_a_field_is_of_its_kind_however_its_name_is_capitalised(
    lines: FieldLines, kinds: dict[Kind, list[bytes]]
) -> None:
    for kind, names in kinds.items():
        value = VALUES.get(kind, b"v")
        for name in names:
            for spelling in (name, name.upper(), name.title()):
                for _ in range(2):  # the second time from memory
                    assert lines[spelling + b":\t " + value + b" \t\r\n"] == (kind, name, value)


def test_what_is_passed_on_as_it_came_is_told_by_the_sign_of_its_kind() -> None:
    passed = {Kind.PASS, Kind.SESSION, Kind.COMPUTER, Kind.TRACE, Kind.VIA}
    assert {kind for kind in Kind if kind >= Kind.PASS} == passed


@pytest.mark.parametrize(("lines", "kinds"), [(request_lines, REQUEST_KINDS), (answer_lines, ANSWER_KINDS)])
def test_a_name_that_only_folds_to_a_special_one_is_dropped(
    lines: FieldLines, kinds: dict[Kind, list[bytes]]
) -> None:
    special = [name for kind, names in kinds.items() if kind < Kind.PASS for name in names]
    for name in special:
        for mark in MARKS:
            spelling = name.replace(b"-", bytes((mark,)))
            if spelling != name:
                assert lines[spelling + b": 5\r\n"][0] is Kind.DROP, spelling
    for name in (b"X_Free", b"X_Session_Id", b"x.computer.id", b"Trace_parent"):
        assert lines[name + b": 5\r\n"][0] is Kind.PASS, "nothing is forged with it"


@pytest.mark.parametrize(
    "line",
    [
        b"A: b", b"A: b\n", b"A: b\r", b"A\r\n", b"A : b\r\n", b" A: b\r\n", b": b\r\n", b"\r\n", b"", b"A: b\x00\r\n",
        b"A: b\r\nC: d\r\n", b"A: b\x7f\r\n", b"A: b\x0b\r\n", b"A\xe9: b\r\n", b'"A": b\r\n', b"A(b): c\r\n", b"A/b: c\r\n",
        b"A: b\rc\r\n", b"A: b\nc\r\n", b"A;b: c\r\n", b"A, b: c\r\n", b"A=b: c\r\n", b"[A]: c\r\n",
    ],
)  # fmt: skip
def test_what_is_no_field_line_is_refused_and_not_remembered(line: bytes) -> None:
    for lines in (request_lines, answer_lines):
        for _ in range(2):
            with pytest.raises(FieldError) as caught:
                lines[line]
            assert caught.value.reason == ""
        assert line not in lines


@given(st.binary(max_size=40))
def test_a_value_may_hold_any_visible_byte_and_those_outside_ascii(value: bytes) -> None:
    is_good = all(byte == 9 or 0x20 <= byte < 0x7F or byte >= 0x80 for byte in value)
    if is_good:
        assert request_lines[b"X-Free:%b\r\n" % value] == (Kind.PASS, b"x-free", value.strip(b" \t"))
    else:
        with pytest.raises(FieldError):
            request_lines[b"X-Free:%b\r\n" % value]


# -- Host and Content-Length


@pytest.mark.parametrize(
    "host",
    [
        b"a", b"A.Example", b"a.", b"a_b", b"a~b", b"xn--9ca.example", b"a:", b"a:0", b"a:80", b"a:65535", b"127.0.0.1:8080",
        b"[::1]", b"[::1]:80", b"[2001:DB8::1]:", b"[::ffff:10.0.0.1]", b"a" * 255, b"-", b"1", b"a..b",
    ],
)  # fmt: skip
def test_a_host_is_a_name_or_an_address_perhaps_with_a_port(host: bytes) -> None:
    assert request_lines[b"Host: %b\r\n" % host] == (Kind.HOST, b"host", host)


@pytest.mark.parametrize(
    "host",
    [
        b"", b":80", b"a:65536", b"a:99999", b"a:000080", b"a:-1", b"a:+1", b"a:80:80", b"a b", b"a,b", b"a/b", b"a?b", b"a#b",
        b"u@a", b"a%2fb", b"%61", b"a\\b", b"a;b", b"a'b", b"(a)", b"a*", b"a=b", b"\xc3\xa9", b"a" * 256, b"::1", b"[::1",
        b"::1]", b"[]", b"[:]", b"[1.2.3.4]", b"[::1%eth0]", b"[v1.a]", b"[::1]80", b"[::1]:x", b"[[::1]]", b"[::g]", b"a:http",
        b"[1:2:3:4:5:6:7:8:9]", b"a\tb", b"http://a",
    ],
)  # fmt: skip
def test_anything_else_is_no_host(host: bytes) -> None:
    for _ in range(2):
        with pytest.raises(FieldError) as caught:
            request_lines[b"Host: %b\r\n" % host]
        assert "Host" in caught.value.reason


@pytest.mark.parametrize("length", [b"0", b"5", b"0005", b"9" * 18])
def test_a_length_is_digits(length: bytes) -> None:
    for lines in (request_lines, answer_lines):
        assert lines[b"Content-Length: %b\r\n" % length][2] == length


@pytest.mark.parametrize(
    "length", [b"", b"-1", b"+1", b"0x5", b"5.0", b"1e3", b"5 5", b"5,5", b"9" * 19, b"\xb2", b"a"]
)
def test_anything_else_is_no_length(length: bytes) -> None:
    for lines in (request_lines, answer_lines):
        with pytest.raises(FieldError, match="Content-Length"):
            lines[b"Content-Length: %b\r\n" % length]


# -- what is remembered


def test_a_line_that_comes_again_is_looked_up() -> None:
    first = request_lines[b"Accept: a\r\n"]
    assert request_lines[b"Accept: a\r\n"] is first
    assert list(request_lines) == [b"Accept: a\r\n"]


SECRET_LINES = [
    b"Authorization: Bearer hunter2\r\n", b"authorization: Basic aHVudGVyMg==\r\n", b"X-Api-Key: hunter2\r\n",
    b"X_Api_Key: hunter2\r\n", b"X_Authorization: " + TOKEN + b"\r\n", b"Proxy-Authorization: hunter2\r\n",
    b"Cookie: a=hunter2\r\n", b"COOKIE: a\r\n", b"Set-Cookie: a=hunter2\r\n", b"Api-Key: hunter2\r\n",
    b"X-Auth-Token: hunter2\r\n", b"X-Free: " + TOKEN + b"\r\n", b"X-Session-Id: a" + TOKEN + b"b\r\n",
    b"X-Principal: forged\r\n",
]  # fmt: skip
FLEETING_LINES = [
    b"Traceparent: 00-ab-cd-01\r\n", b"X-Request-Id: 1\r\n", b"X-Forwarded-For: 10.0.0.1\r\n", b"Forwarded: for=a\r\n",
    b"X-Forwarded-Host: a\r\n", b"Keep-Alive: 5\r\n",
]  # fmt: skip


@pytest.mark.parametrize("line", SECRET_LINES)
def test_a_line_with_a_credential_is_never_remembered(line: bytes) -> None:
    for _ in range(2):
        request_lines[line]
    assert list(request_lines) == []
    assert answer_lines[b"Set-Cookie: a=hunter2\r\n"][0] is Kind.PASS
    assert list(answer_lines) == []


@pytest.mark.parametrize("line", FLEETING_LINES)
def test_a_line_that_is_another_each_time_does_not_drive_out_those_that_come_again(line: bytes) -> None:
    request_lines[line]
    assert list(request_lines) == []


def test_a_long_line_is_read_and_not_remembered() -> None:
    just, beyond = (b"X: %b\r\n" % (b"a" * (REMEMBERED_LENGTH_MAX - 5 + extra)) for extra in (0, 1))
    assert len(just) == REMEMBERED_LENGTH_MAX
    request_lines[just]
    request_lines[beyond]
    assert list(request_lines) == [just]


def test_what_is_remembered_is_bounded_and_reads_the_same_afterwards() -> None:
    for number in range(2 * REMEMBERED_LINES_MAX + 10):
        name = b"x-free-%d" % (number % (REMEMBERED_LINES_MAX + 5))
        assert request_lines[name + b": a\r\n"] == (Kind.PASS, name, b"a")
        assert len(request_lines) <= REMEMBERED_LINES_MAX


# -- trailers


def test_trailers_are_passed_on_but_for_those_that_frame_route_or_say_who_is_calling() -> None:
    kept = (
        b"Grpc-Status: 0\r\nX-Sum:  \xff a \r\nServer-Timing: a\r\nX-Sum: b\r\nTraceparent: a\r\nX-Session-Id: a\r\n"
        b"X-Computer-Id: a\r\nVia: 1.1 a\r\nX_Session_Id: a\r\n"
    )
    dropped = (
        b"Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nAuthorization: Bearer a\r\n"
        b"X-Api-Key: a\r\nX-Principal: forged\r\nX_Principal: forged\r\nX-Request-Id: 1\r\nUpgrade: a\r\nTE: trailers\r\n"
        b"Forwarded: for=a\r\nX-Forwarded-For: a\r\nExpect: 100-continue\r\nKeep-Alive: 5\r\nX_Request_Id: a\r\n"
    )
    assert request_lines.trailers(dropped + kept) == kept
    assert request_lines.trailers(kept + dropped) == kept
    assert request_lines.trailers(b"") == b""


def test_an_answers_trailers_are_passed_on_but_for_its_framing_and_its_hop() -> None:
    dropped = (
        b"Content-Length: 5\r\nTransfer-Encoding: a\r\nConnection: a\r\nX-Request-Id: 1\r\nKeep-Alive: a\r\n"
    )
    assert answer_lines.trailers(dropped + b"Grpc-Status: 0\r\n") == b"Grpc-Status: 0\r\n"


def test_no_token_of_ours_leaves_in_a_trailer() -> None:
    for lines in (request_lines, answer_lines):
        assert lines.trailers(b"X-A: 1\r\nX-B: " + TOKEN + b"\r\nX-C: 3\r\n") == b"X-A: 1\r\nX-C: 3\r\n"


def test_trailers_have_a_bound() -> None:
    most = b"A: b\r\n" * TRAILER_COUNT_MAX
    assert request_lines.trailers(most) == most
    with pytest.raises(FieldError, match="too many"):
        request_lines.trailers(most + b"A: b\r\n")


@pytest.mark.parametrize("line", [b"A : b\r\n", b"\r\n", b"A: b\n", b" A: b\r\n", b"Host: a b\r\n"])
def test_a_trailer_that_is_no_field_line_is_refused(line: bytes) -> None:
    with pytest.raises(FieldError):
        request_lines.trailers(b"A: b\r\n" + line)
