"""The gateway's first process: N workers on one port, and the management listener. Acts.

Each worker has a listening socket of its own on the common port (SO_REUSEPORT), made here and inherited: when a worker dies,
its socket and the connections waiting on it stay, and its replacement goes on accepting from it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import Final

import orjson
import structlog

from gateway.management import serve_management
from gateway.metrics import Snapshot, add_snapshots, without_gauges
from gateway.server import LISTEN_BACKLOG
from gateway.settings import GatewaySettings, parse_address

_RESTART_DELAY_MAX_S: Final = 5.0
_SNAPSHOT_TIMEOUT_S: Final = 2.0
_STOP_MARGIN_S: Final = 5.0

log = structlog.get_logger("gateway.supervisor")


@dataclass(slots=True)
class Worker:
    """One worker's place: its socket stays, its process may be replaced."""

    number: int
    listener: socket.socket
    process: asyncio.subprocess.Process | None = None
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    last: Snapshot | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_asked: bool = False
    """Whether a snapshot was asked for that has not come yet. The channel stays open meanwhile: its end stops a worker."""
    is_told_to_stop: bool = False


class Supervisor:
    """Keeps the workers running, sums what they count, and stops them in order."""

    def __init__(self, settings: GatewaySettings, environment: dict[str, str]) -> None:
        self._settings = settings
        self._environment = environment
        self._workers: list[Worker] = []
        self._departed: list[Snapshot] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self.restarts = 0

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the process's exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        listeners = open_listeners(self._settings.listen, self._settings.workers)
        management = await serve_management(self._settings.management_listen, self)
        host, port = listeners[0].getsockname()[:2]
        log.info(
            "gateway_listening", host=host, port=port, workers=len(listeners), management=management.address
        )
        self._workers = [Worker(number, listener) for number, listener in enumerate(listeners)]
        self._keepers = [
            asyncio.create_task(self._keep(worker), name="keep worker") for worker in self._workers
        ]
        await self._stopping.wait()
        log.info("gateway_stopping")
        await self._stop_workers()
        await management.close()
        log.info("gateway_stopped")
        return 0

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def snapshot(self) -> Snapshot:
        """The sum over all workers: those that died, and what those that do not answer said last, included."""
        answered = await asyncio.gather(*(self._ask(worker) for worker in self._workers))
        self._fold_departed()
        # What a worker said last is looked up only here: while the others were asked, it may have moved to the departed.
        current = [
            worker.last if has_answered else without_gauges(worker.last)
            for worker, has_answered in zip(self._workers, answered, strict=True)
            if worker.last is not None
        ]
        total = add_snapshots([*self._departed, *current])
        total["events"]["worker_restarted"] = self.restarts
        total["gauges"].setdefault("workers", 0)
        return total

    async def is_ready(self) -> bool:
        """True while every worker runs and admits."""
        if self.is_stopping:
            return False
        gauges = (await self.snapshot())["gauges"]
        return bool(gauges["workers"] == gauges.get("ready") == self._settings.workers)

    def _fold_departed(self) -> None:
        if len(self._departed) > 1:
            self._departed = [add_snapshots(self._departed)]

    async def _ask(self, worker: Worker) -> bool:
        """Note in `worker.last` what the worker has counted; False if it does not say. The bound is on waiting for others who
        ask, too: else everybody who asks a silent worker would wait behind all who asked before, and so would stopping.
        """
        try:
            async with asyncio.timeout(_SNAPSHOT_TIMEOUT_S), worker.asking:
                return await self._ask_alone(worker)
        except TimeoutError:
            log.error("worker_silent", worker=worker.number)
        except OSError:  # it died, which `_keep` says
            pass
        return False

    @staticmethod
    async def _ask_alone(worker: Worker) -> bool:
        reader, writer = worker.reader, worker.writer
        if reader is None or writer is None:
            return False
        if not worker.is_asked:
            writer.write(b"\n")
            worker.is_asked = True
        line = await reader.readline()
        if worker.reader is not reader:  # it died, and its place is another's by now
            return False
        worker.is_asked = False
        if not line.endswith(b"\n"):
            return False
        worker.last = orjson.loads(line)
        return True

    async def _keep(self, worker: Worker) -> None:
        """Start a worker, and again whenever it ends before we stop."""
        delay_s = 0.0
        while not self.is_stopping:
            started = asyncio.get_running_loop().time()
            try:
                status = await self._run_once(worker)
            except OSError as error:  # no memory or no processes left: there may be later
                log.error(
                    "worker_not_started", worker=worker.number, error=error.strerror or type(error).__name__
                )
            else:
                self.restarts += not self.is_stopping
                if self._stopping.is_set():
                    return
                log.error("worker_died", worker=worker.number, status=status)
            lived_s = asyncio.get_running_loop().time() - started
            delay_s = 0.0 if lived_s > _RESTART_DELAY_MAX_S else min(delay_s * 2 + 0.1, _RESTART_DELAY_MAX_S)
            await asyncio.sleep(delay_s)

    async def _run_once(self, worker: Worker) -> int:
        """Start a worker and wait for its end: its status. Raises OSError if it could not be started."""
        worker.is_told_to_stop = False
        process = await self._start(worker)
        if self.is_stopping:  # since it was being started: whoever stops the workers did not see this one
            _tell_to_stop(worker)
        status = await process.wait()
        if worker.last is not None:
            self._departed.append(without_gauges(worker.last))
        if worker.writer is not None:
            worker.writer.close()
        worker.last = worker.reader = worker.writer = worker.process = None
        return status

    async def _start(self, worker: Worker) -> asyncio.subprocess.Process:
        ours, theirs = socket.socketpair()
        listen_fd, channel_fd = worker.listener.fileno(), theirs.fileno()
        try:
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "gateway.server",
                "--listen-fd", str(listen_fd), "--channel-fd", str(channel_fd), "--log-level", self._settings.log_level,
                pass_fds=(listen_fd, channel_fd), env=self._environment, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker.reader, worker.writer = await asyncio.open_connection(sock=ours, limit=16 * 1024 * 1024)
        worker.is_asked = False
        return worker.process

    async def _stop_workers(self) -> None:
        """Ask once more what was counted, and stop. Who connects from here on is turned away, not left waiting for workers
        that accept no more."""
        for worker in self._workers:
            worker.listener.close()
        await asyncio.gather(*(self._ask(worker) for worker in self._workers))
        for worker in self._workers:
            _tell_to_stop(worker)
        _, late = await asyncio.wait(self._keepers, timeout=self._settings.drain_timeout_s + _STOP_MARGIN_S)
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                log.error("worker_killed", worker=worker.number)
                worker.process.kill()
        for keeper in late:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)


def _tell_to_stop(worker: Worker) -> None:
    """Once: a second signal would reap a process that has just ended, and whoever waits for it would not learn its status."""
    process = worker.process
    if process is not None and process.returncode is None and not worker.is_told_to_stop:
        worker.is_told_to_stop = True
        process.terminate()


def open_listeners(address: str, count: int) -> list[socket.socket]:
    """`count` listening sockets on one address. Raises OSError if it is taken or not ours."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listeners: list[socket.socket] = []
    try:
        for _ in range(count):
            listener = socket.socket(family, socket.SOCK_STREAM)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            port = listener.getsockname()[1]
        for listener in listeners:
            listener.listen(LISTEN_BACKLOG)
            listener.setblocking(False)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def environment_with(overrides: dict[str, str]) -> dict[str, str]:
    """Our environment, with settings from the command line put into it: workers read the environment only."""
    return {**os.environ, **{f"TOLLKEEPER_{name.upper()}": value for name, value in overrides.items()}}
