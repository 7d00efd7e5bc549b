"""Thousands of clients on a connection each, who ask all at once, may leave before they are answered, and come again."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.faults.fickle_routes import Plan, drawn
from tests.system.installation import Workload
from tests.system.wire import ANSWER_TIMEOUT_S, Answer, Wire

TURNS: Final = 3
"""So many requests each client makes, if it stays."""
CONNECTING_AT_ONCE: Final = 50
WAIT_S: Final = 0.8
"""The longest that an answer takes, from when the upstream may answer."""
PAUSE_S: Final = 0.3
"""The longest that a client waits before its next request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request and what became of it. Times are of the monotonic clock."""

    workload: Workload
    plan: Plan
    connected_at: float
    began: float
    answer: Answer | None = None
    """What was read of it; None if the connection broke, or its client left."""
    has_left: bool = False

    @property
    def status(self) -> int | None:
        return self.answer.status if self.answer is not None else None

    @property
    def request_id(self) -> str:
        assert self.answer is not None
        return self.answer["x-request-id"]

    @property
    def is_refused(self) -> bool:
        """Whether a limit refused it."""
        return self.status in (402, 429)

    @property
    def refusal(self) -> tuple[str, str]:
        """The code, and the level whose limit it was."""
        assert self.answer is not None
        said = json.loads(self.answer.body)
        return said["code"], said["level"]


@dataclass(slots=True)
class Client:
    """One, with the routes that its workload uses."""

    workload: Workload
    routes: tuple[str, ...]
    port: int
    name: str
    wire: Wire | None = None
    connected_at: float = 0.0

    async def connect(self) -> Wire:
        if self.wire is None:
            self.wire = await Wire.open(self.port)
            self.connected_at = time.monotonic()
        return self.wire

    def hang_up(self, *, rudely: bool = False) -> None:
        if self.wire is not None:
            if rudely:
                self.wire.writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            self.wire.close()
            self.wire = None

    async def ask(self, wire: Wire, plan: Plan) -> Asked:
        began = time.monotonic()
        wire.send(plan.data)
        try:
            if plan.leaves:
                await self._leave(wire, plan)
                return Asked(self.workload, plan, self.connected_at, began, has_left=True)
            answer = await wire.answer()
        except (OSError, EOFError):  # TimeoutError is an OSError
            self.hang_up()
            return Asked(self.workload, plan, self.connected_at, began)
        if not answer.is_whole or answer.all("connection"):
            self.hang_up()
        return Asked(self.workload, plan, self.connected_at, began, answer)

    async def _leave(self, wire: Wire, plan: Plan) -> None:
        if plan.leaves == "unheard":
            await asyncio.sleep(plan.after_s)
        else:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await wire.reader.readuntil(b"\r\n\r\n")
        self.hang_up(rudely=plan.is_rude)


@dataclass(slots=True)
class Clients:
    """All of them. What they ask and when they leave is drawn from `seed`."""

    all: list[Client]
    seed: int
    asked: list[Asked] = field(default_factory=list)

    async def connect(self) -> None:
        gate = asyncio.Semaphore(CONNECTING_AT_ONCE)

        async def one(client: Client) -> None:
            async with gate:
                await client.connect()

        await asyncio.gather(*(one(client) for client in self.all))

    async def play(self) -> None:
        """Each sends its first request before any of them waits for an answer."""
        try:
            await asyncio.gather(*(self._one(client) for client in self.all))
        finally:
            for client in self.all:
                client.hang_up()

    async def _one(self, client: Client) -> None:
        chance = random.Random(f"{self.seed}-{client.name}")
        for turn in range(TURNS):
            plan = drawn(chance, client.workload, client.routes, f"{client.name}-{turn}", WAIT_S)
            try:
                wire = await client.connect()
            except OSError:  # nobody listens there for a moment
                await asyncio.sleep(PAUSE_S)
                continue
            asked = await client.ask(wire, plan)
            self.asked.append(asked)
            if asked.has_left:
                return
            await asyncio.sleep(chance.random() * PAUSE_S)

    def refusals(self) -> Counter[tuple[str, str]]:
        return Counter(asked.refusal for asked in self.asked if asked.is_refused)

    def statuses(self) -> Counter[int | None]:
        """Of those whose clients did not leave."""
        return Counter(asked.status for asked in self.asked if not asked.has_left)


def clients_of(
    workloads: Sequence[Workload], routes: Sequence[tuple[str, ...]], count: int, port: int, seed: int
) -> Clients:
    """So many, dealt out over the workloads; `routes` are those that each workload uses."""
    dealt = [number % len(workloads) for number in range(count)]
    return Clients(
        [Client(workloads[which], routes[which], port, str(number)) for number, which in enumerate(dealt)],
        seed,
    )
