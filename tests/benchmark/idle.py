"""Memory of one gateway worker while thousands of kept connections wait for their next request."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.benchmark import load, whole_requests
from tests.benchmark.contender import Contender
from tests.benchmark.processes import BenchmarkFailed, resident_mib
from tests.benchmark.rig import Rig

CONNECTIONS = 5_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident MiB of the worker: `idle` before any load, `loaded` after it, `holding` with `connections` idle ones."""

    connections: int
    idle_mib: float
    loaded_mib: float
    holding_mib: float


def worker_mib(contender: Contender) -> float:
    return sum(resident_mib(pid) for pid in contender.working_pids())


def measure(contender: Contender, rig: Rig, idle_mib: float) -> Memory:
    """Open the connections, pass one request through each, weigh the worker, and ask each once more: none was dropped.

    Raises BenchmarkFailed when a connection is refused, dropped or not answered with 200.
    """
    loaded_mib = worker_mib(contender)
    head = f"GET {load.PATH} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {contender.charged(rig).token}\r\n\r\n"
    with ExitStack() as stack:
        sockets = [stack.enter_context(_connect(contender.port)) for _ in range(CONNECTIONS)]
        _ask_each(sockets, head.encode())
        holding_mib = worker_mib(contender)
        _ask_each(sockets, head.encode())
    return Memory(CONNECTIONS, idle_mib, loaded_mib, holding_mib)


def _connect(port: int) -> socket.socket:
    try:
        return whole_requests.connect(port)
    except OSError as error:
        raise BenchmarkFailed(f"an idle connection could not be opened: {error}") from error


def _ask_each(sockets: Sequence[socket.socket], head: bytes) -> None:
    buffer = bytearray(whole_requests.BUFFER_BYTES)
    for number, connection in enumerate(sockets):
        try:
            connection.sendall(head)
            status, _ = whole_requests.read_answer(connection, buffer)
        except OSError as error:
            raise BenchmarkFailed(f"idle connection {number} was dropped: {error}") from error
        if status != 200:
            raise BenchmarkFailed(f"idle connection {number} was answered {status}")
