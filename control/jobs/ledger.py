"""One batch of the drain in Postgres: rows, their sums by hour and window, alerts, and when each key was last used. SQL only.

The sums are taken from the rows that the INSERT really made, in the same statement, so that a second delivery of an
event changes nothing at all. Called by drain inside a transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg
import orjson

from control.domain.alerts import new_alert_id
from gateway.contract.ids import OrganizationTag
from gateway.contract.usage_event import AlertCrossing, RefusalCount, UsageEvent

_STAGING: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS drained_events (
    request_id text, admitted_at_ms bigint, ended_at_ms bigint, organization text, account text, account_name text,
    account_kind text, key text, route text, method text, path text, status bigint, outcome text, bytes_in bigint,
    bytes_out bigint, upstream_ms bigint, total_ms bigint, held bigint, cost bigint, key_window bigint,
    account_window bigint, organization_window bigint, units text, session text, computer text, trace text,
    client_request_id text, is_estimated boolean
) ON COMMIT DELETE ROWS
"""

# Upserts are ordered, so that two drains at once (a rebuild beside the job) wait for each other and do not deadlock.
_EVENTS: Final = """
WITH fresh AS (
    INSERT INTO usage_events
        (admitted_at, ended_at, key_window, account_window, organization_window, held, cost, bytes_in, bytes_out,
         upstream_ms, total_ms, status, request_id, organization, account, account_name, account_kind, key, route,
         method, path, outcome, units, session, computer, trace, client_request_id, is_estimated)
    SELECT timestamptz 'epoch' + admitted_at_ms * interval '1 millisecond',
           timestamptz 'epoch' + ended_at_ms * interval '1 millisecond',
           key_window, account_window, organization_window, held, cost, bytes_in, bytes_out, upstream_ms, total_ms,
           status::integer, request_id, organization, account, account_name, account_kind, key, route, method, path,
           outcome, units::jsonb, session, computer, trace, client_request_id, is_estimated
      FROM drained_events
    ON CONFLICT DO NOTHING
    RETURNING admitted_at, organization, account, key, route, cost, bytes_in, bytes_out,
              key_window, account_window, organization_window
), hourly AS (
    INSERT INTO usage_hourly AS u (organization, hour, account, key, route, requests, cost, bytes_in, bytes_out)
    SELECT organization, date_trunc('hour', admitted_at, 'UTC'), account, key, route,
           count(*), sum(cost), sum(bytes_in), sum(bytes_out)
      FROM fresh GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (organization, hour, account, key, route) DO UPDATE
       SET requests = u.requests + excluded.requests, cost = u.cost + excluded.cost,
           bytes_in = u.bytes_in + excluded.bytes_in, bytes_out = u.bytes_out + excluded.bytes_out
), windows AS (
    INSERT INTO usage_windows AS w (id, window_ms, level, spent)
    SELECT id, window_ms, level, sum(cost)
      FROM (SELECT key AS id, key_window AS window_ms, 'key' AS level, cost FROM fresh
            UNION ALL SELECT account, account_window, 'account', cost FROM fresh
            UNION ALL SELECT organization, organization_window, 'organization', cost FROM fresh) AS levels
     GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (id, window_ms, level) DO UPDATE SET spent = w.spent + excluded.spent
), {used}
SELECT count(*) FROM fresh
"""

_LAST_USED: Final = """used AS (
    UPDATE keys SET last_used_at = latest.at
      FROM (SELECT key, max(admitted_at) AS at FROM fresh GROUP BY key ORDER BY key) AS latest
     WHERE keys.id = latest.key AND (keys.last_used_at IS NULL OR keys.last_used_at < latest.at)
)"""

