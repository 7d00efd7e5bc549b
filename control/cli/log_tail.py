"""Reads what a child process appends to its log, and passes on what a person should see: warnings and worse.

Called by ``stack.py`` while it watches. The log itself stays in the data directory; when it grows past its bound the
older half of the story is kept beside it, once.
"""

import json
import shutil
from pathlib import Path

from control.cli.output import talk

LOG_BYTES_MAX = 64 * 1024 * 1024
_READ_BYTES_MAX = 1024 * 1024
_LINES_MAX = 20
_PASSED_ON = {"warning", "error", "critical", "exception", "fatal"}


def worth_showing(line: str) -> str | None:
    """A log line as people should see it, or None for one that only the file needs.

    Our processes log JSON objects with a `level`; what is not JSON (a traceback, say) is always worth showing.
    """
    if not line.strip():
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict):
        return line
    level = str(entry.get("level", "info")).lower()
    if level not in _PASSED_ON:
        return None
    told = {
        name: value
        for name, value in entry.items()
        if name not in ("level", "event", "timestamp", "time", "ts")
    }
    more = " ".join(f"{name}={value}" for name, value in told.items())
    return f"{level}: {entry.get('event', '')} {more}".rstrip()


class LogTail:
    """The end of one log, from where it ends now."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def pass_on(self) -> None:
        """Say on standard error what was logged since the last call and is worth showing; of a flood, its beginning."""
        worth = [shown for line in self._new_lines() if (shown := worth_showing(line))]
        for shown in worth[:_LINES_MAX]:
            talk(f"[{self.name}] {shown}")
        if len(worth) > _LINES_MAX:
            talk(f"[{self.name}] … and {len(worth) - _LINES_MAX} lines more in {self._path}")

    def _new_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        size = self._path.stat().st_size
        if size < self._position:  # begun anew
            self._position, self._rest = 0, b""
        if size == self._position:
            return []
        with self._path.open("r+b") as file:
            start = max(self._position, size - _READ_BYTES_MAX)
            file.seek(start)
            data = file.read()
            # A flood is not repeated here: it is in the file. What is read of it begins in the middle of a line.
            data = data[data.find(b"\n") + 1 :] if start > self._position else self._rest + data
            self._position = file.tell()
            if self._position > LOG_BYTES_MAX:
                # The writer appends (O_APPEND), so it goes on at the start of the emptied file.
                shutil.copyfile(self._path, self._path.with_suffix(".log.1"))
                file.truncate(0)
                self._position = 0
        *lines, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in lines]
