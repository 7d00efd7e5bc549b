"""Destinations: where an organization wants to hear of its alerts, by webhook, e-mail or Slack.

What only the receiver and we may know (a webhook's signing secret, the whole URL of a Slack webhook) is kept sealed and
shown once at most. A destination that is disabled keeps what it was not told; enabling it sends that.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypedDict
from urllib.parse import urlsplit

from asyncpg import Record

from control.database import Connection
from control.domain import deliveries
from control.domain.pages import Listing, Page, listing
from control.domain.refusals import Conflict, Invalid, NotFound, TooOften
from control.sealing import Sealing
from gateway.contract.ids import RANDOM_LENGTH, OrganizationTag, random_base62

Kind = Literal["webhook", "email", "slack"]
DisabledReason = Literal["operator", "failing", "gone"]

DESTINATIONS_MAX: Final = 20
"""Of one organization."""
SEALING_PURPOSE: Final = "alert-destinations"
SECRET_PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = 32
_HINTED_LENGTH_MIN: Final = 24
"""Of what follows the host in a Slack URL: a shorter one would be given away by four characters."""
TEST_PAUSE_S: Final = 5
"""Between two tests of one destination."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One row. `url` is a webhook's, `addresses` those of an e-mail, `hint` tells a Slack webhook from another.

    `failing_since` is the first failure after the last success; nothing is sent before `paused_until`. `disabled_reason`:
    `operator` switched it off; `failing` for a day; `gone`: it said so. `pending` counts the alerts that it is still to be
    told of.
    """

    id: str
    organization: OrganizationTag
    kind: Kind
    name: str
    url: str | None
    addresses: tuple[str, ...]
    hint: str | None
    sealed: bytes | None = field(repr=False)
    min_threshold: int
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None
    failing_since: datetime | None
    paused_until: datetime | None
    last_error: str | None
    delivered_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    pending: int = 0

    @property
    def is_enabled(self) -> bool:
        return self.disabled_at is None

    @property
    def row(self) -> str:
        """What its secret is bound to."""
        return _row(self.organization, self.id, self.kind)


@dataclass(frozen=True, slots=True)
class NewDestination:
    """`url` of a webhook or of Slack, `addresses` of an e-mail."""

    kind: Kind
    name: str
    min_threshold: int = 1
    url: str | None = None
    addresses: tuple[str, ...] = ()


class DestinationPatch(TypedDict, total=False):
    """What is to change; a missing entry stays as it is. `rotate_secret`: a webhook gets a new signing secret."""

    name: str
    min_threshold: int
    enabled: bool
    rotate_secret: bool


_SELECT: Final = """
SELECT t.*, (SELECT count(*) FROM alert_deliveries d WHERE d.destination = t.id AND d.status = 'pending') AS pending
  FROM alert_destinations t
