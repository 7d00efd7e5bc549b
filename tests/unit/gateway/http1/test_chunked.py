"""Chunked bodies: the same bytes in any split give the same body and the same end; anything odd ends the connection."""

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.http1.chunked import (
    LAST_CHUNK,
    LINE_LENGTH_MAX,
    OVERHEAD_MAX,
    TRAILERS_LENGTH_MAX,
    ChunkedReader,
    ChunkError,
    encode_chunk,
    last_chunk,
)
from tests.unit.gateway.http1.referee import read_requests

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
AFTER = b"GET /the-next HTTP/1.1\r\nHost: a\r\n\r\n"
EXTENSIONS = st.sampled_from([b"", b"", b";", b";a", b";a=b", b';a="b c"', b";a;b=c", b" ;a", b"\t;a=b"])
TRAILERS = st.sampled_from([b"", b"", b"X-Sum: abc\r\n", b"A:\r\nB: c d\r\n"])
SPLITS = st.lists(st.integers(1, 9), max_size=40)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A well-formed coded body, and what it says."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    coded = b""
    for piece in pieces:
        size = b"%x" % len(piece)
        spelled = draw(st.sampled_from([size, size.upper(), b"000" + size]))
        coded += spelled + draw(EXTENSIONS) + b"\r\n" + piece + b"\r\n"
    last = draw(st.sampled_from([b"0", b"0", b"0000"]))
    return coded + last + draw(EXTENSIONS) + b"\r\n" + draw(TRAILERS) + b"\r\n", b"".join(pieces)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in reads of these sizes; the rest in one."""
    reads, position = [], 0
    for size in sizes:
        reads.append(data[position : position + size])
        position += size
    return [read for read in (*reads, data[position:]) if read]


def read_all(reads: list[bytes]) -> tuple[bytes, bytes, bool]:
    """Body, what follows the message, and whether it ended. Raises ChunkError."""
    reader, body = ChunkedReader(), b""
    for position, data in enumerate(reads):
        body += b"".join(reader.feed(data))
        if reader.done:
            return body, reader.rest + b"".join(reads[position + 1 :]), True
    return body, b"", False


@settings(max_examples=300, deadline=None)
@given(streams(), SPLITS)
def test_any_split_gives_the_same_body_and_the_exact_end(
    stream: tuple[bytes, bytes], sizes: list[int]
) -> None:
    coded, meant = stream
    assert read_all(cut(coded + AFTER, sizes)) == (meant, AFTER, True)


@given(streams(), st.data())
def test_a_beginning_of_a_body_is_not_its_end(stream: tuple[bytes, bytes], data: st.DataObject) -> None:
    coded, meant = stream
    body, rest, ended = read_all([coded[: data.draw(st.integers(0, len(coded) - 1))]])
    assert (meant.startswith(body), rest, ended) == (True, b"", False)


def outcome(reads: list[bytes]) -> tuple[bytes, bytes, bool] | str:
    try:
        return read_all(reads)
    except ChunkError:
        return "refused"


@st.composite
def tampered(draw: st.DrawFn) -> bytes:
    data, _ = draw(streams())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from([
            b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b";", b"0", b"f", b"-", b"+", b"x", b"\xff", b"0\r\n\r\n",
            b"ffffffffffffffff",
        ]))  # fmt: skip
        data = data[:at] + piece + data[at + draw(st.integers(0, 2)) :]
    return data


@settings(max_examples=500, deadline=None)
@given(tampered(), SPLITS)
def test_a_tampered_body_has_one_outcome_in_any_split(data: bytes, sizes: list[int]) -> None:
    """How much of a body was handed on before it was found malformed may differ; whether and where it ends may not."""
    whole, split, bytewise = outcome([data]), outcome(cut(data, sizes)), outcome(cut(data, [1] * len(data)))
    event("refused" if whole == "refused" else "read")
    assert whole == split == bytewise


@settings(max_examples=500, deadline=None)
@given(st.one_of(tampered(), streams().map(lambda stream: stream[0])))
def test_llhttp_reads_what_is_accepted_alike(data: bytes) -> None:
    read = outcome([data])
    if isinstance(read, str) or not read[2]:
        return
    body, rest, _ = read
    messages = read_requests(HEAD + data[: len(data) - len(rest)] + AFTER)
    event("llhttp refuses" if messages is None or not messages[0].is_whole else "llhttp agrees")
    if messages is not None and messages[0].is_whole:
        assert messages[0].body == body
        assert [message.target for message in messages[1:]] == [b"/the-next"]


MALFORMED = {
    "bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "bare CR after the size": b"3\rabc\r\n0\r\n\r\n",
    "no CRLF after the data": b"3\r\nabc0\r\n\r\n",
    "bare LF after the data": b"3\r\nabc\n0\r\n\r\n",
    "data longer than its size": b"2\r\nabc\r\n0\r\n\r\n",
    "data shorter than its size": b"4\r\nabc\r\n0\r\n\r\n",
    "no size": b"\r\nabc\r\n",
    "an extension without a size": b";a\r\nabc\r\n",
    "a plus sign": b"+3\r\nabc\r\n",
    "a minus sign": b"-3\r\nabc\r\n",
    "0x": b"0x3\r\nabc\r\n",
    "a space before the size": b" 3\r\nabc\r\n",
    "a space after the size": b"3 \r\nabc\r\n",
    "an underscore": b"1_0\r\nabc\r\n",
    "a letter that is no digit": b"g\r\n",
    "a digit that is not ASCII": b"\xd9\xa3\r\nabc\r\n",
    "a size beyond 64 bits": b"10000000000000003\r\nabc\r\n",
    "a size of sixteen digits": b"0000000000000003\r\nabc\r\n",
    "NUL in an extension": b"3;a\x00\r\nabc\r\n",
    "bare LF in an extension": b"3;a\nb\r\nabc\r\n",
    "bare CR in an extension": b"3;a\rb\r\nabc\r\n",
    "bare LF in the trailers": b"0\r\nA: b\nC: d\r\n\r\n",
    "bare LF at the end": b"0\r\n\n",
    "a trailer without a colon": b"0\r\nabc\r\n\r\n",
    "a trailer with a space before its colon": b"0\r\nA : b\r\n\r\n",
    "a trailer without a name": b"0\r\n: b\r\n\r\n",
    "a folded trailer": b"0\r\nA: b\r\n c\r\n\r\n",
    "NUL in a trailer": b"0\r\nA: \x00\r\n\r\n",
    "a size line too long": b"3;" + b"a" * LINE_LENGTH_MAX + b"\r\nabc\r\n",
    "a size line too long and unfinished": b"3;" + b"a" * LINE_LENGTH_MAX,
    "trailers too long": b"0\r\n" + b"A: b\r\n" * (TRAILERS_LENGTH_MAX // 6 + 1) + b"\r\n",
    "trailers too long and unfinished": b"0\r\n" + b"A: b\r\n" * (TRAILERS_LENGTH_MAX // 6 + 1),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_anything_but_the_plain_coding_is_refused_in_any_split(what: str, size: int) -> None:
    data = MALFORMED[what]
    size = max(size, len(data) // 500)
    with pytest.raises(ChunkError):
        read_all([data[at : at + size] for at in range(0, len(data), size)])


@pytest.mark.parametrize("size", [19, 1 << 20])
def test_lines_and_trailers_may_just_be_as_long_as_their_bounds(size: int) -> None:
    line = b"3;" + b"a" * (LINE_LENGTH_MAX - 4) + b"\r\n"
    trailers = b"A:" + b"b" * (TRAILERS_LENGTH_MAX - 6) + b"\r\n\r\n"
    assert (len(line), len(trailers)) == (LINE_LENGTH_MAX, TRAILERS_LENGTH_MAX)
    data = line + b"abc\r\n0\r\n" + trailers
    assert read_all([data[at : at + size] for at in range(0, len(data), size)]) == (b"abc", b"", True)


def test_large_chunks_pass_through_without_being_gathered() -> None:
    reader = ChunkedReader()
    assert reader.feed(b"fffff\r\n") == []
    for _ in range(15):
        assert reader.feed(b"x" * 65_536) == [b"x" * 65_536]
    assert reader.feed(b"x" * 65_535 + b"\r\n" + LAST_CHUNK) == [b"x" * 65_535]
    assert reader.done


@given(st.lists(st.binary(min_size=1, max_size=70_000), max_size=4))
def test_what_is_written_is_read_back(pieces: list[bytes]) -> None:
    coded = b"".join(encode_chunk(piece) for piece in pieces) + LAST_CHUNK
    assert read_all([coded]) == (b"".join(pieces), b"", True)


# -- trailers


def trailers_of(reads: list[bytes]) -> bytes:
    reader = ChunkedReader()
    for data in reads:
        assert not reader.done
        reader.feed(data)
    assert reader.done
    return reader.trailers


@given(
    st.lists(st.sampled_from([b"A: b\r\n", b"X-Sum:\t\xff \r\n", b"A:\r\n", b"0: 0\r\n"]), max_size=5).map(b"".join), SPLITS
)  # fmt: skip
def test_trailers_are_kept_as_they_came_in_any_split(trailers: bytes, sizes: list[int]) -> None:
    coded = b"3\r\nabc\r\n" + last_chunk(trailers)
    assert trailers_of(cut(coded, sizes)) == trailers
    assert trailers_of([coded]) == trailers


def test_a_body_without_trailers_has_none_and_ends_plainly() -> None:
    assert last_chunk(b"") == LAST_CHUNK
    assert trailers_of([LAST_CHUNK]) == b""


# -- what coding may cost


def chunks(count: int, *, size: int, extension: int) -> bytes:
    """So many chunks of `size` bytes, each announced with an extension of so many bytes."""
    line = b"%x" % size + (b";" + b"a" * (extension - 1) if extension else b"")
    return (line + b"\r\n" + b"x" * size + b"\r\n") * count


@pytest.mark.parametrize(
    ("count", "size", "extension"),
    [(20_000, 1, 0), (20_000, 1, 13), (2_000, 256, 500), (100, 4_096, LINE_LENGTH_MAX - 8), (16, 1, 1_000)],
)
def test_chunks_may_be_tiny_or_their_extensions_long(count: int, size: int, extension: int) -> None:
    body, _, ended = read_all([chunks(count, size=size, extension=extension) + LAST_CHUNK])
    assert (len(body), ended) == (count * size, True)


@pytest.mark.parametrize("read_size", [1 << 20, 700])
@pytest.mark.parametrize(("size", "extension"), [(1, 1_000), (1, 40), (100, 300)])
def test_a_flood_of_chunks_that_cost_more_than_they_carry_is_refused_early(
    size: int, extension: int, read_size: int
) -> None:
    over_each = len(b"%x\r\n" % size) + extension - 16 - 2 * size
    data = chunks(OVERHEAD_MAX // over_each + 2, size=size, extension=extension)
    reads = [data[at : at + read_size] for at in range(0, len(data), read_size)]
    with pytest.raises(ChunkError, match="too many"):
        read_all(reads)
    # What has cost no more than the bound is read yet.
    assert read_all([chunks(OVERHEAD_MAX // over_each, size=size, extension=extension) + LAST_CHUNK])[2]


def test_large_chunks_make_up_for_costly_ones_before_them_and_not_in_advance() -> None:
    costly = chunks(15, size=1, extension=1_000)
    large = chunks(1, size=10_000, extension=0)
    assert read_all([(costly + large) * 20 + LAST_CHUNK])[2]
    with pytest.raises(ChunkError):
        read_all([large * 20 + costly + costly])
