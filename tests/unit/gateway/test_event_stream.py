"""Events are cut as the HTML standard says, in any split, and what is of no interest costs nothing."""

import re

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.event_stream import EVENT_LENGTH_MAX, EventStream, Names
from tests.unit.gateway.documents import REPEATABLE, SPLITS, cut

EVERY = Names((), always=True)
USAGE = Names(["usage"])


def read(reads: list[bytes], names: Names = EVERY, *, is_lines: bool = False) -> list[bytes]:
    stream = EventStream(is_lines=is_lines)
    found: list[bytes] = []
    for data in reads:
        found += stream.feed(data, names)
    found += stream.end(names)
    return [data for data in found if data.strip()]


def as_the_standard_says(data: bytes) -> list[bytes]:
    """A slow reader, line by line; an event that the stream ends in is one, too."""
    lines = re.split(r"\r\n|\r|\n", data.removeprefix(b"\xef\xbb\xbf").decode("latin-1"))
    events: list[list[str]] = [[]]
    for line in lines:
        if not line:
            events.append([])
        elif line.startswith("data:"):
            events[-1].append(line[5:])
    joined = ["\n".join(lines).encode("latin-1") for lines in events]
    return [data for data in joined if data.strip()]


LINES = st.sampled_from([
    b"data: {\"a\":1}", b"data:x", b"data:  y", b"data: [DONE]", b"data", b"data:", b": comment", b":", b"event: delta",
    b"id: 1",
    b"retry: 5", b"dat", b"Data: x", b" data: x", b"", b"", b"", b"data: \xef\xbb\xbf", b"data: usage", b'data: "usage"',
])  # fmt: skip
ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.tuples(LINES, ENDS), max_size=25))
    return (
        draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
        + b"".join(line + end for line, end in lines)
        + draw(LINES)
    )


@settings(REPEATABLE, max_examples=800)
@given(streams(), SPLITS)
def test_any_split_gives_the_events_of_the_standard(data: bytes, sizes: list[int]) -> None:
    meant = as_the_standard_says(data)
    event(f"{len(meant)} events")
    for reads in ([data], cut(data, sizes), cut(data, [1] * len(data))):
        assert read(reads) == meant
        interesting = [found for found in meant if b'"usage"' in found]
        assert read(reads, USAGE) == interesting


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_is_given_as_soon_as_it_is_complete(end: bytes) -> None:
    stream = EventStream(is_lines=False)
    assert list(stream.feed(b"data: 1" + end, EVERY)) == []
    assert [data.strip() for data in stream.feed(end[:1], EVERY)] == [b"1"]
    stream = EventStream(is_lines=True)
    assert list(stream.feed(b"1\n2", EVERY)) == [b"1"]


def test_a_line_is_a_document_where_it_is_said_to_be() -> None:
    data = b'\xef\xbb\xbf{"a":1}\r\n\r\n{"b":\r2}\n\n"data: x"'
    for reads in ([data], cut(data, [1] * len(data))):
        assert [found.strip() for found in read(reads, is_lines=True)] == [
            b'{"a":1}',
            b'{"b":\r2}',
            b'"data: x"',
        ]


@pytest.mark.parametrize(
    ("names", "data", "is_in"),
    [
        (["usage"], b'{"usage": 1}', True), (["usage"], b'{"us\\u0061ge": 1}', True),
        (["usage"], b'{"u": "\\n usage \\u4e00"}', False),
        (["a/b"], b'{"a\\/b": 1}', True), (["\u00e9"], b'{"\\u00e9": 1}', True), (["\u00e9"], '{"\u00e9": 1}'.encode(), True),
        (['a"'], b'{"a\\"": 1}', True), ([], b'{"usage": 1}', False), (["a", "b"], b'{"b": 1}', True),
        (["usage"], b"usage", False),
    ],
)  # fmt: skip
def test_a_name_is_seen_however_it_is_spelled(names: list[str], data: bytes, is_in: bool) -> None:
    assert Names(names).may_be_in(data) is is_in


@pytest.mark.parametrize("size", [1_000, 65_536, 10 * EVENT_LENGTH_MAX])
@pytest.mark.parametrize(("is_lines", "mark", "border"), [(False, b"data: ", b"\n\n"), (True, b"", b"\n")])
def test_an_event_that_is_too_long_is_passed_over_and_the_next_counts_again(
    size: int, is_lines: bool, mark: bytes, border: bytes
) -> None:
    just = b"x" * (EVENT_LENGTH_MAX - len(mark))
    pieces = [mark + b"1", mark + just, mark + just + b"x", mark + b"2", mark + just * 3, mark + b"3"]
    data = b"".join(piece + border for piece in pieces)
    reads = [data[at : at + size] for at in range(0, len(data), size)]
    found = [text.strip() for text in read(reads, is_lines=is_lines)]
    assert [len(text) for text in found] == [1, len(just), 1, 1]
    assert found[::2] == [b"1", b"2"]
    assert found[3] == b"3"


def test_an_event_that_is_too_long_and_ends_the_stream_is_none() -> None:
    assert read([b"data: 1\n\ndata: ", b"x" * EVENT_LENGTH_MAX, b"x"]) == [b" 1"]
