"""The chunked transfer coding (RFC 9112 §7.1), read strictly and written plainly. Pure.

Reading stops exactly at the end of the message, so that what follows on the connection is never mistaken for body, nor
body for a next request. Chunk extensions are bounded and dropped; trailers are bounded, checked and kept for the reader.
"""

from __future__ import annotations

import re
from typing import Final

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_TRAILERS: Final = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
_MAY_BECOME_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}(?:[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*+)?)?\r?")

LINE_LENGTH_MAX: Final = 1024
TRAILERS_LENGTH_MAX: Final = 8192
OVERHEAD_MAX: Final = 16_384
"""How many bytes of size lines may come above what the data they announce is worth: a flood of tiny chunks with long
extensions costs more to read than it carries."""

LAST_CHUNK: Final = b"0\r\n\r\n"


Data = bytes | memoryview
"""Bytes of a body, or a view of such where a copy would cost: never kept, only measured, cut and written."""


_BAD_SIZE: Final = "a chunk's size line is malformed or too long"
_BAD_TRAILERS: Final = "the trailers are malformed or too long"


class ChunkError(Exception):
    """The body is not well-formed chunked coding; the connection cannot be read any further."""


class ChunkedReader:
    """Takes bytes in any split, gives the body's bytes, and knows where the message ended."""

    __slots__ = ("_kept", "_overhead", "_remaining", "_state", "done", "rest", "trailers")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._kept = b""
        self._remaining = 0
        self._overhead = 0
        self._state = self._SIZE
        self.done = False
        self.trailers = b""
        """Once `done`: the trailer lines, each with its CRLF, as they came."""
        self.rest = b""
        """Once `done`: the bytes after the message's end."""

    def feed(self, view: Data) -> list[Data]:
        """Pieces of body found in `data`, in order. Raises ChunkError; not to be called again after that or once done."""
        data = self._kept + view if self._kept else bytes(view)
        self._kept = b""
        pieces: list[Data] = []
        position, end = 0, len(data)
        while position < end:
            if self._state == self._DATA:
                piece = (
                    data[position : position + self._remaining] if position or self._remaining < end else data
                )
                pieces.append(piece)
                position += len(piece)
                self._remaining -= len(piece)
                if self._remaining == 0:
                    self._state = self._DATA_END
            elif self._state == self._SIZE:
                match = _SIZE_LINE.match(data, position)
                if match is None:
                    self._keep_unfinished_line(data, position)
                    break
                length = match.end() - position
                position = match.end()
                self._remaining = int(match[1], 16)
                self._overhead = max(self._overhead + length - 16 - 2 * self._remaining, 0)
                if length > LINE_LENGTH_MAX:
                    raise ChunkError(_BAD_SIZE)
                if self._overhead > OVERHEAD_MAX:
                    raise ChunkError("too many chunks cost more than they carry")
                self._state = self._DATA if self._remaining else self._TRAILER
            elif self._state == self._DATA_END:
                if data[position : position + 2] == b"\r\n":
                    position += 2
                    self._state = self._SIZE
                elif data[position:] == b"\r":
                    self._kept = b"\r"
                    break
                else:
                    raise ChunkError("a chunk does not end where its size says")
            else:
                position = self._read_trailers(data, position)
                break
        return pieces

    def _keep_unfinished_line(self, data: bytes, position: int) -> None:
        line = data[position : position + LINE_LENGTH_MAX + 1]
        if len(line) > LINE_LENGTH_MAX or _MAY_BECOME_SIZE.fullmatch(line) is None:
            raise ChunkError(_BAD_SIZE)
        self._kept = line

    def _read_trailers(self, data: bytes, position: int) -> int:
        match = _TRAILERS.match(data, position)
        if match is not None and match.end() - position <= TRAILERS_LENGTH_MAX:
            self.done = True
            self.trailers = data[position : match.end() - 2]
            self.rest = data[match.end() :]
            return match.end()
        trailers = data[position:]
        if len(trailers) > TRAILERS_LENGTH_MAX or b"\r\n\r\n" in trailers or trailers.startswith(b"\r\n"):
            raise ChunkError(_BAD_TRAILERS)
        if re.search(rb"(?<!\r)\n|\r(?!\n|\Z)|\x00", trailers):
            raise ChunkError(_BAD_TRAILERS)
        self._kept = trailers
        return len(data)


def encode_chunk(data: Data) -> bytes:
    """One chunk. `data` must not be empty: an empty chunk ends the message."""
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n"))


def last_chunk(trailers: bytes) -> bytes:
    """The end of a message, with its trailer lines (each with its CRLF; b"": none)."""
    return b"0\r\n%b\r\n" % trailers if trailers else LAST_CHUNK
