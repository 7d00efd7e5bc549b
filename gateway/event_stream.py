"""A stream of events cut into events, for somebody who needs few of them: server-sent events, or a JSON document a line. Pure.

Server-sent events are read as the HTML standard says (§9.2.6): lines end with CRLF, LF or CR, an event with an empty line, the
lines `data:` of an event belong together, a BOM at the start is none of it. An event that the stream ends in counts here.
Most events are of no interest. That is seen by looking for a few names in whole reads at once, so that they are not even cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from gateway.json_pointer import has_one_spelling

EVENT_LENGTH_MAX: Final = 1024 * 1024
"""Bytes of an event that is read, with all its lines; a longer one is passed over."""

_BOM: Final = b"\xef\xbb\xbf"


class Names:
    """Names of members, at least one of which is in the bytes of every event of interest."""

    __slots__ = ("sought",)

    def __init__(self, names: Iterable[str], *, always: bool = False) -> None:
        """No names: no event is of interest. `always`: each of them is."""
        named = set(names)
        quoted = sorted(orjson.dumps(name) for name in named)
        escape = b"\\u00" if all(has_one_spelling(name) for name in named) else b"\\"
        self.sought = (b"",) if always else (*quoted, escape) if quoted else ()

    def may_be_in(self, data: bytes) -> bool:
        """False only if none of the names is in these bytes, however it may be spelled."""
        for sought in self.sought:  # noqa: SIM110  # any() costs 0.3 µs more
            if sought in data:
                return True
        return False


class EventStream:
    """Takes bytes in any split, gives the data of events of interest, as it comes, joined by LF. Keeps at most one event."""

    __slots__ = ("_after_cr", "_border", "_is_at_start", "_is_passing_over", "_kept", "has_passed_over")

    def __init__(self, *, is_lines: bool) -> None:
        """`is_lines`: one document a line, instead of server-sent events."""
        self._border = b"\n" if is_lines else b"\n\n"
        self._kept = bytearray()
        self._after_cr = False
        self._is_at_start = True
        self._is_passing_over = False
        self.has_passed_over = False
        """Whether an event was too long to be read, until somebody takes it back."""

    def feed(self, piece: bytes, names: Names) -> Sequence[bytes]:
        """The data of each event that is complete with this piece, and may have one of the names in it."""
        if self._after_cr or b"\r" in piece:
            piece = self._with_lf_only(piece)
        if self._is_passing_over:
            piece = self._pass_over(piece)
        if self._kept or self._is_at_start or not piece.endswith(self._border):
            piece = self._up_to_last_border(piece)
        for sought in names.sought:
            if sought in piece:
                return self._chosen(piece, names)
        return ()

    def end(self, names: Names) -> Sequence[bytes]:
        """What the stream ended in."""
        rest = bytes(self._kept)
        self._kept.clear()
        if self._is_at_start:
            rest = rest.removeprefix(_BOM)
        return () if self._is_passing_over or not names.may_be_in(rest) else self._chosen(rest, names)

    def _up_to_last_border(self, piece: bytes) -> bytes:
        """What is complete with this piece, or b""; keeps what follows it."""
        start = max(len(self._kept) - 1, 0)  # the border may begin with the last byte
        self._kept += piece
        end = self._kept.rfind(self._border, start)
        whole = b""
        if end >= 0:
            whole = bytes(memoryview(self._kept)[:end])
            del self._kept[: end + len(self._border)]
            if self._is_at_start:
                self._is_at_start = False
                whole = whole.removeprefix(_BOM)
        if len(self._kept) > EVENT_LENGTH_MAX:
            self._is_passing_over = self.has_passed_over = True
            self._is_at_start = False
            del self._kept[:-1]
        return whole

    def _with_lf_only(self, piece: bytes) -> bytes:
        if self._border == b"\n":
            return piece  # where a line is a document, CR is white space
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _pass_over(self, piece: bytes) -> bytes:
        """What follows the event that is too long; b"" until its end has come."""
        piece = bytes(self._kept) + piece
        self._kept.clear()
        end = piece.find(self._border)
        if end < 0:
            self._kept += piece[-1:]
            return b""
        self._is_passing_over = False
        return piece[end + len(self._border) :]

    def _chosen(self, whole: bytes, names: Names) -> list[bytes]:
        found = []
        for event in whole.split(self._border):
            if not names.may_be_in(event):
                continue
            if len(event) > EVENT_LENGTH_MAX:
                self.has_passed_over = True
            elif data := event if self._border == b"\n" else _data_of(event):
                found.append(data)
        return found


def _data_of(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:]
    return b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
