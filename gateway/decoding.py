"""Content codings of an answer (RFC 9110 §8.4.1) taken off piece by piece, for somebody who only looks on. Pure.

A few kilobytes can say "a gigabyte of zeros". So what comes out is handed on in steps of at most 256 KiB, nothing of it is
kept here, and an answer that grows out of proportion is given up. What the libraries keep is the window that the coding
needs to look back: 32 KiB for deflate, at most 8 MiB for zstd (RFC 9659 allows no more), for br up to 16 MiB (RFC 7932), and
of these only as much as has come out so far.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import IO, Final, Protocol, cast

import brotli  # type: ignore[import-untyped]
import zstandard

STEP_MAX: Final = 262_144
"""Bytes that a decoder gives at once, at most."""

_STEP: Final = 65_536
_FED_AT_ONCE: Final = 16_384
"""Coded bytes that a decoder is given at once: it may keep a copy of what it has not got to."""

_ZSTD_WINDOW_MAX: Final = 8 * 1024 * 1024
CODINGS_MAX: Final = 4

DECODED_ALWAYS: Final = 16 * 1024 * 1024
GROWTH_MAX: Final = 100
"""What may come out, in bytes: 16 MiB, and a hundred times what has come in. Text shrinks to a third or a tenth, a stream of
much the same events to a fiftieth."""


class DecodingError(Exception):
    """The answer is not in the coding that it names, or grows out of proportion; nothing more can be read of it."""


Give = Callable[[bytes], None]
"""Takes a step of what has come out."""


class _Decoder(Protocol):
    """Takes one coding off. Holds no reference to whoever takes the steps: it is gone with its answer, without a cycle."""

    def decode(self, data: bytes, give: Give) -> None:
        """Gives what these bytes add, in steps of at most STEP_MAX. Raises DecodingError."""


class _Inflating:
    """gzip (RFC 1952, any number of members), or deflate: in zlib's format (RFC 1950) or bare, as some servers send it."""

    __slots__ = ("_inflate", "_is_gzip", "_is_over", "_start")

    def __init__(self, is_gzip: bool) -> None:
        self._is_gzip = is_gzip
        self._inflate = zlib.decompressobj(31) if is_gzip else None
        self._start = b""
        self._is_over = False

    def decode(self, data: bytes, give: Give) -> None:
        is_full = False  # then more may come out without more going in
        while (data or is_full) and not self._is_over:
            if self._inflate is None:
                data = self._start + data
                self._start = b""
                if len(data) == 1:
                    self._start = data
                    return
                self._begin(data)
                continue
            try:
                step = self._inflate.decompress(data, _STEP)
            except zlib.error as error:
                raise DecodingError(str(error)) from error
            data = self._inflate.unconsumed_tail
            is_full = len(step) == _STEP
            if self._inflate.eof:
                data, is_full = self._inflate.unused_data, False
                self._inflate = None
                self._is_over = not self._is_gzip
            if step:
                give(step)

    def _begin(self, data: bytes) -> None:
        """Sets up for what starts with these two bytes. What follows the last member and is none is left alone."""
        if self._is_gzip:
            self._inflate = zlib.decompressobj(31)
            self._is_over = not data.startswith(b"\x1f\x8b")
        else:
            is_zlib = data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
            self._inflate = zlib.decompressobj(15 if is_zlib else -15)


class _Brotli:
    """br (RFC 7932). The library overshoots the size that it is told, up to one and a half times."""

    __slots__ = ("_decompressor",)

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()

    def decode(self, data: bytes, give: Give) -> None:
        if self._decompressor.is_finished():
            raise DecodingError("something follows the end of the coding")
        try:
            while not self._decompressor.is_finished():
                step = self._decompressor.process(data, output_buffer_limit=_STEP)
                if not step:
                    return
                give(step)
                data = b""
        except brotli.error as error:
            raise DecodingError(str(error)) from error


class _Steps:
    """What the zstd library writes to. It is not told of a failure: it would leak the step that it is about (0.25)."""

    __slots__ = ("failure", "give")

    def __init__(self) -> None:
        self.give: Give | None = None
        self.failure = ""

    def write(self, step: bytes) -> int:
        if self.give is not None and not self.failure:
            try:
                self.give(step)
            except DecodingError as failure:
                self.failure = str(failure)  # its traceback holds the step
        return len(step)


class _Zstandard:
    """zstd (RFC 8878), any number of frames.

    The library's writer gives what it decodes in steps of the size that it is told, but leaves what does not fit into the
    last of them for the next call. A block is at most 128 KiB, and one byte of input ends at most one block: so with room
    for two, and the last byte written by itself, nothing is left. As it cannot be stopped in between, it is given little at
    once: at most 64 MiB can come out of it, a few milliseconds, and of that nothing is kept.
    """

    __slots__ = ("_steps", "_writer")

    _INPUT_MAX: Final = 2048

    def __init__(self) -> None:
        self._steps = _Steps()
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
        self._writer = decompressor.stream_writer(cast(IO[bytes], self._steps), write_size=STEP_MAX)

    def decode(self, data: bytes, give: Give) -> None:
        steps = self._steps
        steps.give = give
        try:
            for start in range(0, len(data), self._INPUT_MAX):
                end = min(start + self._INPUT_MAX, len(data))
                self._writer.write(data[start : end - 1])
                self._writer.write(data[end - 1 : end])
                if steps.failure:
                    raise DecodingError(steps.failure)
        except zstandard.ZstdError as error:
            raise DecodingError(str(error)) from error
        finally:
            steps.give = None


_DECODERS: Final[dict[str, Callable[[], _Decoder]]] = {
    "gzip": lambda: _Inflating(is_gzip=True),
    "x-gzip": lambda: _Inflating(is_gzip=True),
    "deflate": lambda: _Inflating(is_gzip=False),
    "br": _Brotli,
    "zstd": _Zstandard,
}


def codings_of(value: str) -> tuple[str, ...] | None:
    """Content-Encoding, in the order to take them off; None if there is one that is not known, or too many."""
    named = [name for part in value.lower().split(",") if (name := part.strip(" \t")) not in ("", "identity")]
    if len(named) > CODINGS_MAX or any(name not in _DECODERS for name in named):
        return None
    return tuple(reversed(named))


class Decoding:
    """The codings of one answer. After a DecodingError nothing more may be fed."""

    __slots__ = ("_allowed", "_decoded", "_decoders", "_received")

    def __init__(self, codings: tuple[str, ...]) -> None:
        """`codings`: as `codings_of` gives them."""
        self._decoders = [_DECODERS[coding]() for coding in codings]
        self._received = self._decoded = self._allowed = 0

    def feed(self, data: bytes, give: Give) -> None:
        """Calls `give` with what `data` adds to the answer, step by step. Raises DecodingError."""
        for start in range(0, len(data), _FED_AT_ONCE):
            piece = data[start : start + _FED_AT_ONCE]
            self._received += len(piece)
            self._allowed = DECODED_ALWAYS + GROWTH_MAX * self._received
            self._take_off(0, piece, give)

    def _take_off(self, level: int, data: bytes, give: Give) -> None:
        last = level + 1 == len(self._decoders)

        def counted(step: bytes) -> None:
            self._decoded += len(step)
            if self._decoded > self._allowed:
                raise DecodingError("the answer grows out of proportion as its coding is taken off")
            if last:
                give(step)
            else:
                self._take_off(level + 1, step, give)

        self._decoders[level].decode(data, counted)
