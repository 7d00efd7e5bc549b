"""Codings come off in any split; what bursts is given up early, and what is kept of it stays small."""

import gzip
import random
import tracemalloc
import zlib

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.decoding import (
    CODINGS_MAX,
    DECODED_ALWAYS,
    GROWTH_MAX,
    STEP_MAX,
    Decoding,
    DecodingError,
    codings_of,
)
from tests.unit.gateway.codings import CODERS, take_off
from tests.unit.gateway.documents import REPEATABLE, SPLITS, cut

CODED = [kind for kind in CODERS if kind != "none"]
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.binary(min_size=1, max_size=8), st.sampled_from([1, 700, 9_000])).map(lambda many: many[0] * many[1]),
    ),
    max_size=6,
)  # fmt: skip


@pytest.mark.parametrize("kind", CODED)
@settings(REPEATABLE, max_examples=60)
@given(PIECES, SPLITS)
def test_any_split_of_a_coding_gives_what_was_coded(kind: str, pieces: list[bytes], sizes: list[int]) -> None:
    named, code = CODERS[kind]
    coded = code(pieces)
    for reads in ([coded], cut(coded, sizes), cut(coded, [1] * len(coded))):
        assert b"".join(take_off(named, reads)) == b"".join(pieces)


@pytest.mark.parametrize("kind", [kind for kind in CODED if "flushed" in kind])
def test_what_has_come_in_has_come_out_before_the_next_read(kind: str) -> None:
    """An event that the upstream has flushed is read at once, whatever its size."""
    named, code = CODERS[kind]
    chance = random.Random(1)
    sizes = [1, 70_000, 100_000, 131_072, 131_073, 1, 200_000, 65_536, 65_537, 3]
    pieces = [chance.choice([b"x", b"ab", chance.randbytes(997)]) * size for size in sizes]
    pieces = [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]
    ends = [len(code(pieces[:count])) for count in range(len(pieces) + 1)]
    coded = code(pieces)
    codings = codings_of(named)
    assert codings is not None
    decoding, steps = Decoding(codings), list[bytes]()
    for count in range(1, len(pieces) + 1):
        # At least up to where the piece was flushed: that is before what finishing there would have added.
        decoding.feed(coded[ends[count - 1] if count > 1 else 0 : ends[count]], steps.append)
        assert len(b"".join(steps)) >= sum(map(len, pieces[:count]))
    assert b"".join(steps) == b"".join(pieces)
    assert max(map(len, steps)) <= STEP_MAX


@pytest.mark.parametrize("kind", CODED)
def test_a_coding_that_is_cut_off_gives_what_is_there(kind: str) -> None:
    named, code = CODERS[kind]
    coded = code([random.Random(1).randbytes(5_000)])
    for end in range(0, len(coded), 97):
        found = b"".join(take_off(named, [coded[:end]]))
        assert random.Random(1).randbytes(5_000).startswith(found)


@pytest.mark.parametrize("kind", CODED)
@settings(REPEATABLE, max_examples=100)
@given(st.data())
def test_what_is_damaged_has_one_end_in_any_split(kind: str, data: st.DataObject) -> None:
    named, code = CODERS[kind]
    coded = bytearray(code([b"some text ", b"and more of it"]))
    at = data.draw(st.integers(0, len(coded) - 1))
    coded[at] ^= data.draw(st.integers(1, 255))
    damaged = bytes(coded) + data.draw(st.sampled_from([b"", b"x", b"\x00\x00"]))

    def outcome(reads: list[bytes]) -> bytes | None:
        try:
            return b"".join(take_off(named, reads))
        except DecodingError:
            return None

    assert outcome([damaged]) == outcome(cut(damaged, [1] * len(damaged)))


BOMBS = {
    "gzip": lambda: gzip.compress(bytes(200_000_000), 9),
    "deflate": lambda: zlib.compress(bytes(200_000_000), 9),
    "br": lambda: bytes(brotli.compress(bytes(200_000_000), quality=3)),
    "zstd": lambda: zstandard.compress(bytes(200_000_000)),
    "gzip, gzip": lambda: gzip.compress(gzip.compress(bytes(200_000_000), 9), 9),
}


@pytest.mark.parametrize("named", BOMBS)
def test_a_bomb_is_given_up_early_and_never_held(named: str) -> None:
    coded = BOMBS[named]()
    codings = codings_of(named)
    assert codings is not None
    given, longest = 0, 0

    def give(step: bytes) -> None:
        nonlocal given, longest
        given += len(step)
        longest = max(longest, len(step))

    tracemalloc.start()
    try:
        decoding = Decoding(codings)
        with pytest.raises(DecodingError, match="proportion"):
            decoding.feed(coded, give)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert given <= DECODED_ALWAYS + GROWTH_MAX * len(coded)
    assert longest <= STEP_MAX
    assert peak < 4 * STEP_MAX


def test_a_frame_that_needs_a_larger_window_than_the_standard_allows_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    coded = compressor.compress(b"text" * 100) + compressor.flush()
    with pytest.raises(DecodingError, match="memory"):
        take_off("zstd", [coded])


@pytest.mark.parametrize(
    ("value", "codings"),
    [
        ("", ()), ("identity", ()), ("gzip", ("gzip",)), ("GZip", ("gzip",)), (" gzip\t,br ", ("br", "gzip")),
        ("gzip,,br", ("br", "gzip")),
        ("compress", None), ("gzip, compress", None), ("gzip;q=1", None), (",".join(["gzip"] * CODINGS_MAX),
        ("gzip",) * CODINGS_MAX),
        (",".join(["gzip"] * (CODINGS_MAX + 1)), None), ("aws-chunked", None),
    ],
)  # fmt: skip
def test_codings_are_taken_off_from_the_last_to_the_first(
    value: str, codings: tuple[str, ...] | None
) -> None:
    assert codings_of(value) == codings
