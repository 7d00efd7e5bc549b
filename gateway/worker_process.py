"""One life of a worker, as its supervisor sees it: a process and the channel to it. Acts."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from typing import Final, Self, cast

import orjson
import structlog

from gateway.channel import DRAINING, RELOAD, SERVING, SNAPSHOT
from gateway.metrics import Snapshot

_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_ALLOCATOR: Final = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "33554432"}
"""For glibc: keep the memory that a large read took, for the next one. Else it goes back to the system after each, and a MiB
that passes costs 150 page faults: twice the CPU. What is set from outside wins."""


log = structlog.get_logger("gateway.supervisor")


class WorkerProcess:
    """See the module's docstring."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        self.number = number
        self.process = process
        self.last: Snapshot | None = None
        """What it said last that it has counted."""
        self.status: int | None = None
        """Its exit status, once it has ended."""
        self.is_told_to_stop = False
        self.serving = asyncio.Event()
        self.leaving = asyncio.Event()
        """It accepts no more connections: it drains, or has ended."""
        self._writer = writer
        self._answer: asyncio.Future[bool] | None = None
        """Whether a snapshot was asked for that has not come yet: then nobody asks again, all wait for that one."""
        self._listening = asyncio.create_task(self._listen(reader), name=f"listen to worker {number}")
        self._waiting = asyncio.create_task(self._wait(), name=f"wait for worker {number}")

    @classmethod
    async def start(
        cls, number: int, listener: socket.socket, environment: Mapping[str, str], log_level: str
    ) -> Self:
        """Start a worker on a listening socket. Raises OSError if that cannot be done."""
        ours, theirs = socket.socketpair()
        listen_fd, channel_fd = listener.fileno(), theirs.fileno()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "gateway.server",
                "--listen-fd", str(listen_fd), "--channel-fd", str(channel_fd), "--log-level", log_level,
                pass_fds=(listen_fd, channel_fd), env={**_ALLOCATOR, **environment}, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(number, process, *await asyncio.open_connection(sock=ours, limit=_LINE_BYTES_MAX))

    async def ask(self, timeout_s: float) -> bool:
        """Note in `last` what it has counted; False if it does not say so in time, or is gone."""
        if self._writer.is_closing():
            return False
        if self._answer is None:
            self._answer = asyncio.get_running_loop().create_future()
            self._writer.write(SNAPSHOT)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._answer)
        except TimeoutError:
            log.error("worker_silent", worker=self.number)
            return False

    def reload(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(RELOAD)

    def tell_to_stop(self, kill_after_s: float | None = None) -> None:
        """And kill it if it has not ended then. Once: a second signal would reap a process that has just ended, and whoever
        waits for it would not learn its status."""
        if self.status is None and self.process.returncode is None and not self.is_told_to_stop:
            self.is_told_to_stop = True
            self.process.terminate()
            if kill_after_s is not None:
                asyncio.get_running_loop().call_later(kill_after_s, self.kill)

    def kill(self) -> None:
        if self.process.returncode is None:
            log.error("worker_killed", worker=self.number)
            self.process.kill()

    async def ended(self) -> int:
        """Wait for its end: its exit status."""
        await asyncio.shield(self._waiting)
        return cast("int", self.status)

    async def _wait(self) -> None:
        self.status = await self.process.wait()
        # What it said last, it said before it ended: read that to the end, then nobody need wait for more.
        await asyncio.wait((self._listening,), timeout=1.0)
        self._listening.cancel()
        self._writer.close()
        self._resolve(False)
        self.leaving.set()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(line.rstrip(b"\n"))
        except (OSError, ValueError) as error:  # ValueError: a line without an end
            log.error("worker_channel_broken", worker=self.number, error=type(error).__name__)
        self._resolve(False)

    def _take(self, line: bytes) -> None:
        if line == SERVING:
            self.serving.set()
        elif line == DRAINING:
            self.leaving.set()
        elif line.startswith(b"{"):
            self.last = orjson.loads(line)
            self._resolve(True)

    def _resolve(self, has_answered: bool) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(has_answered)