"""


async def create(
    conn: Connection, organization: OrganizationTag, new: NewDestination, sealing: Sealing, *, actor: str
) -> tuple[Destination, str | None]:
    """The destination, and a webhook's signing secret, which is never to be had again. In the caller's transaction.

    Raises Conflict if the organization has DESTINATIONS_MAX of them.
    """
    await conn.execute("SELECT FROM organizations WHERE tag = $1 FOR NO KEY UPDATE", organization)
    count = await conn.fetchval(
        "SELECT count(*) FROM alert_destinations WHERE organization = $1", organization
    )
    if count >= DESTINATIONS_MAX:
        raise Conflict(
            "too_many_destinations",
            f"An organization has at most {DESTINATIONS_MAX} destinations; delete one that is not used any more.",
        )
    identifier = f"ad_{organization}{random_base62(RANDOM_LENGTH)}"
    secret = _new_secret() if new.kind == "webhook" else None
    kept = secret if new.kind == "webhook" else new.url
    row = await conn.fetchrow(
        """INSERT INTO alert_destinations (id, organization, kind, name, url, addresses, hint, sealed, min_threshold,
                                           created_by)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *, 0 AS pending""",
        identifier,
        organization,
        new.kind,
        new.name,
        new.url if new.kind == "webhook" else None,
        list(new.addresses) or None,
        _hint(new),
        None if kept is None else sealing.seal(kept, _row(organization, identifier, new.kind)),
        new.min_threshold,
        actor,
    )
    return destination_of_row(_found(row, identifier)), secret


async def get(conn: Connection, organization: OrganizationTag, identifier: str) -> Destination:
    """Raises NotFound, also for a destination of another organization."""
    row = await conn.fetchrow(f"{_SELECT} WHERE t.organization = $1 AND t.id = $2", organization, identifier)
    return destination_of_row(_found(row, identifier))


async def by_id(conn: Connection, identifiers: Sequence[str]) -> dict[str, Destination]:
    """Those of these that there are, of any organization: for the job that sends."""
    rows = await conn.fetch(
        "SELECT *, 0 AS pending FROM alert_destinations WHERE id = ANY($1::text[])", list(identifiers)
    )
    return {row["id"]: destination_of_row(row) for row in rows}


async def listed(conn: Connection, organization: OrganizationTag, page: Page) -> Listing[Destination]:
    """Newest first."""
    rows = await conn.fetch(
        f"""{_SELECT} WHERE t.organization = $1 AND ($2::timestamptz IS NULL OR (t.created_at, t.id) < ($2, $3))
            ORDER BY t.created_at DESC, t.id DESC LIMIT $4""",
        organization,
        page.before,
        page.before_id,
        page.limit + 1,
    )
    return listing(
        [destination_of_row(row) for row in rows], page, lambda shown: (shown.created_at, shown.id)
    )


async def amend(
    conn: Connection,
    organization: OrganizationTag,
    identifier: str,
    patch: DestinationPatch,
    sealing: Sealing,
) -> tuple[Destination, str | None]:
    """The destination, and its new secret if that was asked for. In the caller's transaction. Raises NotFound, Invalid.

    Enabling forgets its failures, and sends what it was not told as soon as the job looks.
    """
    row = await conn.fetchrow(
        "SELECT *, 0 AS pending FROM alert_destinations WHERE organization = $1 AND id = $2 FOR NO KEY UPDATE",
        organization,
        identifier,
    )
    old = destination_of_row(_found(row, identifier))
    secret = None
    if patch.get("rotate_secret"):
        if old.kind != "webhook":
            raise Invalid.field("rotate_secret", f"is for webhooks; this is of the kind {old.kind}")
        secret = _new_secret()
    await conn.execute(
        """UPDATE alert_destinations SET name = $2, min_threshold = $3, sealed = $4, updated_at = now() WHERE id = $1""",
        identifier,
        patch.get("name", old.name),
        patch.get("min_threshold", old.min_threshold),
        old.sealed if secret is None else sealing.seal(secret, old.row),
    )
    if patch.get("enabled") is True:
        await deliveries.enable(conn, identifier)
    elif patch.get("enabled") is False:
        await deliveries.disable(conn, identifier, "operator")
    return await get(conn, organization, identifier), secret


async def delete(conn: Connection, organization: OrganizationTag, identifier: str) -> Destination:
    """Remove it, its secret, and what it was or was to be told. Raises NotFound."""
    found = await get(conn, organization, identifier)
    await conn.execute("DELETE FROM alert_destinations WHERE id = $1", identifier)
    return found


async def for_test(
    conn: Connection, organization: OrganizationTag, identifier: str | None
) -> tuple[list[Destination], datetime]:
    """The one, or every enabled one; and that it is tested now, which is also written down. In the caller's transaction.

    Raises NotFound, Conflict if there is none, TooOften if one of them was tested within TEST_PAUSE_S.
    """
    rows = await conn.fetch(
        """SELECT *, 0 AS pending, tested_at > now() - $3 * interval '1 second' AS is_too_soon, now() AS at
             FROM alert_destinations
            WHERE organization = $1 AND CASE WHEN $2::text IS NULL THEN disabled_at IS NULL ELSE id = $2 END
            ORDER BY id FOR NO KEY UPDATE""",
        organization,
        identifier,
        TEST_PAUSE_S,
    )
    if not rows:
        if identifier is not None:
            raise NotFound.of("destination", identifier)
        raise Conflict(
            "no_destinations", "There is no enabled destination to test: add one, or enable one, first."
        )
    if any(row["is_too_soon"] for row in rows):
        raise TooOften(
            "tested_too_often",
            f"A destination is tested at most once in {TEST_PAUSE_S} s, and this was done a moment ago.",
            TEST_PAUSE_S,
        )
    await conn.execute(
        "UPDATE alert_destinations SET tested_at = now() WHERE id = ANY($1::text[])",
        [row["id"] for row in rows],
    )
    found = sorted((destination_of_row(row) for row in rows), key=lambda each: (each.created_at, each.id))
    return found, rows[0]["at"]


def destination_of_row(row: Record) -> Destination:
    return Destination(
        id=row["id"],
        organization=row["organization"],
        kind=row["kind"],
        name=row["name"],
        url=row["url"],
        addresses=tuple(row["addresses"] or ()),
        hint=row["hint"],
        sealed=row["sealed"],
        min_threshold=row["min_threshold"],
        disabled_at=row["disabled_at"],
        disabled_reason=row["disabled_reason"],
        failing_since=row["failing_since"],
        paused_until=row["paused_until"],
        last_error=row["last_error"],
        delivered_at=row["delivered_at"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        pending=row["pending"],
    )


def _new_secret() -> str:
    """In the form of Standard Webhooks: whsec_ and the base64 of 32 random bytes."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def _row(organization: OrganizationTag, identifier: str, kind: Kind) -> str:
    return f"alert_destinations/{organization}/{identifier}/{kind}"


def _hint(new: NewDestination) -> str | None:
    """Of a Slack URL, what is no secret (where it leads) and, of a long one, the last four characters, to tell it from
    another."""
    if new.kind != "slack" or new.url is None:
        return None
    parts = urlsplit(new.url)
    secret = new.url.partition(parts.netloc)[2]
    return f"{parts.scheme}://{parts.netloc}/…{secret[-4:] if len(secret) >= _HINTED_LENGTH_MIN else ''}"


def _found(row: Record | None, identifier: str) -> Record:
    if row is None:
        raise NotFound.of("destination", identifier)
    return row
