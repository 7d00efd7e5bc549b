"""WebSocket frames (RFC 6455 §5), as far as a tunnel has to know them: where one ends, so that a last one may be put behind it.
Pure.

Payloads are not looked at. Only what the upstream sends is read: its frames are not masked.
"""

from __future__ import annotations

from typing import Final

from gateway.http1.chunked import Data

POLICY_VIOLATION: Final = 1008
GOING_AWAY: Final = 1001
REASON_MAX: Final = 123
"""Bytes of a close frame's reason: a control frame's payload has 125 at most, and two are the code."""

_CLOSE: Final = 0x88
_MASKED: Final = 0x80


class FrameReader:
    """Frames in any split of their bytes."""

    __slots__ = ("_head", "_left")

    def __init__(self) -> None:
        self._left = 0
        self._head = b""

    @property
    def is_between_frames(self) -> bool:
        """Whether all that was fed is whole frames."""
        return not self._left and not self._head

    def feed(self, data: Data) -> None:
        """The next bytes."""
        self._read(data, stops=False)

    def end_of_frame(self, data: Data) -> int:
        """Feed what is left of the frame that is under way: how many bytes of `data` that are. All, if it goes on."""
        return self._read(data, stops=True)

    def _read(self, data: Data, *, stops: bool) -> int:
        at, size = 0, len(data)
        while at < size:
            if self._left:
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
            else:
                at = self._read_head(data, at)
            if stops and self.is_between_frames:
                return at
        return at

    def _read_head(self, data: Data, at: int) -> int:
        """Take a frame's head, or as much of it as there is."""
        head = self._head + bytes(data[at : at + 14 - len(self._head)])
        needed = 2
        if len(head) >= 2:
            length, extended = head[1] & 0x7F, 0
            if length > 125:
                extended = 2 if length == 126 else 8
            needed += extended + (4 if head[1] & _MASKED else 0)
            if len(head) >= needed:
                self._left = int.from_bytes(head[2 : 2 + extended], "big") if extended else length
                at += needed - len(self._head)
                self._head = b""
                return at
        at += len(head) - len(self._head)
        self._head = head
        return at


def close_frame(code: int, reason: str) -> bytes:
    """A server's close frame. The reason is cut to what fits, at a character."""
    words = reason.encode()[:REASON_MAX].decode(errors="ignore").encode()
    payload = code.to_bytes(2, "big") + words
    return bytes((_CLOSE, len(payload))) + payload
