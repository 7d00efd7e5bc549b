"""Alerts: what an organization's entities spent of a limit, each time that it reached a threshold. SQL, read only.

Drain writes them (`control.jobs.ledger`), one for each entity, window, threshold and limit. Where they are told:
`destinations`; how far that is: `deliveries`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from asyncpg import Record

from control.database import Connection
from control.domain.pages import Listing, Page, listing
from gateway.contract.ids import RANDOM_LENGTH, Level, OrganizationTag, organization_id, random_base62
from gateway.contract.money import Microcredits
from gateway.contract.periods import window_at

THRESHOLD_MAX: Final = 1000
"""Percent."""

COLUMNS: Final = """
a.id, a.organization, a.organization_name, a.level, a.entity, a.name, a.account, a.account_name, a.reset_period,
a.billing_day, a.window_ms, a.threshold, a.limit_microcredits, a.spent_microcredits, a.crossed_at
"""
"""What `alert_of_row` reads, of a table called `a`."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One crossing. `id` is `al_…`; `entity` a key's id, an account's, or an organization's tag, by `level`.

    Names are those of that moment; None where the rules did not have the entity. `account` and `account_name` are a
    key's. `resets_at` is when the window ends; None: never.
    """

    id: str
    organization: OrganizationTag
    organization_name: str | None
    level: Level
    entity: str
    name: str | None
    account: str | None
    account_name: str | None
    window_starts_at: datetime
    resets_at: datetime | None
    threshold: int
    limit: Microcredits
    spent: Microcredits
    crossed_at: datetime

    @property
    def entity_id(self) -> str:
        """The entity as answers name it: an organization's id begins with `org_`."""
        return organization_id(self.organization) if self.level == "organization" else self.entity

    @property
    def remaining(self) -> Microcredits:
        return Microcredits(max(0, self.limit - self.spent))


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far one destination is told of an alert. `failed`: it takes others, and did not take this one for a day."""

    alert: str
    destination: str
    destination_name: str
    kind: str
    status: str
    attempts: int
    next_attempt_at: datetime | None
    last_attempt_at: datetime | None
    last_error: str | None
    delivered_at: datetime | None


def new_alert_id(tag: OrganizationTag) -> str:
    return f"al_{tag}{random_base62(RANDOM_LENGTH)}"


async def listed(conn: Connection, tag: OrganizationTag, page: Page) -> Listing[Alert]:
    """Newest first, by when the threshold was crossed."""
    rows = await conn.fetch(_LISTED, tag, page.before, page.before_id, page.limit + 1)
    return listing([alert_of_row(row) for row in rows], page, lambda shown: (shown.crossed_at, shown.id))


_LISTED: Final = f"""
SELECT {COLUMNS} FROM alerts a
 WHERE a.organization = $1 AND ($2::timestamptz IS NULL OR (a.crossed_at, a.id) < ($2, $3))
 ORDER BY a.crossed_at DESC, a.id DESC LIMIT $4
"""  # noqa: S608


async def deliveries_of(conn: Connection, alerts: Sequence[str]) -> dict[str, list[Delivery]]:
    """The deliveries of each of these alerts, by its id; those of destinations that were deleted are gone."""
    found: dict[str, list[Delivery]] = {alert: [] for alert in alerts}
    for row in await conn.fetch(_DELIVERIES, list(alerts)):
        found[row["alert"]].append(Delivery(**row))
    return found


_DELIVERIES: Final = """
SELECT d.alert, d.destination, t.name AS destination_name, t.kind, d.status, d.attempts,
       CASE WHEN d.status = 'pending' THEN greatest(d.next_attempt_at, t.paused_until) END AS next_attempt_at,
       d.last_attempt_at, d.last_error, d.delivered_at
  FROM alert_deliveries d JOIN alert_destinations t ON t.id = d.destination
 WHERE d.alert = ANY($1::text[])
 ORDER BY t.created_at, t.id
"""


def alert_of_row(row: Record) -> Alert:
    """Out of a row with COLUMNS."""
    window = window_at(row["reset_period"], row["window_ms"], billing_day=row["billing_day"])
    return Alert(
        id=row["id"],
        organization=row["organization"],
        organization_name=row["organization_name"],
        level=row["level"],
        entity=row["entity"],
        name=row["name"],
        account=row["account"],
        account_name=row["account_name"],
        window_starts_at=datetime.fromtimestamp(row["window_ms"] / 1000, UTC),
        resets_at=window.resets_at,
        threshold=row["threshold"],
        limit=row["limit_microcredits"],
        spent=row["spent_microcredits"],
        crossed_at=row["crossed_at"],
    )
