"""The gateway's first process: N workers on one port, and the management listener. Acts.

Each worker has a listening socket of its own on the common port (SO_REUSEPORT), made here and inherited: when a worker dies
or is replaced, its socket and the connections waiting on it stay, and its successor goes on accepting from it.

    SIGTERM, SIGINT   stop in order
    SIGHUP            read the route table and the certificates again (as happens when their files change)
    SIGUSR2           replace the workers one after the other, each once its successor serves
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from gateway.management import serve_management
from gateway.metrics import Snapshot, add_snapshots, without_gauges
from gateway.route_table import SettingsError
from gateway.server import LISTEN_BACKLOG
from gateway.settings import GatewaySettings, Loaded, parse_address
from gateway.tls import stamp
from gateway.worker_process import WorkerProcess

_RESTART_DELAY_MAX_S: Final = 5.0
_SNAPSHOT_TIMEOUT_S: Final = 2.0
_SUCCESSOR_TIMEOUT_S: Final = 30.0
_FILES_LOOKED_AT_EVERY_S: Final = 1.0
_STOP_MARGIN_S: Final = 5.0
_KILLED_WITHIN_S: Final = 2.0

log = structlog.get_logger("gateway.supervisor")

Stamps = dict[Path, tuple[int, int, int] | None]


@dataclass(slots=True)
class Place:
    """One worker's place: its socket stays, its process may be replaced."""

    number: int
    listener: socket.socket
    worker: WorkerProcess | None = None
    successor: WorkerProcess | None = None
    """Started to take the worker's place when that leaves."""
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a worker is started for it, until it is known which one that is: one at a time."""


class Supervisor:
    """Keeps the workers running, sums what they count, has them reload, and stops them in order.

    `load` reads all settings and files anew; it raises SettingsError.
    """

    def __init__(self, loaded: Loaded, environment: dict[str, str], load: Callable[[], Loaded]) -> None:
        self._settings: GatewaySettings = loaded.settings
        self._environment = environment
        self._load = load
        self._stamps = _stamps(loaded)
        self._places: list[Place] = []
        self._leaving: dict[WorkerProcess, asyncio.Task[None]] = {}
        self._departed: list[Snapshot] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        self.restarts = 0
        self.reloads = {"reloaded": 0, "reload_refused": 0}

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the process's exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        loop.add_signal_handler(signal.SIGUSR2, self.roll)
        listeners = open_listeners(self._settings.listen, self._settings.workers)
        management = await serve_management(self._settings.management_listen, self)
        host, port = listeners[0].getsockname()[:2]
        log.info(
            "gateway_listening", host=host, port=port, workers=len(listeners), management=management.address,
            tls=self._settings.tls is not None,
        )  # fmt: skip
        self._places = [Place(number, listener) for number, listener in enumerate(listeners)]
        self._keepers = [asyncio.create_task(self._keep(place), name="keep worker") for place in self._places]
        watcher = asyncio.create_task(self._watch(), name="watch files")
        await self._stopping.wait()
        log.info("gateway_stopping")
        watcher.cancel()
        await self._stop_workers()
        await management.close()
        log.info("gateway_stopped")
        return 0

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def _patience_s(self) -> float:
        """How long a worker that is told to stop may take; then it is killed."""
        return self._settings.drain_timeout_s + _STOP_MARGIN_S

    # -- what the workers count

    async def snapshot(self) -> Snapshot:
        """The sum over all workers: those that died, and what those that do not answer said last, included."""
        asked = self._serving()
        answered = dict(
            zip(
                asked,
                await asyncio.gather(*(worker.ask(_SNAPSHOT_TIMEOUT_S) for worker in asked)),
                strict=True,
            )
        )
        if len(self._departed) > 1:
            self._departed = [add_snapshots(self._departed)]
        # Only those that are still there: while the others were asked, one may have moved to the departed.
        current = [
            worker.last if answered.get(worker) else without_gauges(worker.last)
            for worker in self._serving()
            if worker.last is not None
        ]
        total = add_snapshots([*self._departed, *current])
        total["events"]["worker_restarted"] = self.restarts
        for name, count in self.reloads.items():
            total["events"][name] = total["events"].get(name, 0) + count
        total["gauges"].setdefault("workers", 0)
        return total

    async def why_not_ready(self) -> str | None:
        """None while every worker runs and admits; else words for whoever looks."""
        if self.is_stopping:
            return "stopping"
        gauges = (await self.snapshot())["gauges"]
        ready, wanted = int(gauges.get("ready", 0)), self._settings.workers
        return None if ready >= wanted else f"{ready} of {wanted} workers admit"

    def _workers(self) -> list[WorkerProcess]:
        """All that run: in their places, on their way there, and on their way out."""
        placed = [
            worker
            for place in self._places
            for worker in (place.worker, place.successor)
            if worker is not None
        ]
        return [*placed, *self._leaving]

    def _serving(self) -> list[WorkerProcess]:
        """Those of them that have something to say: a successor that only starts is nobody yet."""
        starting = {
            place.successor
            for place in self._places
            if place.successor and not place.successor.serving.is_set()
        }
        return [worker for worker in self._workers() if worker not in starting]

    # -- their lives

    async def _keep(self, place: Place) -> None:
        """Have a worker in a place, whatever becomes of one, until we stop."""
        delay_s = 0.0
        while not self._stopping.is_set():
            started = asyncio.get_running_loop().time()
            try:
                async with place.starting:
                    place.worker = worker = place.successor or await self._start(place)
                    place.successor = None
            except OSError as error:  # no memory or no processes left: there may be later
                log.error(
                    "worker_not_started", worker=place.number, error=error.strerror or type(error).__name__
                )
            else:
                if self.is_stopping:  # since it was being started: whoever stops the workers did not see it
                    worker.tell_to_stop(self._patience_s)
                await worker.leaving.wait()
                self._leaving[worker] = asyncio.create_task(self._see_off(worker), name="see worker off")
                place.worker = None
                if worker.status is None or worker.is_told_to_stop:
                    continue
            lived_s = asyncio.get_running_loop().time() - started
            delay_s = 0.0 if lived_s > _RESTART_DELAY_MAX_S else min(delay_s * 2 + 0.1, _RESTART_DELAY_MAX_S)
            await asyncio.sleep(delay_s)

    async def _start(self, place: Place) -> WorkerProcess:
        return await WorkerProcess.start(
            place.number, place.listener, self._environment, self._settings.log_level
        )

    async def _see_off(self, worker: WorkerProcess) -> None:
        """Wait for the end of a worker that left its place, and keep what it has counted."""
        is_sudden = worker.status is not None and not worker.is_told_to_stop
        status = await worker.ended()
        if is_sudden and not self.is_stopping:
            self.restarts += 1
            log.error("worker_died", worker=worker.number, status=status)
        elif status:
            log.error("worker_died", worker=worker.number, status=status)
        if worker.last is not None:
            self._departed.append(without_gauges(worker.last))
        del self._leaving[worker]

    def roll(self) -> None:
        """Replace the workers one after the other."""
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._roll(), name="rolling restart")

    async def _roll(self) -> None:
        log.info("rolling_restart")
        for place in self._places:
            if self.is_stopping:
                return
            try:
                async with place.starting:
                    place.successor = worker = place.successor or await self._start(place)
            except OSError as error:
                log.error(
                    "rolling_restart_failed",
                    worker=place.number,
                    error=error.strerror or type(error).__name__,
                )
                return
            has_come = await _first_of(worker.serving, worker.leaving, _SUCCESSOR_TIMEOUT_S)
            if not has_come or worker.leaving.is_set():
                log.error("rolling_restart_failed", worker=place.number, error="the successor does not serve")
                if place.successor is worker:
                    place.successor = None
                    worker.kill()
                return
            before = place.worker
            if before is not None and before is not worker:
                before.tell_to_stop(self._patience_s)
        log.info("rolling_restart_done")

    async def _stop_workers(self) -> None:
        """Ask once more what was counted, and stop. Who connects from here on is turned away, not left waiting for workers
        that accept no more."""
        for place in self._places:
            place.listener.close()
        if self._rolling is not None:
            self._rolling.cancel()
        await asyncio.gather(*(worker.ask(_SNAPSHOT_TIMEOUT_S) for worker in self._workers()))
        for worker in self._workers():
            worker.tell_to_stop(self._patience_s)
        deadline = asyncio.get_running_loop().time() + self._patience_s + _KILLED_WITHIN_S
        for tasks in (self._keepers, self._leaving.values()):  # who leaves a place is seen off from then on
            if tasks:
                left_s = max(deadline - asyncio.get_running_loop().time(), 0.0)
                await asyncio.wait(list(tasks), timeout=left_s)
        for task in (*self._keepers, *self._leaving.values()):
            task.cancel()
        await asyncio.gather(*self._keepers, *self._leaving.values(), return_exceptions=True)

    # -- what they are told

    async def _watch(self) -> None:
        """Reload when it is asked for, and when a file has changed and stays as it is for a moment."""
        changed: Stamps | None = None
        while True:
            try:
                async with asyncio.timeout(_FILES_LOOKED_AT_EVERY_S):
                    await self._reload_wanted.wait()
            except TimeoutError:
                now: Stamps = {path: stamp(path) for path in self._stamps}
                if now == self._stamps:
                    changed = None
                elif now != changed:
                    changed = now
                else:
                    self._reload_wanted.set()
            if self._reload_wanted.is_set():
                self._reload_wanted.clear()
                changed = None
                await self._reload()

    async def _reload(self) -> None:
        """Have every worker read its files again, if they are good."""
        self._stamps = {path: stamp(path) for path in self._stamps}  # a bad file is complained of once
        try:
            loaded = await asyncio.to_thread(self._load)
        except SettingsError as error:
            self.reloads["reload_refused"] += 1
            log.error("reload_refused", problems=error.problems)
            return
        except (
            OSError,
            ValueError,
        ) as error:  # nobody foresaw it: the old ones stay, and the next change is looked at
            self.reloads["reload_refused"] += 1
            log.error("reload_refused", problems=[f"{type(error).__name__}: {error}"])
            return
        self._stamps = _stamps(loaded)
        for worker in self._workers():
            worker.reload()
        self.reloads["reloaded"] += 1
        log.info("reloaded", routes=[route.name for route in loaded.routes.routes])


def _stamps(loaded: Loaded) -> Stamps:
    return {path: stamp(path) for path in loaded.files()}


async def _first_of(one: asyncio.Event, other: asyncio.Event, timeout_s: float) -> bool:
    """Wait until one of two things has happened; False if neither does in time."""
    waits = [asyncio.create_task(event.wait()) for event in (one, other)]
    done, pending = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return bool(done)


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
