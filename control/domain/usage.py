"""Usage as reports show it, and what was spent in a window. SQL over the ledger; drain writes it.

Reports read the sums by hour, which are complete up to the last drain (every second or less); single rows come out of the
ledger itself. Hours and days are UTC.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import orjson

from control.database import Connection
from control.domain.refusals import Invalid
from gateway.contract.ids import Level, OrganizationTag

Summed = Literal["account", "key", "route", "hour", "day"]
GroupBy = Literal[Summed, "reason"]
GROUPS: Final[tuple[Summed, ...]] = get_args(Summed)

_CURSOR_LENGTH_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class UsageRows:
    """One page of a report or of the ledger, money in microcredits, and where the next page starts (None: this is the last)."""

    rows: list[dict[str, Any]]
    next: str | None


# What a row is grouped by: the expression, and what it is called in the answer. Names come from the tables of 0001; a row
# of the ledger whose account or key is not there keeps its id.
_GROUP: Final[dict[Summed, str]] = {
    "account": "account",
    "key": "key",
    "route": "route",
    "hour": "to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:00:00\"Z\"')",
    "day": "to_char(hour AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_NAMES: Final[dict[Summed, tuple[str, str]]] = {
    "account": (", a.name, a.display_name, a.kind", "LEFT JOIN accounts a ON a.id = s.grouped"),
    "key": (
        ", k.name, k.hint, k.account, a.name AS account_name",
        "LEFT JOIN keys k ON k.id = s.grouped LEFT JOIN accounts a ON a.id = k.account",
    ),
    "route": ("", ""),
    "hour": ("", ""),
    "day": ("", ""),
}
_REPORT: Final = """
WITH sums AS (
    SELECT {group} AS grouped, sum(requests)::bigint AS requests, sum(refused)::bigint AS refused,
           sum(observed)::bigint AS observed, sum(cost)::bigint AS cost,
           sum(bytes_in)::bigint AS bytes_in, sum(bytes_out)::bigint AS bytes_out
      FROM usage_hourly
     WHERE organization = $1 AND hour >= $2 AND hour < $3
     GROUP BY 1
)
SELECT s.grouped AS "{name}"{names}, s.requests, s.refused, s.observed, s.cost, s.bytes_in, s.bytes_out
  FROM sums s {join}
 WHERE $4::text IS NULL OR s.grouped COLLATE "C" > $4
 ORDER BY s.grouped COLLATE "C"
 LIMIT $5
