"""Log lines: structlog JSON on standard error for what happens rarely, a buffered access log for every request. Acts.

The access log must never slow a request or block the loop, so lines are gathered and written by a thread; when the reader
of the log is slower than the traffic, lines are dropped and counted. A token is never in a line: nothing that logs has one.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from typing import BinaryIO, Final

import structlog

LINES_KEPT_MAX: Final = 50_000
_SHARE_OF_ONE: Final = 1_000_000_000
_FLUSH_INTERVAL_S: Final = 0.1


def configure_logs(level: str) -> None:
    """JSON lines on standard error from here on. `level` is a name of the logging module, in any case."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class AccessLog:
    """One JSON line a request on standard output; `fraction` of the requests (0 = off, 1 = all) are written.

    Sampling is by counting, not by chance: of N requests, N * fraction are written.
    """

    def __init__(self, fraction: float, stream: BinaryIO | None = None) -> None:
        self._share = round(fraction * _SHARE_OF_ONE)  # whole: adding up 0.1 ten times is less than 1
        self._due = 0
        self._stream = stream or sys.stdout.buffer
        self._lines: deque[bytes] = deque()
        self._closed = threading.Event()
        self.dropped = 0
        self.is_on = fraction > 0
        self._thread: threading.Thread | None = None
        if self.is_on:
            self._thread = threading.Thread(target=self._write_lines, name="access log", daemon=True)
            self._thread.start()

    def wants_line(self) -> bool:
        """Whether this request is one of those to be written; to be asked once a request."""
        if not self.is_on:
            return False
        self._due += self._share
        if self._due < _SHARE_OF_ONE:
            return False
        self._due -= _SHARE_OF_ONE
        return True

    def write(self, line: bytes) -> None:
        """Queue one line (JSON, without its line end)."""
        if len(self._lines) >= LINES_KEPT_MAX:
            self.dropped += 1
            return
        self._lines.append(line)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, for at most `timeout_s`."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _write_lines(self) -> None:
        while not self._closed.wait(_FLUSH_INTERVAL_S):
            if not self._flush():
                return
        self._flush()

    def _flush(self) -> bool:
        lines = self._lines
        batch = [lines.popleft() for _ in range(len(lines))]
        if not batch:
            return True
        try:
            self._stream.write(b"\n".join(batch) + b"\n")
            self._stream.flush()
        except (OSError, ValueError):
            self.is_on = False
            return False
        return True
