"""A line whose far end takes bytes only when it is told to, with the write buffer and the pauses of a real transport."""

from __future__ import annotations

import asyncio

from tests.unit.gateway.wires import Line, StoppedClock


class SlowLine(Line):
    """`sent` is what the far end has taken, `unsent` what waits for it. Closing waits until everything is taken."""

    def __init__(self, loop: StoppedClock, protocol: asyncio.Protocol) -> None:
        super().__init__(loop, protocol)
        self.unsent = bytearray()
        self.takes = 0
        """How many bytes more the far end takes as they come."""
        self._high = 65_536
        self._is_full = False
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_ended, "written after the end was said"
        if self._ended_with is None and not self._is_closing:
            self.unsent += data
            self._pass_on()
            if len(self.unsent) > self._high and not self._is_full:
                self._is_full = True
                self._protocol.pause_writing()

    def take(self, count: int) -> None:
        """The far end takes up to `count` bytes, now or as they come."""
        self.takes += count
        self._pass_on()
        if self._is_full and len(self.unsent) <= self._high // 4:
            self._is_full = False
            self._protocol.resume_writing()
        if self._is_closing and not self.unsent:
            super().close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or self._high

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def is_closing(self) -> bool:
        return self._is_closing or super().is_closing()

    def close(self) -> None:
        self._is_closing = True
        if not self.unsent:
            super().close()

    def abort(self) -> None:
        self.unsent.clear()
        super().abort()

    def lose(self, error: Exception | None = None) -> None:
        self.unsent.clear()
        super().lose(error)

    def _read(self) -> None:
        if not self._is_closing:
            super()._read()

    def _pass_on(self) -> None:
        passed = self.unsent[: self.takes]
        del self.unsent[: len(passed)]
        self.takes -= len(passed)
        self.sent += passed


def slow_line(loop: StoppedClock, protocol: asyncio.Protocol) -> SlowLine:
    """An open connection, with `protocol` at its near end, of which the far end takes nothing yet."""
    line = SlowLine(loop, protocol)
    protocol.connection_made(line)
    return line
