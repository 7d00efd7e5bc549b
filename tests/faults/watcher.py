"""Looks at counters and holds in Redis, all of them in one moment, again and again while something goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from control.embedded import wait_until
from gateway.contract.ids import LEVELS, Level
from gateway.contract.records import Hold

PAUSE_S = 0.002
HOLDS_EVERY = 8
"""Every so many looks, the holds themselves are added up."""

_LOOK: Final = """
local clock = redis.call('TIME')
local counters, holds, count = {}, {}, 0
for i = 1, ARGV[1] do counters[i] = redis.call('HMGET', KEYS[i], 'spent', 'held', 'in_flight') end
for i = ARGV[1] + 1, #KEYS do
  count = count + redis.call('ZCARD', KEYS[i])
  if ARGV[2] == 'holds' then holds[#holds + 1] = redis.call('ZRANGE', KEYS[i], 0, -1) end
end
return {clock[1] * 1000 + math.floor(clock[2] / 1000), count, counters, holds}
"""


@dataclass(frozen=True, slots=True)
class Entity:
    """A key, an account or an organization (by its tag), with what it may spend and have in flight (None: no bound)."""

    level: Level
    id: str
    record: str
    limit: int | None = None
    in_flight: int | None = None


@dataclass(slots=True)
class Watched:
    """What was seen so far."""

    looks: int = 0
    looks_at_holds: int = 0
    holds: int = 0
    """At the last look."""
    holds_most: int = 0
    over: list[tuple[Entity, int, int]] = field(default_factory=list)
    """When an entity had more spent and held than its limit: the entity, when (ms), and how much it was."""
    crowded: list[tuple[Entity, int]] = field(default_factory=list)
    """When an entity had more in flight than it may."""
    adrift: list[tuple[Entity, int, int]] = field(default_factory=list)
    """When the holds that name an entity did not add up to what it has held, or were not as many as it has in flight: that, and
    what they are."""


class Watcher:
    def __init__(self, url: str, entities: Sequence[Entity], holds: Sequence[str]) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=False)
        self._entities = entities
        self._keys = [*(entity.record for entity in entities), *holds]
        self._stopping = threading.Event()
        self.watched = Watched()

    def run(self) -> None:
        """Until `stop`; in a thread of its own."""
        with self._client:
            while not self._stopping.is_set():
                self._look(with_holds=self.watched.looks % HOLDS_EVERY == 0)
                time.sleep(PAUSE_S)

    def stop(self) -> None:
        self._stopping.set()

    def _look(self, *, with_holds: bool) -> None:
        what = "holds" if with_holds else ""
        reply = self._client.eval(_LOOK, len(self._keys), *self._keys, str(len(self._entities)), what)
        at_ms, count, counters, holds = cast(list[Any], reply)
        watched = self.watched
        for entity, values in zip(self._entities, counters, strict=True):
            spent, held, in_flight = (int(value or 0) for value in values)
            if entity.limit is not None and spent + held > entity.limit:
                watched.over.append((entity, at_ms, spent + held))
            if entity.in_flight is not None and in_flight > entity.in_flight:
                watched.crowded.append((entity, in_flight))
        watched.holds, watched.holds_most = count, max(watched.holds_most, count)
        watched.looks += 1
        if with_holds:
            self._add_up(counters, [member for members in holds for member in members])

    def _add_up(self, counters: list[Any], members: list[bytes]) -> None:
        sums: Counter[tuple[str, str]] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        for hold in map(Hold.unpack, members):
            for level, id_ in zip(LEVELS, (hold.key_id, hold.account_id, hold.organization_tag), strict=True):
                sums[level, id_] += hold.amount
                counts[level, id_] += 1
        for entity, (_, held, in_flight) in zip(self._entities, counters, strict=True):
            name = (entity.level, entity.id)
            if int(held or 0) != sums[name]:
                self.watched.adrift.append((entity, int(held or 0), sums[name]))
            if entity.level != "organization" and int(in_flight or 0) != counts[name]:
                self.watched.adrift.append((entity, int(in_flight or 0), counts[name]))
        self.watched.looks_at_holds += 1


@asynccontextmanager
async def watching(
    url: str, entities: Sequence[Entity], holds: Sequence[str], looks_min: int
) -> AsyncIterator[Watched]:
    """Look until the end, and at least so many times."""
    watcher = Watcher(url, entities, holds)
    task = asyncio.create_task(asyncio.to_thread(watcher.run))
    try:
        yield watcher.watched
        await wait_until(lambda: task.done() or watcher.watched.looks >= looks_min, 20, "enough looks")
    finally:
        watcher.stop()
        await task
