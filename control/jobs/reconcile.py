"""Reconcile: do the counters in Redis equal the sums of the rows? Says where they differ, and repairs nothing.

For every record: `spent` is the cost of the ledger's rows of its window and of the events not drained yet, `held` is what
the holds of its window add up to, `in_flight` is how many holds name it; and the ledger's own sums by window equal its rows. A
difference means that something was lost (a fail-over to a replica that lagged, an entry set aside as unreadable) or a defect,
and is for people to judge.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import asyncpg
import structlog
from redis.asyncio import Redis

from control.jobs import stream
from control.jobs.context import Context
from control.jobs.expire import read_hold
from gateway.contract.ids import LEVELS, Level
from gateway.contract.layout import Layout
from gateway.contract.records import COUNTER_FIELDS, Counters, read_counters
from gateway.contract.usage_event import EventError, UsageEvent, decode

ATTEMPTS: Final = 3
PAUSE_S: Final = 0.2
_BATCH: Final = 1_000
_DAY_MS: Final = 86_400_000
_LEVEL_IN_NAME: Final[dict[str, Level]] = {"org": "organization", "account": "account", "key": "key"}

Place = tuple[Level, str, int]
"""A level, the id at it, and the start of a window in ms."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """`found` and `expected` microcredits, or requests for in_flight. `what`: spent, held and in_flight are Redis's counters,
    against rows and holds; sum is the ledger's sum of a window, against its rows.
    """

    what: Literal["spent", "held", "in_flight", "sum"]
    level: Level
    id: str
    window_ms: int
    found: int
    expected: int


async def run_once(context: Context) -> list[Difference]:
    """Compare, log and count what differs. The CLI exits non-zero if the answer is not empty."""
    found = await differences(context)
    context.metrics.differences.set(len(found))
    for each in found:
        _log.error(
            "counters_differ", what=each.what, level=each.level, id=each.id, window_ms=each.window_ms,
            found=each.found, expected=each.expected,
        )  # fmt: skip
    return found


async def differences(context: Context, attempts: int = ATTEMPTS) -> list[Difference]:
    """Where counters and rows differ, ordered by place.

    Redis and Postgres cannot be read in one instant, so under traffic a comparison may be off by what moved meanwhile:
    only what differs in the same way `attempts` times is reported.
    """
    lasting = set(await _compare(context))
    for _ in range(attempts - 1):
        if not lasting:
            break
        await asyncio.sleep(PAUSE_S)
        lasting &= set(await _compare(context))
    return sorted(lasting, key=lambda each: (each.level, each.id, each.window_ms, each.what))


async def _compare(context: Context) -> list[Difference]:
    counters = {place: value async for place, value in _counters(context.redis)}
    held, in_flight = await _held(context.redis, context.layout)
    waiting = await _waiting(context.redis, context.layout)
    async with context.postgres.transaction(isolation="repeatable_read", readonly=True):
        # One picture for both: an event that is in a stream and already a row is counted once.
        waiting = await _not_yet_rows(context.postgres, waiting)
        oldest_ms = min((window for _, _, window in counters), default=0)
        rows = await _rows(context.postgres, oldest_ms)
        sums = await _sums(context.postgres)
    spent = rows.copy()
    for event in waiting:
        for place in _places(event):
            spent[place] += event.cost
    found = []
    for place, counter in counters.items():
        if counter.spent != spent[place]:
            found.append(Difference("spent", *place, counter.spent, spent[place]))
        if counter.held != held[place]:
            found.append(Difference("held", *place, counter.held, held[place]))
        if place[0] != "organization" and counter.in_flight != in_flight[place[1]]:
            found.append(Difference("in_flight", *place, counter.in_flight, in_flight[place[1]]))
    for place, sum_ in sums.items():
        if place[2] >= oldest_ms and sum_ != rows[place]:
            found.append(Difference("sum", *place, sum_, rows[place]))
    return found


async def _counters(redis: Redis) -> AsyncIterator[tuple[Place, Counters]]:
    """The counters of every record, at the window that they speak of."""
    names: set[str] = {name.decode() async for name in redis.scan_iter(match="tk:{*", count=_BATCH)}
    records = [(name, level) for name in names if (level := _level_of(name)) is not None]
    for first in range(0, len(records), _BATCH):
        part = records[first : first + _BATCH]
        async with redis.pipeline(transaction=False) as pipe:
            for name, _ in part:
                pipe.hmget(name, COUNTER_FIELDS)
            answers = await pipe.execute()
        for (name, level), values in zip(part, answers, strict=True):
            counters = read_counters(values)
            if counters is not None:
                yield (level, name.rpartition(":")[2], counters.window_ms), counters


def _level_of(name: str) -> Level | None:
    parts = name.split(":")
    return _LEVEL_IN_NAME.get(parts[2]) if len(parts) == 4 else None


async def _held(redis: Redis, layout: Layout) -> tuple[defaultdict[Place, int], defaultdict[str, int]]:
    """What is held at each place, and how many holds name each key and account."""
    sums: defaultdict[Place, int] = defaultdict(int)
    counts: defaultdict[str, int] = defaultdict(int)
    for shard in range(layout.shards):
        members = {member async for member, _ in redis.zscan_iter(layout.holds(shard), count=_BATCH)}
        for member in members:
            hold = read_hold(layout, shard, member)
            if hold is not None:
                ids = (hold.key_id, hold.account_id, hold.organization_tag)
                for level, identifier, window in zip(LEVELS, ids, hold.windows, strict=True):
                    sums[level, identifier, window] += hold.amount
                    counts[identifier] += 1
    return sums, counts


async def _waiting(redis: Redis, layout: Layout) -> list[UsageEvent]:
    events = []
    for shard in range(layout.shards):
        async for part in stream.read(redis, layout, shard):
            for entry in part:
                try:
                    event = decode(entry.payload)
                except EventError:
                    continue  # drain sets it aside and says so
                if isinstance(event, UsageEvent):
                    events.append(event)
    return events


async def _not_yet_rows(postgres: asyncpg.Connection, events: Sequence[UsageEvent]) -> list[UsageEvent]:
    known: set[tuple[int, str]] = set()
    for first in range(0, len(events), _BATCH):
        part = events[first : first + _BATCH]
        rows = await postgres.fetch(
            _KNOWN, [event.admitted_at_ms for event in part], [event.request_id for event in part]
        )
        known.update((row["at_ms"], row["request_id"]) for row in rows)
    once = {(event.admitted_at_ms, event.request_id): event for event in events}
    return [event for place, event in once.items() if place not in known]


_KNOWN: Final = """
SELECT at_ms, wanted.request_id
  FROM unnest($1::bigint[], $2::text[]) AS wanted (at_ms, request_id)
  JOIN usage_events e ON e.admitted_at = timestamptz 'epoch' + at_ms * interval '1 millisecond'
                     AND e.request_id = wanted.request_id
"""

_ROWS: Final = """
SELECT key, account, organization, key_window, account_window, organization_window, sum(cost)::bigint AS cost
  FROM usage_events
 WHERE admitted_at >= timestamptz 'epoch' + $1 * interval '1 millisecond'
 GROUP BY 1, 2, 3, 4, 5, 6
"""


async def _rows(postgres: asyncpg.Connection, oldest_window_ms: int) -> defaultdict[Place, int]:
    """Cost of the rows by place, from the oldest window on (a day earlier: clocks may have stepped back)."""
    sums: defaultdict[Place, int] = defaultdict(int)
    for row in await postgres.fetch(_ROWS, max(0, oldest_window_ms - _DAY_MS)):
        for level in LEVELS:
            sums[level, row[level], row[f"{level}_window"]] += row["cost"]
    return sums


async def _sums(postgres: asyncpg.Connection) -> dict[Place, int]:
    rows = await postgres.fetch("SELECT level, id, window_ms, spent FROM usage_windows")
    return {(row["level"], row["id"], row["window_ms"]): row["spent"] for row in rows}


def _places(event: UsageEvent) -> list[Place]:
    ids = (event.key, event.account, event.organization)
    return [(level, ids[n], event.windows[n]) for n, level in enumerate(LEVELS)]
