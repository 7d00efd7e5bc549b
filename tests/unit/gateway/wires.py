"""Connections that exist in memory only, on a clock that stands still: the far ends are the test's to play.

A test of the protocols decides which byte arrives when, who goes silent after which, and what time it is; nothing here waits.
What the scripts really do is tested on a real Valkey (tests/contract, tests/integration/gateway).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any


class Line(asyncio.Transport):
    """A connection's near end, as a protocol sees it. The test is the far end: `say`, `end`, `lose`, and `sent` to read."""

    def __init__(self, loop: StoppedClock, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self.unread: list[bytes] = []
        """Reads that have arrived and were not taken."""
        self._ended_with: tuple[Exception | None] | None = None
        self.sent = bytearray()
        self.has_ended = False
        """The near end said that it sends no more."""
        self.is_paused = False
        self.is_lost = False
        self.on_write: Callable[[], None] | None = None

    # -- what the protocol calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_ended, "written after the end was said"
        if self._ended_with is None:
            self.sent += data

    def write_eof(self) -> None:
        self.has_ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.9.8.7", 4321) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._ended_with is not None

    def close(self) -> None:
        self._end_with(None)

    def abort(self) -> None:
        self._end_with(None)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False
        self._loop.call_soon(self._read)

    # -- what the far end does

    def say(self, data: bytes) -> None:
        """Bytes arrive, as one read."""
        self.unread.append(data)
        if not self.is_paused:
            self._read()

    def end(self) -> None:
        """The far end says that it sends no more."""
        if self._ended_with is None and not self._protocol.eof_received():
            self.close()

    def lose(self, error: Exception | None = None) -> None:
        """The connection is gone."""
        self._end_with(error or ConnectionResetError("reset by the test"))

    def _read(self) -> None:
        while self.unread and not self.is_paused and self._ended_with is None:
            self._protocol.data_received(self.unread.pop(0))

    def _end_with(self, error: Exception | None) -> None:
        if self._ended_with is None:
            self._ended_with = (error,)
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        self.is_lost = True
        assert self._ended_with is not None
        self._protocol.connection_lost(self._ended_with[0])


class StoppedClock(asyncio.SelectorEventLoop):
    """A loop whose time moves only when it is told to, and whose connections are `Line`s."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.addresses: dict[str, tuple[str, ...]] = {}
        """What names stand for, where that is not the name itself."""
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))
        self.answer_call: (
            Callable[[str, int, Callable[[], asyncio.Protocol]], asyncio.Future[Line]] | None
        ) = None

    def time(self) -> float:
        return self.now

    async def create_connection(  # type: ignore[override]
        self, factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        """A line to whoever the test lets answer at `host`."""
        assert self.answer_call is not None
        line = await self.answer_call(host, port, factory)
        return line, line._protocol

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """The name's `addresses`; else it is its own."""
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in self.addresses.get(host, (host,))
        ]

    def line(self, protocol: asyncio.Protocol) -> Line:
        """An open connection, with `protocol` at its near end."""
        line = Line(self, protocol)
        protocol.connection_made(line)
        return line

    def turn(self, count: int = 1) -> None:
        """Let everything run that needs no time."""

        async def turns() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.run_until_complete(turns())

    def end(self) -> None:
        """Cancel what is left and close the loop."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        self.run_until_complete(_gather(tasks))
        self.close()


async def _gather(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
