"""Borders of Server-Sent Events, held against a reader that goes by lines, as the standard does, in any split of the bytes."""

from __future__ import annotations

import re

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.http1.event_borders import EventBorders

STREAMS = st.lists(st.sampled_from([b"data: x", b"\n", b"\r\n", b"\r", b": c", b"a"]), max_size=24).map(
    b"".join
)


def is_border(stream: bytes) -> bool:
    """Whether nothing was begun: the last line is empty, and so is whatever stands behind it."""
    lines = re.split(rb"\r\n|\n|\r", stream)
    return not stream or (len(lines) > 2 and lines[-1] == lines[-2] == b"")


def borders_in(stream: bytes) -> set[int]:
    return {at for at in range(1, len(stream) + 1) if is_border(stream[:at])}


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(STREAMS, st.lists(st.integers(1, 6), max_size=30))
def test_a_border_is_where_an_empty_line_has_ended_in_any_split(stream: bytes, sizes: list[int]) -> None:
    borders, at = EventBorders(), 0
    assert borders.is_between_frames
    for size in [*sizes, len(stream)]:
        borders.feed(stream[at : at + size])
        at += size
        assert borders.is_between_frames == is_border(stream[:at])


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(STREAMS, STREAMS)
def test_the_end_of_an_event_is_the_first_border_behind_what_was_begun(known: bytes, more: bytes) -> None:
    assume(not is_border(known))
    borders = EventBorders()
    borders.feed(known)
    taken = borders.end_of_frame(more)
    ahead = [at - len(known) for at in sorted(borders_in(known + more)) if at > len(known)]
    first = ahead[0] if ahead else len(more)
    # A CR that ends a line may be half of a CR LF: either of the two is a border.
    assert taken == first or (taken == first + 1 and more[first : first + 1] == b"\n")
    assert borders.is_between_frames == is_border(known + more[:taken])


def test_bytes_that_may_be_a_view_are_fed_as_they_come() -> None:
    borders = EventBorders()
    borders.feed(memoryview(b"data: 1\n"))
    assert not borders.is_between_frames
    assert borders.end_of_frame(memoryview(b"\ndata: 2\n\n")) == 1
    assert borders.is_between_frames
