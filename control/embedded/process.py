"""One embedded server as a process: the claim on its data directory, the start, the bounded stop, its log.

Knows nothing of Postgres or Valkey. Called by ``postgres.py`` and ``valkey.py`` only; ``free_port`` and
``wait_until`` are for tests and the demo as well.
"""

import asyncio
import contextlib
import fcntl
import inspect
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

_GUARD = Path(__file__).with_name("guard.py")
_LOG_BYTES_MAX = 4 * 1024 * 1024
_CLAIM_WAIT_S = 30.0
_POLL_S = 0.02


class EmbeddedServerFailed(Exception):
    """A server could not be started or did not stay up. The text says which, why, and ends with its last log
    lines.
    """


@dataclass(frozen=True, slots=True)
class SystemUser:
    """Whom the server runs as, when it cannot be us."""

    name: str
    uid: int
    gid: int


def free_port() -> int:
    """A TCP port that is free on 127.0.0.1 now. Somebody else may take it before its use: be ready to try
    again.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def wait_until(
    predicate: Callable[[], bool] | Callable[[], Awaitable[bool]],
    timeout_s: float,
    what: str = "the condition",
) -> None:
    """Return as soon as ``predicate()`` is true, looking every 20 ms; ``TimeoutError`` naming ``what`` after
    ``timeout_s``.
    """
    deadline = monotonic() + timeout_s
    while True:
        answer = predicate()
        if await answer if inspect.isawaitable(answer) else answer:
            return
        if monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        await asyncio.sleep(_POLL_S)


def make_private_dir(directory: Path, mode: int = 0o700) -> None:
    """Make a data directory with exactly this mode. One that is there already is left as it is."""
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(mode)


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with contextlib.suppress(FileNotFoundError):
        partial.unlink()
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


def kept_password(path: Path) -> str:
    """The password in this file, made (256 bits, letters and digits) when there is none yet."""
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text().strip()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ServerProcess:
    """One server under guard. ``start`` and ``stop`` may alternate; never both at once.

    The claim on ``data_dir`` is a lock on a file in it, held by the guard and by the server itself, not by
    us: it lasts exactly as long as something may still write there, however we end.
    """

    def __init__(self, name: str, data_dir: Path) -> None:
        self.name = name
        self.data_dir = data_dir
        self.log = data_dir / "server.log"
        self.pid: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def is_running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    async def claim(self) -> int:
        """Lock the data directory; the descriptor is to be given to ``launch`` or closed.

        Raises :class:`EmbeddedServerFailed` at once when another process is using it, and after a wait when
        what a dead one left behind does not end.
        """
        lock_file = self.data_dir / "lock"
        lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = monotonic() + _CLAIM_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owners = [int(word) for word in lock_file.read_text().split()]
                in_use = bool(owners) and all(_is_alive(pid) for pid in owners)
                if in_use or monotonic() > deadline:
                    os.close(lock)
                    whose = f"process {owners[0]}" if in_use else "a server that does not end"
                    raise EmbeddedServerFailed(
                        f"{self.name}: the data directory {self.data_dir} is in use by {whose}. "
                        "End that one first, or choose another directory."
                    ) from None
                await asyncio.sleep(_POLL_S)
            else:
                return lock

    def launch(
        self,
        lock: int,
        command: Sequence[str | Path],
        *,
        user: SystemUser | None,
        stop_steps: Sequence[tuple[signal.Signals, float]],
        env: dict[str, str],
    ) -> None:
        """Start the guard, and through it the server. Takes over ``lock``. Returns when the server has a
        process id.
        """
        order = {
            "command": [str(word) for word in command],
            "user": user.uid if user else None,
            "group": user.gid if user else None,
            "keep_fds": [lock],
            "stop": [[int(number), wait_s] for number, wait_s in stop_steps],
        }
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            self._log_start = os.fstat(log).st_size
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[lock],
                cwd="/",
                env=env,
                start_new_session=True,
            )
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()} {self._guard.pid}\n".encode(), 0)
        finally:
            os.close(log)
            os.close(lock)
        assert self._guard.stdout is not None
        line = self._guard.stdout.readline()
        if not line:
            self._forget(self._guard.wait())
            raise self.failure("could not be started")
        self.pid = int(line)

    async def wait_ready(self, is_ready: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Wait until the server answers; :class:`EmbeddedServerFailed` when it ends first, or does not in
        time.
        """

        async def ready_or_ended() -> bool:
            return not self.is_running or await is_ready()

        try:
            await wait_until(ready_or_ended, timeout_s)
        except TimeoutError:
            failure = self.failure(f"did not answer within {timeout_s:g} s")
            await self.stop()
            raise failure from None
        except BaseException:
            await self.stop()
            raise
        if not self.is_running:
            await self.stop()
            raise self.failure("ended instead of starting")

    async def stop(self) -> None:
        """End the server and wait until it has. The guard's own steps bound the wait. Does nothing when there
        is none.
        """
        guard = self._guard
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()
        # A thread, and not a poll: a cancelled caller must still find the server ended.
        self._forget(await asyncio.shield(asyncio.to_thread(guard.wait)))

    async def kill(self) -> None:
        """End the server with SIGKILL, as a crash would, and wait until the process is gone. For tests of
        faults.
        """
        if self.pid is not None and self.is_running:
            os.kill(self.pid, signal.SIGKILL)
        await self.stop()

    def _forget(self, _status: int) -> None:
        if self._guard is not None:
            assert self._guard.stdin is not None
            assert self._guard.stdout is not None
            self._guard.stdin.close()
            self._guard.stdout.close()
        self._guard, self.pid = None, None

    def log_of_this_start(self) -> str:
        """What the server has printed since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def failure(self, what: str) -> EmbeddedServerFailed:
        lines = self.log_of_this_start().splitlines()[-15:]
        shown = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
        return EmbeddedServerFailed(f"{self.name} {what}. The end of {self.log}:\n{shown}")