"""


async def report(
    conn: Connection,
    organization: OrganizationTag,
    group_by: Summed,
    start: datetime,
    end: datetime,
    limit: int,
    cursor: str | None = None,
) -> UsageRows:
    """Sums of one organization over [start, end), ordered by what they are grouped by.

    The sums are by the hour, so `start` is rounded down and `end` up to a whole hour. Each row has the group under its
    own name (`account`, `key`, `route`, `hour`, `day`), names where they are known, and `requests`, `refused`,
    `observed` (let through where a limit only observes, though it was reached: once for each level and reason), `cost`
    (microcredits), `bytes_in`, `bytes_out`. Raises Invalid for a cursor that no report answered with.
    """
    names, join = _NAMES[group_by]
    statement = _REPORT.format(group=_GROUP[group_by], name=group_by, names=names, join=join)
    after = None if cursor is None else _read_cursor(cursor, 1)[0]
    found = await conn.fetch(statement, organization, hour_floor(start), hour_ceiling(end), after, limit + 1)
    rows = [dict(row) for row in found]
    return _page(rows, limit, lambda row: [row[group_by]])


async def refusals(
    conn: Connection,
    organization: OrganizationTag,
    start: datetime,
    end: datetime,
    limit: int,
    cursor: str | None = None,
) -> UsageRows:
    """Why requests of one organization were refused in [start, end), by reason, level and key, in this order.

    Counted by the minute, so `start` is rounded down to a whole one. `level` is whose limit it was (None: nobody's); `refused`
    and `observed` as in a report. Raises Invalid for a cursor that no report answered with.
    """
    after = [None] * 3 if cursor is None else _read_cursor(cursor, 3)
    found = await conn.fetch(_REFUSALS, organization, start, end, *after, limit + 1)
    rows = [dict(row) for row in found]
    page = _page(rows, limit, lambda row: [row["reason"], row["level"], row["key"]])
    for row in page.rows:
        row["level"] = row["level"] or None
    return page


_REFUSALS: Final = """
WITH sums AS (
    SELECT reason COLLATE "C" AS reason, level COLLATE "C" AS level, key COLLATE "C" AS key,
           coalesce(sum(count) FILTER (WHERE NOT observed), 0)::bigint AS refused,
           coalesce(sum(count) FILTER (WHERE observed), 0)::bigint AS observed
      FROM refusals
     WHERE organization = $1 AND minute >= date_trunc('minute', $2::timestamptz) AND minute < $3
     GROUP BY 1, 2, 3
)
SELECT s.reason, s.level, s.key, k.name, k.account, a.name AS account_name, s.refused, s.observed
  FROM sums s LEFT JOIN keys k ON k.id = s.key LEFT JOIN accounts a ON a.id = k.account
 WHERE $4::text IS NULL OR (s.reason, s.level, s.key) > ($4, $5::text, $6::text)
 ORDER BY s.reason, s.level, s.key
 LIMIT $7
"""


_LATEST: Final = """
SELECT request_id, admitted_at, ended_at, organization, account, account_name, account_kind, key, route, method, path,
       status, outcome, bytes_in, bytes_out, upstream_ms, total_ms, held, cost, is_estimated, units, session,
       computer, trace, client_request_id
  FROM usage_events
 WHERE organization = $1 AND admitted_at >= $2 AND admitted_at < $3
   AND ($4::timestamptz IS NULL OR (admitted_at, request_id) < ($4, $5))
 ORDER BY admitted_at DESC, request_id DESC
 LIMIT $6
"""


async def events(
    conn: Connection,
    organization: OrganizationTag,
    start: datetime,
    end: datetime,
    limit: int,
    cursor: str | None = None,
) -> UsageRows:
    """Rows of the ledger of one organization admitted in [start, end), latest first; `units` is a dictionary.

    There is no index by organization (it would cost more at every insert than this is worth), so a short span is a quick
    answer. Raises Invalid for a cursor that no listing answered with.
    """
    before: datetime | None = None
    before_id = ""
    if cursor is not None:
        at, before_id = _read_cursor(cursor, 2)
        before = _read_time(at)
    found = await conn.fetch(_LATEST, organization, start, end, before, before_id, limit + 1)
    rows = [{**row, "units": orjson.loads(row["units"])} for row in found]
    return _page(rows, limit, lambda row: [row["admitted_at"].isoformat(), row["request_id"]])


async def spent_in(conn: Connection, windows: Sequence[tuple[Level, str, int]]) -> list[int]:
    """Microcredits that the ledger has for each (level, id, start of the window in ms), in the same order."""
    levels, ids, starts = zip(*windows, strict=True) if windows else ((), (), ())
    rows = await conn.fetch(_SPENT, list(levels), list(ids), list(starts))
    return [row["spent"] for row in rows]


_SPENT: Final = """
SELECT coalesce(w.spent, 0) AS spent
  FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS wanted (level, id, window_ms, position)
  LEFT JOIN usage_windows w USING (id, window_ms, level)
 ORDER BY position
"""


def hour_floor(at: datetime) -> datetime:
    """The whole hour, in UTC, in which `at` lies."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def hour_ceiling(at: datetime) -> datetime:
    """`at` if it is a whole hour, else the next one, in UTC."""
    floor = hour_floor(at)
    return floor if floor == at else floor + timedelta(hours=1)


def _page(rows: list[dict[str, Any]], limit: int, place: Callable[[dict[str, Any]], list[str]]) -> UsageRows:
    """Cut what was read (one row more than the limit) into the page and where the next one starts."""
    if len(rows) <= limit:
        return UsageRows(rows, None)
    cursor = base64.urlsafe_b64encode(orjson.dumps(place(rows[limit - 1]))).decode().rstrip("=")
    return UsageRows(rows[:limit], cursor)


def _read_cursor(cursor: str, length: int) -> list[str]:
    try:
        if len(cursor) > _CURSOR_LENGTH_MAX:
            raise ValueError("too long")
        place = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(place, list) or len(place) != length:
            raise ValueError("another shape")
        if not all(isinstance(part, str) and "\0" not in part for part in place):
            raise ValueError("other types")
    except (ValueError, binascii.Error):
        raise _not_a_cursor() from None
    return place


def _read_time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _not_a_cursor() from None


def _not_a_cursor() -> Invalid:
    return Invalid.field("cursor", "is not one that a list answered with", code="invalid_cursor")
