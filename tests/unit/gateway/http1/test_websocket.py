"""Where frames end, however they come: a last one put behind a whole frame is read as a frame, and never as a payload."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http1.websocket import POLICY_VIOLATION, REASON_MAX, FrameReader, close_frame

LENGTHS = st.sampled_from([0, 1, 5, 125, 126, 127, 300, 65_535, 65_536, 70_000])
FRAMES = st.lists(st.tuples(LENGTHS, st.booleans()), max_size=6)


def frame(length: int, masked: bool = False, opcode: int = 0x82) -> bytes:
    """A frame as RFC 6455 §5.2 writes it, with the shortest length."""
    mask = 0x80 if masked else 0
    if length < 126:
        head = bytes((opcode, mask | length))
    elif length < 65_536:
        head = bytes((opcode, mask | 126)) + length.to_bytes(2, "big")
    else:
        head = bytes((opcode, mask | 127)) + length.to_bytes(8, "big")
    return head + (b"mask" if masked else b"") + b"\x88" * length  # a payload that looks like heads


def borders(frames: list[bytes]) -> set[int]:
    ends, at = {0}, 0
    for one in frames:
        at += len(one)
        ends.add(at)
    return ends


def pieces(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    """(where it ends, its bytes) of each piece."""
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [(end, data[start:end]) for start, end in pairwise(bounds)]


@given(FRAMES, st.lists(st.integers(0, 2**20) | st.integers(0, 30), max_size=8))
def test_the_border_of_frames_is_known_after_any_piece_of_them(
    lengths: list[tuple[int, bool]], cuts: list[int]
) -> None:
    frames = [frame(length, masked) for length, masked in lengths]
    ends = borders(frames)
    reader = FrameReader()
    for end, piece in pieces(b"".join(frames), cuts):
        reader.feed(piece)
        assert reader.is_between_frames == (end in ends)


@given(
    FRAMES.filter(bool),
    st.integers(0, 2**20) | st.integers(0, 30),
    st.lists(st.integers(0, 2**20), max_size=4),
)
def test_what_is_left_of_a_frame_under_way_is_taken_and_nothing_behind_it(
    lengths: list[tuple[int, bool]], cut: int, cuts: list[int]
) -> None:
    frames = [frame(length, masked) for length, masked in lengths]
    data, ends = b"".join(frames), borders(frames)
    cut %= len(data) + 1
    reader = FrameReader()
    reader.feed(data[:cut])
    if cut in ends:
        return
    expected = min(end for end in ends if end > cut) - cut
    taken = 0
    for _, piece in pieces(data[cut:], cuts):
        if not piece:
            continue
        here = reader.end_of_frame(piece)
        taken += here
        if reader.is_between_frames:
            break
        assert here == len(piece), "all of it, as the frame goes on"
    assert taken == expected


def test_bytes_one_by_one_and_as_a_view_are_read_alike() -> None:
    data = frame(300) + frame(0) + frame(70_000, masked=True)
    one_by_one, view = FrameReader(), FrameReader()
    for at in range(len(data) - 1):
        one_by_one.feed(data[at : at + 1])
    view.feed(memoryview(data)[:-1])
    assert [one_by_one.is_between_frames, view.is_between_frames] == [False, False]
    assert one_by_one.end_of_frame(data[-1:]) == view.end_of_frame(memoryview(data)[-1:]) == 1
    assert [one_by_one.is_between_frames, view.is_between_frames] == [True, True]


def test_a_frame_of_absurd_length_is_only_counted() -> None:
    reader = FrameReader()
    reader.feed(b"\x82\x7f" + b"\xff" * 8)
    reader.feed(b"x" * 1000)
    assert not reader.is_between_frames


@pytest.mark.parametrize(
    "reason", ["", "The credits ran out.", "ü" * 200, "a" + "é" * 61 + "b" * 9, "x" * REASON_MAX + "y"]
)
def test_a_close_frame_is_one_whole_control_frame(reason: str) -> None:
    data = close_frame(POLICY_VIOLATION, reason)
    reader = FrameReader()
    reader.feed(data)
    assert reader.is_between_frames
    assert data[0] == 0x88, "final, opcode 8"
    assert data[1] == len(data) - 2 <= 125, "not masked, and as long as a control frame may be"
    assert int.from_bytes(data[2:4], "big") == 1008
    said = data[4:].decode()
    assert reason.startswith(said)
    assert len(said.encode()) > REASON_MAX - 4 or said == reason
