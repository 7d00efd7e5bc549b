"""Requests that keep coming while something breaks, and what became of each."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.wire import Answer, Wire, request

LOOPS = 12
PAUSE_S = 0.004
UNUSED_MAX_S = 1.0
"""A kept connection that was not used for so long is not used again: half of what a gateway that drains grants."""

"""Between two requests of one loop: enough load to be in the middle of something at any moment, on few cores."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """When a request began and ended (monotonic), and its status; None if the connection broke."""

    began: float
    ended: float
    status: int | None
    answer: Answer | None = None
    """All of it, where that is kept."""


@dataclass(slots=True)
class Load:
    outcomes: list[Outcome] = field(default_factory=list)
    stopping: bool = False

    def since(self, moment: float) -> list[Outcome]:
        """Those that began after the moment."""
        return [each for each in self.outcomes if each.began > moment]

    def counted(self, since: float = 0.0) -> Counter[int | None]:
        return Counter(each.status for each in self.since(since))

    async def until(self, status: int, count: int, timeout_s: float = 20.0) -> float:
        """Wait for so many answers of this status to requests that begin from now on; gives the moment of the call."""
        now = time.monotonic()
        what = f"{count} answers of status {status}"
        await wait_until(lambda: self.counted(now)[status] >= count, timeout_s, what)
        return now

    async def until_only(self, status: int, for_s: float = 0.3, timeout_s: float = 20.0) -> None:
        """Wait until all requests that began in the last `for_s` seconds had this status, and there were some."""

        def is_so() -> bool:
            found = self.counted(time.monotonic() - for_s)
            return found[status] > 10 and len(found) == 1

        await wait_until(is_so, timeout_s, f"nothing but {status}")


@asynccontextmanager
async def load(
    installation: Installation, workload: Workload, path: str = "/priced/sleep/0.02"
) -> AsyncIterator[Load]:
    """LOOPS clients ask without end; inside, the requests already pass. They have all ended on leaving."""
    running = Load()
    url = f"{installation.addresses.gateway}{path}"

    async def loop(number: int) -> None:
        count = 0
        while not running.stopping:
            count += 1
            began = time.monotonic()
            status: int | None = None
            try:
                async with installation.http.get(
                    f"{url}/{number}-{count}", headers=workload.bearer
                ) as answer:
                    await answer.read()
                    status = answer.status
            except aiohttp.ClientError:
                await asyncio.sleep(0.02)
            running.outcomes.append(Outcome(began, time.monotonic(), status))
            await asyncio.sleep(PAUSE_S)

    tasks = [asyncio.create_task(loop(number)) for number in range(LOOPS)]
    try:
        await running.until(200, 50)
        yield running
    finally:
        running.stopping = True
        await asyncio.gather(*tasks)


@asynccontextmanager
async def kept_load(
    port: int, workload: Workload, path: str, *, tls: ssl.SSLContext | None = None, loops: int = LOOPS
) -> AsyncIterator[Load]:
    """So many clients ask without end, GET and POST in turn, each on a connection that it keeps for as long as it may, and
    never twice for the same; inside, the requests already pass. They have all ended on leaving.
    """
    running = Load()

    async def loop(number: int) -> None:
        client: Wire | None = None
        used_at = 0.0
        count = number
        while not running.stopping:
            count += 1
            body = b"x" * 100 if count % 2 else b""
            data = request(workload, f"{path}/{number}-{count}", method="POST" if body else "GET", body=body)
            began, answer = time.monotonic(), None
            if (
                client is not None and began - used_at > UNUSED_MAX_S
            ):  # this process stood still: as clients do, begin anew
                client.close()
                client = None
            try:
                client = client or await Wire.open(port, tls=tls)
                client.send(data)
                answer = await client.answer()
            except (OSError, EOFError):  # TimeoutError is an OSError
                await asyncio.sleep(0.02)
            used_at = time.monotonic()
            is_answered = answer is not None and answer.is_whole
            status = answer.status if answer is not None and is_answered else None
            running.outcomes.append(Outcome(began, time.monotonic(), status, answer))
            if client is not None and (answer is None or not is_answered or answer.all("connection")):
                client.close()
                client = None
            await asyncio.sleep(PAUSE_S)
        if client is not None:
            client.close()

    tasks = [asyncio.create_task(loop(number)) for number in range(loops)]
    try:
        await running.until(200, 50)
        yield running
    finally:
        running.stopping = True
        await asyncio.gather(*tasks)
