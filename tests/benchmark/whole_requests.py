"""A load in threads of our own, for what wrk cannot do: a request that was begun is ended, so the counts are exact.

For bodies of 100 MiB, of which a turn of seconds sees a few dozen, and for new connections whose sessions must not be resumed.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.benchmark.load import Load
from tests.benchmark.processes import BenchmarkFailed, on_core

TIMEOUT_S = 15.0
"""Of one step on a socket."""

BUFFER_BYTES = 262_144

Statuses = Generator[int, None, None]
"""The requests of one thread, one after another: the status of each, as soon as its answer is whole."""


def drive(begin: Callable[[], Statuses], *, seconds: int, connections: int, core: int) -> Load:
    """As many threads as `connections`, each with requests of its own until the time is up. They end on `core`."""
    started = time.perf_counter()
    with on_core(core), ThreadPoolExecutor(connections) as threads:
        running = [threads.submit(_ask_until, started + seconds, begin()) for _ in range(connections)]
        counts = [one.result() for one in running]
    duration_s = time.perf_counter() - started
    took_us = sorted(one for count in counts for one in count.took_us)
    return Load(
        requests=len(took_us),
        duration_s=duration_s,
        refused=sum(count.refused for count in counts),
        unanswered=sum(count.unanswered for count in counts),
        p50_us=statistics.median(took_us) if took_us else 0.0,
        p99_us=took_us[len(took_us) * 99 // 100] if took_us else 0.0,
    )


@dataclass(slots=True)
class _Count:
    took_us: list[float] = field(default_factory=list)
    refused: int = 0
    unanswered: int = 0


def _ask_until(end: float, statuses: Statuses) -> _Count:
    """A thread ends at its first socket error: such a round is not believed anyway."""
    count = _Count()
    with contextlib.closing(statuses):
        while (began := time.perf_counter()) < end:
            try:
                status = next(statuses)
            except OSError:
                count.unanswered += 1
                break
            count.took_us.append((time.perf_counter() - began) * 1e6)
            count.refused += status >= 400
    return count


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def read_answer(connection: socket.socket, buffer: bytearray) -> tuple[int, int]:
    """Read a whole answer by its Content-Length: its status, and the bytes of its body, which are not kept.

    Raises OSError when the connection ends first, BenchmarkFailed when the answer is not framed by a length.
    """
    view, filled = memoryview(buffer), 0
    while (end := buffer.find(b"\r\n\r\n", 0, filled)) < 0:
        filled += _receive(connection, view[filled:])
    status_line, *lines = bytes(view[:end]).split(b"\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in lines)
    if b"content-length" not in fields:
        raise BenchmarkFailed(f"an answer without a length: {status_line!r}")
    length = int(fields[b"content-length"])
    missing = length - (filled - end - 4)
    while missing > 0:
        missing -= _receive(connection, view[:missing])
    return int(status_line.split(b" ")[1]), length


def _receive(connection: socket.socket, view: memoryview) -> int:
    count = connection.recv_into(view)
    if not count:
        raise ConnectionError("closed by the other end")
    return count
