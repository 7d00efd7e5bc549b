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
    """Remove at most BATCH alerts that were crossed more than so many days ago, the oldest first; how many there were."""
    row = await context.postgres.fetchrow(_REMOVE, days, BATCH)
    assert row is not None
    if row["untold"]:
        _log.warning("alerts_removed_untold", count=row["untold"], days=days)
    return int(row["removed"])


_REMOVE: Final = """
WITH old AS (
    SELECT id FROM alerts WHERE reset_period <> 'never' AND crossed_at < now() - $1 * interval '1 day'
     ORDER BY crossed_at LIMIT $2 FOR UPDATE SKIP LOCKED
), untold AS (
    SELECT DISTINCT d.alert FROM alert_deliveries d JOIN old ON old.id = d.alert WHERE d.status <> 'delivered'
), removed AS (
    DELETE FROM alerts USING old WHERE alerts.id = old.id
)
SELECT (SELECT count(*) FROM old) AS removed, (SELECT count(*) FROM untold) AS untold
"""
