"""Partitions: the days of the ledger are made ahead, and rows that came before their day was made are moved into it.

Without this job nothing is refused (the default partition takes every day), only dropping or archiving a day as one table
would not be possible. Nothing is dropped here.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final

import asyncpg
import structlog

from control.jobs.context import Context

DAYS_BEHIND: Final = 1
"""Events come in late by as long as their requests ran."""
DAYS_AHEAD: Final = 7

_log = structlog.get_logger(__name__)


async def run_once(context: Context, today: date | None = None) -> list[str]:
    """Make the days around `today` (Postgres's, in UTC); gives the names of the tables that are new."""
    postgres = context.postgres
    day = today or await postgres.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    days = [day + timedelta(days=offset) for offset in range(-DAYS_BEHIND, DAYS_AHEAD + 1)]
    made = [name for each in days if (name := await _make(postgres, each)) is not None]
    if made:
        _log.info("partitions_made", tables=made)
    return made


async def _make(postgres: asyncpg.Connection, day: date) -> str | None:
    """Make one day's table beside the ledger and attach it: that waits for no reader or writer of other days.

    The default partition alone is locked, for the moment in which rows of the day that it holds move out.
    """
    name = f"usage_events_{day:%Y%m%d}"
    first, last = (f"'{each.isoformat()} 00:00+00'" for each in (day, day + timedelta(days=1)))
    if await postgres.fetchval("SELECT to_regclass($1) IS NOT NULL", name):
        return None
    of_the_day = f"admitted_at >= {first} AND admitted_at < {last}"
    async with postgres.transaction():
        await postgres.execute("SET LOCAL lock_timeout = '1s'")
        # Names and bounds are made of a date; DDL takes no parameters.
        await postgres.execute(f"""
            CREATE TABLE {name} (LIKE usage_events, CONSTRAINT of_the_day CHECK ({of_the_day}));
            LOCK TABLE usage_events_default IN ACCESS EXCLUSIVE MODE;
            WITH moved AS (DELETE FROM usage_events_default WHERE {of_the_day} RETURNING *)
                INSERT INTO {name} SELECT * FROM moved;
            ALTER TABLE usage_events ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({last});
            ALTER TABLE {name} DROP CONSTRAINT of_the_day;
        """)  # noqa: S608
    return name
