"""Entries of the event streams: how many wait, reading the oldest, removing what was drained. Redis only, no Postgres.

Called by drain and reconcile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple, TypeAlias, cast

from redis.asyncio import Redis

from gateway.contract.layout import EVENT_FIELD, Layout

READ_MAX: Final = 1_000
"""Entries asked for at once. Redis answers nobody else meanwhile: 1 000 take it about a millisecond."""
REMOVE_MAX: Final = 500

_Found: TypeAlias = list[tuple[bytes, dict[bytes, bytes]]]


class Entry(NamedTuple):
    """One entry of a shard's stream; `payload` is not yet known to be an event."""

    shard: int
    id: bytes
    payload: bytes

    @property
    def at_ms(self) -> int:
        """When it was appended, by Redis's clock."""
        return int(self.id.partition(b"-")[0])


async def lengths(redis: Redis, layout: Layout) -> list[int]:
    """How many entries wait, by shard."""
    async with redis.pipeline(transaction=False) as pipe:
        for shard in range(layout.shards):
            pipe.xlen(layout.events(shard))
        return [int(length) for length in await pipe.execute()]


async def oldest(redis: Redis, layout: Layout, waiting: Sequence[int], limit: int) -> list[Entry]:
    """Up to `limit` entries, each stream from its start. `waiting` is what `lengths` answered.

    Shards with few entries are read whole and the rest share what remains, so that one busy shard holds up no other.
    """
    entries: list[Entry] = []
    busy = sorted((length, shard) for shard, length in enumerate(waiting) if length)
    for position, (_, shard) in enumerate(busy):
        share = (limit - len(entries)) // (len(busy) - position)
        async for part in read(redis, layout, shard, share):
            entries += part
    return entries


async def read(
    redis: Redis, layout: Layout, shard: int, limit: int | None = None
) -> AsyncIterator[list[Entry]]:
    """The entries of one stream, oldest first, at most `limit` of them, in parts of READ_MAX."""
    start, left = "-", limit
    while left is None or left > 0:
        count = READ_MAX if left is None else min(READ_MAX, left)
        # The client's types allow for decoded replies; ours are bytes (see `connect_redis`).
        found = cast(_Found, await redis.xrange(layout.events(shard), min=start, count=count))
        yield [Entry(shard, entry_id, _payload(fields)) for entry_id, fields in found]
        if len(found) < count:
            return
        start = "(" + found[-1][0].decode()
        left = None if left is None else left - count


async def remove(redis: Redis, layout: Layout, entries: Sequence[Entry]) -> None:
    """Remove exactly these entries.

    By their ids and not by trimming up to the last one: after a fail-over the new primary may hand out ids below those
    that were read, and a trim would take such an entry before it was drained.
    """
    ids: dict[int, list[bytes]] = {}
    for entry in entries:
        ids.setdefault(entry.shard, []).append(entry.id)
    async with redis.pipeline(transaction=False) as pipe:
        for shard, drained in ids.items():
            for first in range(0, len(drained), REMOVE_MAX):
                pipe.xdel(layout.events(shard), *drained[first : first + REMOVE_MAX])
        await pipe.execute()


def _payload(fields: dict[bytes, bytes]) -> bytes:
    """What the entry says; of an entry without the one field that every event has, all there is, to be set aside."""
    payload = fields.get(EVENT_FIELD)
    return payload if payload is not None else repr(fields).encode()
