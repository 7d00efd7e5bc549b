"""A child process of the benchmark: started on one core, waited for, accounted for, stopped. Linux only.

Called by every contender and by the rig. Every wait has an end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchmarkFailed(Exception):
    """The benchmark cannot go on; the text says what happened and ends with the last log lines where there are some."""


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes started inside stay on this core, with all their threads and children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def wait_for(is_true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return as soon as `is_true()`. Raises BenchmarkFailed naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"waited {timeout_s:g} s for {what}")
        time.sleep(_POLL_S)


def program(name: str) -> Path | None:
    """Where a system program is, looking also where servers lie that are not on everybody's path."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def accepts(port: int) -> bool:
    """Does something accept connections on this loopback port?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Child:
    """One program on one core, its output in `log`. It ends with the benchmark, even when that is killed."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        core: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        with on_core(core), log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=None if environment is None else dict(environment),
                preexec_fn=_end_with_parent,  # noqa: PLW1509  # the benchmark has one thread
            )

    def wait_ready(self, is_ready: Callable[[], bool]) -> None:
        """Wait for `is_ready()`. Raises BenchmarkFailed when the program ends first or takes too long."""

        def ready_or_ended() -> bool:
            return self._process.poll() is not None or is_ready()

        try:
            wait_for(ready_or_ended, START_TIMEOUT_S, f"{self.name} to start")
        except BenchmarkFailed as error:
            raise BenchmarkFailed(f"{error}\n{self._log_end()}") from None
        if self._process.poll() is not None:
            raise BenchmarkFailed(f"{self.name} ended instead of starting\n{self._log_end()}")

    def pids(self) -> list[int]:
        """The program and all that it started, itself first; empty when it has ended."""
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [self._process.pid, *sorted(child.pid for child in children)]

    def stop(self) -> None:
        """End it and what it started, politely first, and wait until they have gone."""
        family = self._family()
        if self._process.poll() is None:
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(_STOP_TIMEOUT_S)

    def _family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def _log_end(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-12:]
        return "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def cpu_seconds(pids: Sequence[int]) -> dict[int, float]:
    """User plus system seconds of each process so far, all threads, in steps of a clock tick (10 ms)."""
    times = {pid: psutil.Process(pid).cpu_times() for pid in pids}
    return {pid: spent.user + spent.system for pid, spent in times.items()}


def core_busy_seconds(core: int) -> float:
    """Seconds in which this core did something, for anybody, so far; what a hypervisor took away counts too."""
    times = psutil.cpu_times(percpu=True)[core]
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def resident_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 2**20
