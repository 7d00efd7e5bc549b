"""Starts `fickle`, and tells it what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.test_abuse import process

STEP_TIMEOUT_S = 30.0


class FickleUpstream:
    """Started by `fickle_upstream`."""

    def __init__(self, started: asyncio.subprocess.Process, port: int) -> None:
        self._process = started
        self.url = f"http://127.0.0.1:{port}"

    def open(self) -> None:
        """Answer from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def seen(self) -> dict[str, str]:
        """The targets of all requests that reached it, by their ids; it ends with this."""
        output, _ = await asyncio.wait_for(self._process.communicate(b""), STEP_TIMEOUT_S)
        return dict(json.loads(output))


@asynccontextmanager
async def fickle_upstream() -> AsyncIterator[FickleUpstream]:
    """The process, ended on leaving."""
    async with process("tests.faults.fickle") as started:
        assert started.stdout is not None
        line = await asyncio.wait_for(started.stdout.readline(), STEP_TIMEOUT_S)
        yield FickleUpstream(started, int(line.split()[1]))
