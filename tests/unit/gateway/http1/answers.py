"""Answers of upstreams, good, bad and tampered with, and ways to cut them into reads: what the driver's tests feed it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from gateway.http1.upstream import FIELD_COUNT_MAX, HEAD_BYTES_MAX, INTERIM_ANSWERS_MAX
from tests.unit.gateway.world import ANSWER, get, post

GET = get()
HEAD = get().replace(b"GET", b"HEAD", 1)
OLD = get(b"/x", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
UPGRADE = get(b"/x", b"Connection: Upgrade", b"Upgrade: echo")
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

Reads = list[tuple[bytes, bool]]
"""Reads in order, and for each whether everything settles down before the next."""


def pairs(lines: list[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    split = [line.partition(b":") for line in lines]
    return tuple((name.lower(), value.strip(b" \t")) for name, _, value in split)


def whole(data: bytes) -> Reads:
    return [(data, True)] if data else []


def bytewise(data: bytes) -> Reads:
    """One byte after the other; what is long, in pieces that fit nothing."""
    size = 1 if len(data) < 2_000 else 1_009
    return [(data[at : at + size], False) for at in range(0, len(data), size)]


@st.composite
def splits(draw: st.DrawFn, data: bytes) -> Reads:
    """The same bytes in any split, at any pace."""
    near_the_end = st.integers(max(0, len(data) - 12), len(data))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)) | near_the_end, max_size=8)))
    bounds = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds) if start != end]
    return [(piece, draw(st.booleans())) for piece in pieces]


# -- answers that are well-formed, with what they mean


@dataclass(frozen=True, slots=True)
class Answer:
    """What an upstream says to a request, and what the client is to hear of it."""

    data: bytes
    request: bytes
    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    trailers: bytes
    interim: int
    ends_with_connection: bool
    is_kept: bool
    """Whether the connection may be used again."""


STATUSES = (
    b"200 OK", b"200", b"206 Partial Content", b"404 Not \xe9Found", b"500 ", b"204 No Content", b"304 Not Modified",
)  # fmt: skip
FIELDS = (
    b"Content-Type: text/plain", b"Set-Cookie: a=b", b"set-cookie:c=d", b"X-High: caf\xc3\xa9 \xff", b"X-Empty:",
    b"X-Space: \t a  b\t ", b"X-Long: " + b"y" * 300, b"ETag: W/\"1\"", b"Trailer: Sum",
)  # fmt: skip
INTERIM = (
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 199 X\r\nA: b\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nConnection: x-a\r\nX-A: 1\r\n\r\n", b"HTTP/1.1 100\r\n\r\n",
)  # fmt: skip
TRAILERS = (b"", b"", b"Sum: 1\r\n", b"sum:2\r\nX-Other: \xe9 3\r\n", b"Empty:\r\n")
CHUNK_ENDS = (b"", b"", b";a=b", b' ; a="b;c"', b"\t;\xff")


@st.composite
def chunked(draw: st.DrawFn, body: bytes, trailers: bytes) -> bytes:
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    coded = b""
    for start, end in pairwise([0, *cuts, len(body)]):
        if start != end:
            size = draw(st.sampled_from((b"%x", b"%X", b"000%x"))) % (end - start)
            coded += size + draw(st.sampled_from(CHUNK_ENDS)) + b"\r\n" + body[start:end] + b"\r\n"
    return coded + draw(st.sampled_from((b"0", b"000", b"0;last"))) + b"\r\n" + trailers + b"\r\n"


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    request = draw(st.sampled_from((GET, GET, post(b"hello"), HEAD, OLD)))
    interim = draw(st.lists(st.sampled_from(INTERIM), max_size=2))
    status, minor = draw(st.sampled_from(STATUSES)), draw(st.sampled_from((1, 1, 0)))
    lines = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    body, trailers = draw(st.binary(max_size=60)), draw(st.sampled_from(TRAILERS))
    has_body = request != HEAD and status[:3] not in (b"204", b"304")
    framing = draw(st.sampled_from(("length", "chunked", "close") if minor else ("length", "close")))
    connection = draw(st.sampled_from((b"", b"Connection: close\r\n", b"Connection: Keep-Alive\r\n")))
    is_kept = connection != b"Connection: close\r\n" if minor else connection.endswith(b"Alive\r\n")
    coded = body
    if framing == "length":
        said = b"Content-Length: %d\r\n" % len(body)
    elif framing == "chunked":
        said, coded = b"Transfer-Encoding: chunked\r\n", draw(chunked(body, trailers))
    else:
        said = b""
    head = b"HTTP/1.%d %b\r\n" % (minor, status)
    head += b"".join(line + b"\r\n" for line in lines) + said + connection + b"\r\n"
    is_chunked_to_client = framing == "chunked" and has_body and request != OLD
    return Answer(
        b"".join(interim) + head + (coded if has_body else b""), request, int(status[:3]), pairs(lines),
        body if has_body else b"", trailers if is_chunked_to_client else b"", 0 if request == OLD else len(interim),
        has_body and framing == "close", is_kept and not (has_body and framing == "close"),
    )  # fmt: skip


# -- answers that are not


OK = b"HTTP/1.1 200 OK\r\n"
CODED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BY_LENGTH = OK + b"Content-Length: 5\r\n\r\n"
BAD_HEADS = (
    b"220 mail.example ESMTP\r\n\r\n", b"HTTP/1.1 200 OK\n\n", b"HTTP/2 200 OK\r\n\r\n", b"http/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 600 X\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n", b"HTTP/1.1 20 X\r\n\r\n", b"HTTP/1.1 2000 X\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n", b"HTTP/1.1 200OK\r\n\r\n", b"HTTP/1.1 200 O\x00K\r\n\r\n", b"\r\n" + ANSWER,
    b" " + ANSWER, OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", OK + b"Content-Length: 5, 5\r\n\r\nhello",
    OK + b"Content-Length: +5\r\n\r\nhello", OK + b"Content-Length: 0x5\r\n\r\nhello",
    OK + b"Content-Length: -5\r\n\r\nhello", OK + b"Content-Length:\r\n\r\nhello",
    OK + b"Content-Length: 9" + b"9" * 18 + b"\r\n\r\n",
    OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", OK + b"Transfer-Encoding: identity\r\n\r\nhello",
    OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", OK + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", OK + b"Content-Length : 5\r\n\r\nhello",
    OK + b"X-A: b\r\n folded\r\n\r\n", OK + b" X-A: b\r\n\r\n", OK + b"X-A: b\nContent-Length: 0\r\n\r\n",
    OK + b"X-A: b\rc\r\n\r\n", OK + b"X-A: \x00\r\n\r\n", OK + b"no colon\r\n\r\n", OK + b": no name\r\n\r\n",
    OK + b"X(A): b\r\n\r\n", OK + b"X: y\r\n" * (FIELD_COUNT_MAX + 1) + b"Content-Length: 0\r\n\r\n",
    OK + b"X: %b\r\n" % (b"y" * 3000) * 22 + b"Content-Length: 0\r\n\r\n", OK + b"X: " + b"y" * HEAD_BYTES_MAX,
    INTERIM[0] + b"nonsense\r\n\r\n", INTERIM[0] * 2 + OK + b"Content-Length: x\r\n\r\n",
    b"HTTP/1.1 103 X\r\n\r\n" * (INTERIM_ANSWERS_MAX + 1) + ANSWER,
    b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello", b"HTTP/1.1 101 X\r\n\r\n" + ANSWER,
)  # fmt: skip
BAD_BODIES = (
    CODED + b"5\r\nhelloX\r\n0\r\n\r\n", CODED + b"5\r\nhello\n0\r\n\r\n", CODED + b"5\r\nhello\r0\r\n\r\n",
    CODED + b"5\nhello\r\n0\r\n\r\n", CODED + b"0x5\r\nhello\r\n0\r\n\r\n", CODED + b"+5\r\nhello\r\n0\r\n\r\n",
    CODED + b"-5\r\nhello\r\n0\r\n\r\n", CODED + b"5 \r\nhello\r\n0\r\n\r\n", CODED + b" 5\r\nhello\r\n0\r\n\r\n",
    CODED + b"\r\n", CODED + b"g\r\n", CODED + b"10000000000000000\r\nhello\r\n0\r\n\r\n",
    CODED + b"5;\nhello\r\n0\r\n\r\n", CODED + b"5;\x00\r\nhello\r\n0\r\n\r\n",
    CODED + b"5;" + b"x" * 1100 + b"\r\nhello\r\n0\r\n\r\n",
    CODED + (b"1;" + b"x" * 900 + b"\r\na\r\n") * 30 + b"0\r\n\r\n", CODED + b"0\r\nX-A: b\n\r\n",
    CODED + b"0\r\nX-A : b\r\n\r\n", CODED + b"0\r\nX-A: b\r\n folded\r\n\r\n", CODED + b"0\r\nno colon\r\n\r\n",
    CODED + b"0\r\nX-A: \x00\r\n\r\n", CODED + b"0\r\n\rX", CODED + b"0\r\n" + b"X: y\r\n" * 65 + b"\r\n",
    CODED + b"0\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n", CODED + b"0\r\nContent-Length: x\r\n\r\n",
)  # fmt: skip
CUT_SHORT = (
    b"", b"H", OK, OK + b"Content-Length: 5\r\n", BY_LENGTH, BY_LENGTH + b"hell", CODED, CODED + b"5", CODED + b"5\r\n",
    CODED + b"5\r\nhell", CODED + b"5\r\nhello", CODED + b"5\r\nhello\r", CODED + b"5\r\nhello\r\n",
    CODED + b"5\r\nhello\r\n0", CODED + b"5\r\nhello\r\n0\r\n", CODED + b"5\r\nhello\r\n0\r\n\r",
    CODED + b"0\r\nX-A: b\r\n", CODED + b"0\r\nX-A: b\r\n\r", INTERIM[0], INTERIM[0] + OK,
)  # fmt: skip


# -- answers that were tampered with


TAMPERING = (
    b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b",", b";", b"0", b"1", b"x", b"\xff", b"chunked",
    b"\r\n\r\n", b"\r\n ", b"\r\nContent-Length: 1", b"\r\nTransfer-Encoding: chunked", b"HTTP/1.1 200 OK\r\n", b"101",
    b"204", b"304", b"Connection: close\r\n",
)  # fmt: skip


@st.composite
def tampered(draw: st.DrawFn) -> tuple[bytes, bytes, str]:
    answer = draw(answers())
    data = answer.data + draw(st.sampled_from((b"", b"", POISON)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(TAMPERING)) + data[at + draw(st.integers(0, 2)) :]
    request = draw(st.sampled_from((GET, GET, HEAD, post(b"hello"), UPGRADE)))
    return data, request, draw(st.sampled_from(("ends", "lost", "silent")))
