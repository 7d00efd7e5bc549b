"""Drain: events of the streams become rows of the ledger, once each, however often this is killed and run again. A crossing
of a threshold becomes an alert in the same way.

A batch is read, written in one transaction, and only then removed from the streams. Killed before the commit, it left
nothing; killed after it, the same entries are read again and change nothing, because the row of a request is found by
its primary key. Nothing is ever removed that was not committed.

An entry that is not an event goes to `rejected_events`, so that it neither blocks the stream nor is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg
import structlog

from control.jobs import ledger, stream
from control.jobs.context import Context
from control.jobs.stream import Entry
from gateway.contract.usage_event import AlertCrossing, Event, EventError, RefusalCount, UsageEvent, decode

BATCH_MAX: Final = 5_000
PAYLOAD_KEPT_MAX: Final = 8_192
_EXACT_MAX: Final = 2**53  # Lua's numbers, and so Redis's counters, are exact below

_log = structlog.get_logger(__name__)

Decoded = tuple[Entry, Event]


@dataclass(frozen=True, slots=True)
class Drained:
    """What a run did: rows added, events that were rows already, entries set aside, and new alerts."""

    events: int = 0
    repeated: int = 0
    refusals: int = 0
    rejected: int = 0
    alerts: int = 0

    def __add__(self, other: Drained) -> Drained:
        return Drained(
            self.events + other.events,
            self.repeated + other.repeated,
            self.refusals + other.refusals,
            self.rejected + other.rejected,
            self.alerts + other.alerts,
        )


async def run_once(context: Context) -> Drained:
    """Drain until the streams are empty but for what arrives meanwhile, or until the context is stopping."""
    statement = await ledger.prepare(context.postgres)
    total = Drained()
    while True:
        waiting = await stream.lengths(context.redis, context.layout)
        entries = await stream.oldest(context.redis, context.layout, waiting, BATCH_MAX)
        context.metrics.backlog_events.set(sum(waiting))
        await _measure_lag(context, entries)
        if entries:
            total += await record(context, statement, entries)
            await stream.remove(context.redis, context.layout, entries)
        if len(entries) < BATCH_MAX or context.stopping.is_set():
            context.metrics.backlog_events.set(sum(waiting) - len(entries))
            return total


async def record(context: Context, statement: str, entries: Sequence[Entry]) -> Drained:
    """Write these entries to Postgres and leave the streams alone. `statement` is what `ledger.prepare` answered."""
    decoded: list[Decoded] = []
    done = Drained()
    for entry in entries:
        try:
            decoded.append((entry, _read(entry.payload)))
        except EventError as error:
            done += await _reject(context, entry, str(error))
    done += await _record(context, statement, decoded)
    metrics = context.metrics
    metrics.drained_events.inc(done.events)
    metrics.repeated_events.inc(done.repeated)
    metrics.rejected_events.inc(done.rejected)
    metrics.alerts.inc(done.alerts)
    return done


async def _record(context: Context, statement: str, decoded: Sequence[Decoded]) -> Drained:
    """One transaction for all; where Postgres cannot store one of them, halves, down to the one that it is."""
    if not decoded:
        return Drained()
    try:
        return await _insert(context.postgres, statement, [event for _, event in decoded])
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if not _is_about_the_data(error):
            raise
        if len(decoded) == 1:
            return await _reject(context, decoded[0][0], f"cannot be stored: {type(error).__name__}")
    middle = len(decoded) // 2
    first = await _record(context, statement, decoded[:middle])
    return first + await _record(context, statement, decoded[middle:])


async def _insert(postgres: asyncpg.Connection, statement: str, decoded: Sequence[Event]) -> Drained:
    events = [event for event in decoded if isinstance(event, UsageEvent)]
    refusals = [event for event in decoded if isinstance(event, RefusalCount)]
    crossings = [event for event in decoded if isinstance(event, AlertCrossing)]
    for attempts_left in (2, 1, 0):
        try:
            async with postgres.transaction():
                added = await ledger.add_events(postgres, statement, events) if events else 0
                refused = await ledger.add_refusals(postgres, refusals) if refusals else 0
                alerts = await ledger.add_alerts(postgres, crossings) if crossings else 0
                return Drained(added, len(events) - added, refused, alerts=alerts)
        except asyncpg.CheckViolationError:
            # The ledger has no checks but the bounds of its days: a day was made while this was on its way into the
            # default partition. The next attempt finds the day.
            if not attempts_left:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _reject(context: Context, entry: Entry, reason: str) -> Drained:
    entry_id = entry.id.decode()
    await context.postgres.execute(
        "INSERT INTO rejected_events (shard, entry_id, payload_sha256, payload, reason) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT DO NOTHING",
        entry.shard,
        entry_id,
        hashlib.sha256(entry.payload).digest(),
        entry.payload[:PAYLOAD_KEPT_MAX],
        reason.replace("\0", "�"),
    )
    _log.error("event_rejected", shard=entry.shard, entry_id=entry_id, reason=reason)
    return Drained(rejected=1)


def _is_about_the_data(error: asyncpg.PostgresError | asyncpg.InterfaceError) -> bool:
    """Whether the values are at fault (class 22, data exception, or a NULL), and not the server, the connection or the
    moment. A false yes would take a good event out of the ledger; a false no only fails the run.
    """
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(error, asyncpg.NotNullViolationError) or (error.sqlstate or "").startswith("22")
    return isinstance(error, ValueError)  # asyncpg could not encode a value: its DataError is both


def _read(payload: bytes) -> Event:
    """Raises EventError also for an amount that no script could have booked: in a sum it would spoil what comes after.

    JSON may spell the character NUL, which Postgres's text cannot hold; a request with one is still to be billed.
    """
    event = decode(payload.replace(rb"\u0000", rb"\ufffd") if rb"\u0000" in payload else payload)
    if isinstance(event, UsageEvent):
        possible = -_EXACT_MAX < event.cost < _EXACT_MAX and event.bytes_in + event.bytes_out < _EXACT_MAX
    elif isinstance(event, RefusalCount):
        possible = 0 <= event.count < _EXACT_MAX
    else:
        possible = max(event.limit, event.spent, event.window_ms) < _EXACT_MAX
    if not possible:
        raise EventError("not an event: an amount is out of bounds")
    return event


async def _measure_lag(context: Context, entries: Sequence[Entry]) -> None:
    if not entries:
        context.metrics.lag_seconds.set(0)
        return
    seconds, microseconds = await context.redis.time()
    now_ms = seconds * 1000 + microseconds // 1000
    context.metrics.lag_seconds.set(max(0, now_ms - min(entry.at_ms for entry in entries)) / 1000)
