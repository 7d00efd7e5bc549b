"""Whatever the strict grammar accepts, llhttp reads alike: nobody can be shown one request and billed for another.

llhttp may refuse what is accepted here (an unknown method); it may accept what is refused here. It may never read the same
bytes as something else.
"""

from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.http1.head import CHUNKED, CLOSE_DELIMITED, HeadError, RequestHead, parse_request, parse_response
from gateway.http1.target import normalise
from tests.unit.gateway.http1.referee import Read, read_answers, read_requests

METHODS = (
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"OPTIONS",
    b"PATCH",
    b"PROPFIND",
    b"REPORT",
    b"MKCOL",
)
TARGETS = (
    b"/",
    b"/v1/chat/completions",
    b"/a?b=c&d=%20",
    b"*",
    b"http://api.example/x?y",
    b"/a//b/../c",
    b"/%7euser",
)
NAMES = (
    b"Accept", b"X-Free", b"User-Agent", b"Cookie", b"X-Session-Id", b"Traceparent", b"X_Principal", b"x-principal-id",
    b"Keep-Alive", b"TE", b"Trailer", b"Content-Type", b"!#$%&'*+.^_`|~", b"A",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [b"", b" ", b"a", b" a\tb ", b"\xc3\xa9", b"close", b"chunked", b"x, y", b'"q"', b"a: b", b"5"]
    ),
    st.binary(max_size=12).map(lambda raw: bytes(byte for byte in raw if 32 <= byte != 127 or byte == 9)),
)
FRAMING = (
    b"", b"", b"Content-Length: 0\r\n", b"Content-Length: 3\r\n", b"content-length:007 \r\n", b"Content-Length: +3\r\n",
    b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:\tChunked \r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", b"Content-Length: 3\r\nContent-Length: 3\r\n",
    b"Transfer-Encoding : chunked\r\n", b"Transfer-Encoding: xchunked\r\n", b"Transfer_Encoding: chunked\r\n",
    b"Content_Length: 9\r\n", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
)  # fmt: skip
CONNECTIONS = (
    b"", b"", b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"connection:Keep-Alive, x-free\r\n",
    b"Connection: x-free, close\r\n", b"Connection: te\r\nConnection: CLOSE\r\n", b"Connection: content-length\r\n",
)  # fmt: skip
LINES = st.lists(st.tuples(st.sampled_from(NAMES), VALUES).map(lambda pair: b"%b:%b\r\n" % pair), max_size=5)
PLACED = st.tuples(LINES, st.sampled_from(FRAMING), LINES, st.sampled_from(CONNECTIONS), LINES).map(
    lambda parts: b"".join((*parts[0], parts[1], *parts[2], parts[3], *parts[4]))
)


@st.composite
def request_heads(draw: st.DrawFn) -> bytes:
    method, target = draw(st.sampled_from(METHODS)), draw(st.sampled_from(TARGETS))
    host = draw(st.sampled_from((b"Host: api.example\r\n",) * 6 + (b"", b"Host: [::1]:80\r\n")))
    minor = draw(st.sampled_from((1, 1, 1, 0)))
    return b"%b %b HTTP/1.%d\r\n%b%b\r\n" % (method, target, minor, host, draw(PLACED))


@st.composite
def answer_heads(draw: st.DrawFn) -> bytes:
    status = draw(
        st.sampled_from(
            (b"200 OK", b"200", b"404 Not Found", b"500 ", b"304 Not Modified", b"204 No Content")
        )
    )
    return b"HTTP/1.%d %b\r\n%b\r\n" % (draw(st.sampled_from((1, 1, 1, 0))), status, draw(PLACED))


@st.composite
def mutated(draw: st.DrawFn, heads: st.SearchStrategy[bytes]) -> bytes:
    """A head in which up to three places were changed by what smuggling is made of."""
    data = draw(heads)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from([
            b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b",", b";", b"\x0b", b"\xff", b"_", b"-", b"0", b"x",
            b"chunked", b"\r\n ", b"\r\nHost: b", b"\r\nContent-Length: 1",
        ]))  # fmt: skip
        data = data[:at] + piece + data[at + draw(st.integers(0, 2)) :]
    return data


NEXT_REQUEST = b"GET /the-next HTTP/1.1\r\nHost: next\r\n\r\n"
SPECIAL = frozenset((
    b"host", b"authorization", b"x-api-key", b"content-length", b"transfer-encoding", b"connection", b"expect",
    b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"upgrade", b"http2-settings",
    b"x-principal", b"x-principal-id", b"x-principal-organization", b"x-principal-key-id", b"x-request-id",
    b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host",
))  # fmt: skip
READ_AND_PASSED = frozenset((b"x-session-id", b"x-computer-id", b"traceparent", b"via"))


