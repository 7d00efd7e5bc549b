"""What a contender of the benchmark is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from tests.benchmark import rules
from tests.benchmark.processes import BenchmarkFailed, Child
from tests.benchmark.rig import Rig


class Contender(ABC):
    """A proxy in front of the rig's upstream. Started once, driven in several rounds, stopped."""

    name: ClassVar[str]
    does: ClassVar[str]
    charges: ClassVar[bool] = False
    """Admits and settles each request in Redis: then its events and its counters are checked."""

    heads_differ: ClassVar[bool] = False
    """Is sent a head that differs from every one before, so that nothing remembered of the last one is of use."""

    scheme: ClassVar[str] = "http"

    def __init__(self) -> None:
        self._child: Child | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @abstractmethod
    def absent(self) -> str | None:
        """Why it cannot run on this machine; None if it can."""

    @abstractmethod
    def start(self, rig: Rig) -> None:
        """Start it on the rig's proxy core and wait until it accepts. Raises BenchmarkFailed."""

    @property
    def child(self) -> Child:
        if self._child is None:
            raise BenchmarkFailed(f"{self.name} is not running")
        return self._child

    def pids(self) -> list[int]:
        """All its processes, the first one started first."""
        return self.child.pids()

    def working_pids(self) -> list[int]:
        """Those of `pids` whose CPU time is charged to requests. All, unless a contender says otherwise."""
        return self.pids()

    def charged(self, rig: Rig) -> rules.Charged:
        """Whose token the load sends. Contenders that do not look at it are sent the gateway's all the same."""
        return rig.account

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None
