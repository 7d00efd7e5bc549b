"""Where one Server-Sent Event ends (HTML §9.2.6), so that a last one may be put behind it. Pure.

An event ends with an empty line. What follows half an event would end it, too, and its reader would take the half for a whole.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.http1.chunked import Data

_BORDERS: Final = (b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n")
_BORDER: Final = re.compile(rb"\n\n|\n\r\n?|\r\r\n?")
"""A line's end, and that of an empty line behind it: each is LF, CR, or CR LF."""


class EventBorders:
    """A stream of events in any split of its bytes, with the interface of `FrameReader`."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    @property
    def is_between_frames(self) -> bool:
        """Whether all that was fed is whole events."""
        return not self._tail or self._tail.endswith(_BORDERS)

    def feed(self, data: Data) -> None:
        """The next bytes."""
        self._tail = (self._tail + bytes(data[-3:]))[-3:] if data else self._tail

    def end_of_frame(self, data: Data) -> int:
        """Feed what is left of the event that is under way: how many bytes of `data` that are. All, if it goes on."""
        known = len(self._tail)
        found = next(
            (each.end() for each in _BORDER.finditer(self._tail + bytes(data)) if each.end() > known), None
        )
        taken = len(data) if found is None else found - known
        self.feed(data[:taken])
        return taken
