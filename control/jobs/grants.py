"""Grants: what was lost by grants that expired is written down, and such grants are closed.

Redis books a loss by itself, at the first look after a grant's expiry; no request waits for this job. It copies `lost` to
Postgres, so that a Redis that is loaded anew begins with it, and closes the grants it came from, so that Redis need not look at
them any more. In two steps, each a transaction, and a grant is closed only when Redis has shown its loss *after* that was
written down: a Redis that was loaded in between has either begun with the loss or still has the grant to book it from.
Killed anywhere, the next run goes on from what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

import structlog
from asyncpg import Record

from control.domain import grants, outbox, prepaid
from control.domain.prepaid import Part
from control.jobs.context import Context
from control.jobs.expire import clock_ms
from gateway.contract.ids import OrganizationTag
from gateway.contract.records import COUNTER_FIELDS, Counters, read_counters

BATCH_MAX: Final = 500

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Closed:
    """What a run did: organizations whose loss was written down, and grants closed."""

    copied: int = 0
    closed: int = 0


async def run_once(context: Context) -> Closed:
    """One step for every organization with a grant that has expired and is not closed."""
    now = datetime.fromtimestamp(await clock_ms(context.redis) / 1000, UTC)
    copied = closed = 0
    after = ""
    while rows := await context.postgres.fetch(_DUE, now, after, BATCH_MAX):
        for row, counters in zip(rows, await _counters(context, rows), strict=True):
            if counters is None or counters.window_ms < row["period_since_ms"]:
                continue  # not loaded yet, or nobody has looked since it became prepaid: nothing is booked
            if counters.lost > row["lost_microcredits"]:
                copied += await _copy(context, row, counters.lost)
            elif counters.lost == row["lost_microcredits"]:
                closed += await _close(context, row, counters, now)
        after = rows[-1]["tag"]
        if context.stopping.is_set():
            break
    if closed:
        _log.info("grants_closed", count=closed)
    return Closed(copied, closed)


_DUE: Final = """
SELECT o.tag, o.period_since_ms, o.lost_microcredits
  FROM organizations o
 WHERE o.billing = 'prepaid' AND o.tag > $2
   AND EXISTS (SELECT FROM grants g WHERE g.organization = o.tag AND g.closed_at IS NULL AND g.expires_at <= $1)
 ORDER BY o.tag LIMIT $3
"""
_COPY: Final = """
UPDATE organizations SET lost_microcredits = $3
 WHERE tag = $1 AND billing = 'prepaid' AND period_since_ms = $2 AND lost_microcredits < $3 RETURNING 1
"""
_LOCK: Final = """
SELECT FROM organizations
 WHERE tag = $1 AND billing = 'prepaid' AND period_since_ms = $2 AND lost_microcredits = $3 FOR NO KEY UPDATE
"""


async def _counters(context: Context, rows: list[Record]) -> list[Counters | None]:
    async with context.redis.pipeline(transaction=False) as pipe:
        for row in rows:
            pipe.hmget(context.layout.organization(OrganizationTag(row["tag"])), COUNTER_FIELDS)
        return [read_counters(cast("list[bytes | None]", values)) for values in await pipe.execute()]


async def _copy(context: Context, row: Record, lost: int) -> int:
    return await context.postgres.fetchval(_COPY, row["tag"], row["period_since_ms"], lost) or 0


async def _close(context: Context, row: Record, counters: Counters, now: datetime) -> int:
    """How many grants were closed: all of one organization that have expired, or none as long as a request in flight may
    still bring some of their credits back."""
    postgres, tag = context.postgres, row["tag"]
    async with postgres.transaction():
        if await postgres.fetchrow(_LOCK, tag, row["period_since_ms"], row["lost_microcredits"]) is None:
            return 0
        parts = await grants.open_parts(postgres, tag, row["period_since_ms"])
        expired = [part for part in parts if prepaid.has_expired(part, now)]
        if not expired or expired[-1].end > counters.spent + counters.lost:
            return 0
        await grants.close(postgres, await _losses(context, row, expired, now))
        await postgres.execute(
            "UPDATE organizations SET version = nextval('rule_version') WHERE tag = $1", tag
        )
        await outbox.enqueue(postgres, "organization", tag)
    return len(expired)


async def _losses(context: Context, row: Record, expired: list[Part], now: datetime) -> dict[str, int]:
    """What each of them lost, by id; together, what was lost and is not a closed grant's."""
    closed_lost = await context.postgres.fetchval(
        "SELECT coalesce(sum(lost_microcredits), 0)::bigint FROM grants WHERE organization = $1 AND window_ms = $2",
        row["tag"],
        row["period_since_ms"],
    )
    found = prepaid.shares(expired, now, expired[-1].end, row["lost_microcredits"] - closed_lost)
    return {part.id: found[part.id].lost for part in expired}