def passes(name: bytes, nominated: set[bytes]) -> bool:
    """Whether a request's field is to be passed on, said another way than the parser does."""
    lowered = name.lower()
    folded = lowered.replace(b"_", b"-")
    is_imitation = lowered != folded and folded in SPECIAL | READ_AND_PASSED
    is_about_principal = folded.startswith(b"x-principal-")  # only the gateway speaks of it
    return not (lowered in SPECIAL or is_imitation or is_about_principal or lowered in nominated)


def accepted(head: bytes) -> RequestHead | None:
    try:
        parsed = parse_request(head, field_count_max=100, target_length_max=8192)
        normalise(parsed.method, parsed.target, parsed.host)
    except HeadError:
        return None
    return parsed


def split_lines(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [(line.partition(b":")[0], line.partition(b":")[2].strip(b" \t\r\n")) for line in lines]


def body_for(length: int) -> tuple[bytes, bytes]:
    """A body as it travels under this framing, and as it is meant."""
    if length == CHUNKED:
        return b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde"
    return b"z" * length, b"z" * length


def must_agree(ours: RequestHead, theirs: Read) -> None:
    nominated = {
        option.strip(b" \t").lower()
        for name, value in theirs.fields if name.lower() == b"connection" for option in value.split(b",")
    }  # fmt: skip
    assert (ours.method, ours.target, f"1.{ours.minor}") == (theirs.method, theirs.target, theirs.version)
    read_by_both = [pair for pair in theirs.fields if passes(pair[0], nominated - {b"close", b"keep-alive"})]
    assert sorted(split_lines(ours.fields)) == sorted(read_by_both)
    hosts = [value for name, value in theirs.fields if name.lower() == b"host"]
    assert hosts == ([ours.host] if ours.host else [])
    # Closing where somebody else would keep the connection is safe; the reverse is not.
    assert not ours.keep_alive or theirs.keeps_alive
    if ours.minor == 1:
        assert ours.keep_alive == theirs.keeps_alive


@settings(max_examples=400, deadline=None)
@given(request_heads())
def test_an_accepted_request_is_read_alike_to_its_last_byte(head: bytes) -> None:
    ours = accepted(head)
    event("accepted" if ours else "refused")
    if ours is None or ours.length > 1000:
        return
    travels, meant = body_for(ours.length)
    messages = read_requests(head + travels + (NEXT_REQUEST if ours.keep_alive else b""))
    assert messages is not None, "llhttp refuses what is accepted"
    must_agree(ours, messages[0])
    assert messages[0].is_whole
    assert messages[0].body == meant
    if ours.keep_alive:
        assert [message.target for message in messages[1:]] == [b"/the-next"]


@settings(max_examples=600, deadline=None)
@given(mutated(request_heads()))
def test_a_tampered_request_is_refused_or_read_alike(head: bytes) -> None:
    ours = accepted(head)
    event("accepted" if ours else "refused")
    if ours is None or ours.length > 1000:
        return
    travels, meant = body_for(ours.length)
    messages = read_requests(head + travels)
    if messages is None:
        return  # stricter: an unknown method, a colon in an odd place
    must_agree(ours, messages[0])
    assert messages[0].body == meant
    assert len(messages) == 1


def with_plain_length(field: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """A field of an answer as it is passed on: its length is written anew."""
    is_length = field[0].lower() == b"content-length"
    return (b"Content-Length", b"%d" % int(field[1])) if is_length else field


def answer_must_agree(head: bytes) -> bool:
    """Holds one answer against llhttp; True if both accept it."""
    try:
        ours = parse_response(head, field_count_max=100)
    except HeadError:
        return False
    has_body = ours.status not in (204, 304) and ours.length != 0
    travels, meant = body_for(ours.length if ours.length >= 0 or ours.length == CHUNKED else 4)
    messages = read_answers(head + travels) if has_body else read_answers(head)
    if messages is None:
        return False
    theirs = messages[0]
    assert ours.status == theirs.status
    if has_body:
        assert theirs.body == meant
        assert theirs.is_whole == (ours.length != CLOSE_DELIMITED)
    if ours.length != CLOSE_DELIMITED and has_body:
        assert not ours.keep_alive or theirs.keeps_alive
    passed = split_lines(ours.fields.split(b"\r\n")[:-1])
    assert [pair for pair in map(with_plain_length, theirs.fields) if pair in passed] == passed
    return True


@settings(max_examples=300, deadline=None)
@given(answer_heads())
def test_an_accepted_answer_is_read_alike(head: bytes) -> None:
    event("both accept" if answer_must_agree(head) else "one refuses")


@settings(max_examples=400, deadline=None)
@given(mutated(answer_heads()))
def test_a_tampered_answer_is_refused_or_read_alike(head: bytes) -> None:
    event("both accept" if answer_must_agree(head) else "one refuses")