_DURABLE: Final = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')
"""

_NO_KEYS: Final = "used AS (SELECT)"

_REFUSALS: Final = """
WITH fresh AS (
    INSERT INTO refusals (id, minute, count, organization, account, key, route, reason, level, observed)
    SELECT id, timestamptz 'epoch' + minute_ms * interval '1 millisecond', count, organization, account, key, route,
           reason, level, observed
      FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                  $9::text[], $10::boolean[])
        AS counted (id, minute_ms, count, organization, account, key, route, reason, level, observed)
    ON CONFLICT DO NOTHING
    RETURNING minute, count, organization, account, key, route, observed
), hourly AS (
    INSERT INTO usage_hourly AS u (organization, hour, account, key, route, refused, observed)
    SELECT organization, date_trunc('hour', minute, 'UTC'), account, key, route,
           coalesce(sum(count) FILTER (WHERE NOT observed), 0), coalesce(sum(count) FILTER (WHERE observed), 0)
      FROM fresh GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5
    ON CONFLICT (organization, hour, account, key, route) DO UPDATE
       SET refused = u.refused + excluded.refused, observed = u.observed + excluded.observed
)
SELECT count(*) FROM fresh
"""

# Names and periods are copied, so that an alert still says what it said when its key was renamed or a period was changed.
_ALERTS: Final = """
WITH fresh AS (
    INSERT INTO alerts
        (id, organization, organization_name, level, entity, name, account, account_name, reset_period, billing_day,
         window_ms, threshold, limit_microcredits, spent_microcredits, crossed_at)
    SELECT c.id, c.organization, o.name, c.level, c.entity,
           CASE c.level WHEN 'key' THEN k.name WHEN 'account' THEN a.name ELSE o.name END,
           k.account, CASE WHEN c.level = 'key' THEN a.name END,
           coalesce(CASE c.level WHEN 'key' THEN k.reset_period WHEN 'account' THEN a.reset_period
                                 ELSE CASE WHEN o.billing = 'prepaid' THEN 'never' ELSE o.reset_period END END, 'never'),
           coalesce(o.billing_day, 1), c.window_ms, c.threshold, c.spending_limit, c.spent,
           timestamptz 'epoch' + c.at_ms * interval '1 millisecond'
      FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::smallint[], $7::bigint[], $8::bigint[],
                  $9::bigint[])
        AS c (id, organization, level, entity, window_ms, threshold, spending_limit, spent, at_ms)
      LEFT JOIN organizations o ON o.tag = c.organization
      LEFT JOIN keys k ON c.level = 'key' AND k.id = c.entity
      LEFT JOIN accounts a ON a.id = CASE c.level WHEN 'key' THEN k.account WHEN 'account' THEN c.entity END
     ORDER BY c.entity, c.window_ms, c.threshold, c.spending_limit, c.level
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT count(*) FROM fresh
"""


_HAS_LAST_USED: Final = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('keys') AND attname = 'last_used_at')
"""


async def prepare(postgres: asyncpg.Connection) -> str:
    """Make this connection ready for `add_events`, and answer the statement that it takes.

    The table through which a batch goes in is temporary: seen by this connection alone, and not written to the log. What
    is committed is removed from Redis next, so a commit must have reached the disk, however the server is set.
    """
    await postgres.execute(_STAGING)
    await postgres.execute(_DURABLE)
    return _EVENTS.format(used=_LAST_USED if await postgres.fetchval(_HAS_LAST_USED) else _NO_KEYS)


async def add_events(postgres: asyncpg.Connection, statement: str, events: Sequence[UsageEvent]) -> int:
    """Add these to the ledger and its sums; how many were not there before. Inside the caller's transaction."""
    await postgres.copy_records_to_table("drained_events", records=[_row(event) for event in events])
    return int(await postgres.fetchval(statement))


async def add_refusals(postgres: asyncpg.Connection, refusals: Sequence[RefusalCount]) -> int:
    """Add these to the refusals and the sums by hour; how many were not there before."""
    columns = zip(
        *(
            (
                r.id,
                r.minute_ms,
                r.count,
                r.organization,
                r.account,
                r.key,
                r.route,
                r.reason,
                r.level,
                r.observed,
            )
            for r in refusals
        ),
        strict=True,
    )
    return int(await postgres.fetchval(_REFUSALS, *columns))


async def add_alerts(postgres: asyncpg.Connection, crossings: Sequence[AlertCrossing]) -> int:
    """Make alerts of these crossings; how many were not there before. The job `alerts` tells of them."""
    columns = zip(
        *(
            (
                new_alert_id(OrganizationTag(c.organization)), c.organization, c.level, c.id, c.window_ms, c.threshold,
                c.limit, c.spent, c.at_ms,
            )
            for c in crossings
        ),
        strict=True,
    )  # fmt: skip
    return int(await postgres.fetchval(_ALERTS, *columns))


def _row(event: UsageEvent) -> tuple[object, ...]:
    """The columns of drained_events, in order."""
    return (
        event.request_id, event.admitted_at_ms, event.ended_at_ms, event.organization, event.account,
        event.account_name, event.account_kind, event.key, event.route, event.method, event.path, event.status,
        event.outcome, event.bytes_in, event.bytes_out, event.upstream_ms, event.total_ms, event.held, event.cost,
        *event.windows, orjson.dumps(event.units).decode() if event.units else "{}",
        event.session, event.computer, event.trace, event.client_request_id, event.is_estimated,
    )  # fmt: skip
