"""Starts `tollkeeper …` as a person would, in a session of its own, and stops it. Used by all tests of the whole product."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from control.embedded import EmbeddedPostgres

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0
TOLLKEEPER = (sys.executable, "-P", "-m", "control.cli")


def environment(**added: str) -> dict[str, str]:
    """This process's environment without settings of Tollkeeper, but for those added."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return bare | added


class Running:
    """One started command; its output is gathered line by line while it runs."""

    def __init__(self, arguments: Sequence[str], settings: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*TOLLKEEPER, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**(settings or {})),
            cwd="/",
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.talk: list[str] = []
        self._waiting: queue.Queue[str | None] = queue.Queue()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._gather, args=(self.process.stdout, self.lines, self._waiting)),
            threading.Thread(target=self._gather, args=(self.process.stderr, self.talk, None)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _gather(stream: Any, lines: list[str], waiting: "queue.Queue[str | None] | None") -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))
            if waiting is not None:
                waiting.put(lines[-1])
        if waiting is not None:
            waiting.put(None)

    def line(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """The next line of standard output; fails with what was said on standard error when there is none."""
        line = self._waiting.get(timeout=timeout_s)
        assert line is not None, "ended without a line:\n" + "\n".join(self.talk)
        return line

    def addresses(self) -> dict[str, str]:
        """The one line that `up --json` prints."""
        fields: dict[str, str] = json.loads(self.line())
        return fields

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send the signal, wait, give the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(5)
        return status

    def close(self) -> None:
        """End it whatever it is doing; its children end with it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        for reader in self._readers:
            reader.join(5)


@contextmanager
def started(*arguments: str) -> Iterator[Running]:
    running = Running(arguments)
    try:
        yield running
    finally:
        running.close()


def remove_data(data: Path) -> None:
    """Remove a data directory and what its Postgres keeps elsewhere."""
    if (data / "postgres").exists():
        EmbeddedPostgres(data / "postgres").remove_data()
    shutil.rmtree(data, ignore_errors=True)
