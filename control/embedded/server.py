"""What the embedded servers have in common: a directory, a port, a password, and how they start and end.

Postgres and Valkey differ in how one attempt to start is made; the port's choice, the attempts and the end are here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from control.embedded.process import EmbeddedServerFailed, ServerProcess, free_port


class EmbeddedServer(ABC):
    """One server on 127.0.0.1, with its data, password and log in ``data_dir``."""

    name: ClassVar[str]

    def __init__(
        self, data_dir: Path, port: int | None = None, *, settings: Mapping[str, str] | None = None
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._port = port
        self._settings = dict(settings or {})
        self._password = ""
        self._process = ServerProcess(self.name, self.data_dir)

    @property
    def port(self) -> int:
        if self._port is None:
            raise EmbeddedServerFailed(f"{self.name} has not been started yet")
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id (Postgres: the postmaster's), ``None`` while it is not running."""
        return self._process.pid if self._process.is_running else None

    @property
    def is_running(self) -> bool:
        return self._process.is_running

    @property
    def log(self) -> Path:
        return self._process.log

    async def start(self) -> None:
        """Start and wait until it answers with its data loaded; the first time, make what it needs. Raises
        :class:`EmbeddedServerFailed`.
        """
        if self.is_running:
            return
        self._make_data_dir()
        chosen = self._port
        for tries_left in (2, 1, 0):
            self._port = chosen if chosen is not None else free_port()
            try:
                await self._start_once()
            except EmbeddedServerFailed:
                taken = "Address already in use" in self._process.log_of_this_start()
                if chosen is not None or not taken or not tries_left:
                    self._port = chosen
                    raise
            else:
                return

    @abstractmethod
    def _make_data_dir(self) -> None:
        """Make ``data_dir`` and close it to others."""

    @abstractmethod
    async def _start_once(self) -> None:
        """One attempt on the port that is set. Raises EmbeddedServerFailed."""

    async def stop(self) -> None:
        """End it in order (what it holds is written out) and wait for that, at most some 15 s (Postgres: 30)."""
        await self._process.stop()

    async def kill(self) -> None:
        """End it as a crash would. For tests of faults; ``start`` brings it back on the same port."""
        await self._process.kill()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
