"""Retention: alerts of windows that ended long ago are removed, and with them what was never told of them.

An alert of a window that never ends stays, and so does every one of a window that may still go on (RETENTION_DAYS_MIN): that it
is there is what keeps the same threshold from being told again. The ledger is not touched; its days are dropped by hand.
"""

from __future__ import annotations

from typing import Final

import structlog

from control.jobs.context import Context

BATCH: Final = 1_000

_log = structlog.get_logger(__name__)


async def run_once(context: Context, days: int) -> int:
    """Remove at most BATCH alerts that were crossed more than so many days ago, the oldest first; how many there were.

    What changes many deliveries of a destination holds the destination first; so does this, in the order in which all do.
    """
    async with context.postgres.transaction():
        old = [row["id"] for row in await context.postgres.fetch(_OLD, days, BATCH)]
        await context.postgres.execute(_HOLD_DESTINATIONS, old)
        untold = await context.postgres.fetchval(_UNTOLD, old)
        await context.postgres.execute("DELETE FROM alerts WHERE id = ANY($1::text[])", old)
    if untold:
        _log.warning("alerts_removed_untold", count=untold, days=days)
    return len(old)


_OLD: Final = """
SELECT id FROM alerts WHERE reset_period <> 'never' AND crossed_at < now() - $1 * interval '1 day'
 ORDER BY crossed_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_HOLD_DESTINATIONS: Final = """
SELECT FROM alert_destinations WHERE id IN (SELECT destination FROM alert_deliveries WHERE alert = ANY($1::text[]))
 ORDER BY id FOR NO KEY UPDATE
"""
_UNTOLD: Final = """
SELECT count(DISTINCT alert) FROM alert_deliveries WHERE alert = ANY($1::text[]) AND status <> 'delivered'
"""
