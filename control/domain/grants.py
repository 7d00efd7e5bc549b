"""Grants: credits that a prepaid organization has paid for, until they are used up or expire.

Where each lies on the organization's line of credits is worked out once, when it is made, from what Redis says is used up by
then (`prepaid` has the arithmetic). The job `grants` closes those that have expired, once their loss is written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from asyncpg import Record

from control.database import Connection
from control.domain import prepaid, usage
from control.domain.budgets import standing
from control.domain.changes import Change
from control.domain.pages import Listing, Page, listing
from control.domain.prepaid import Line, Part, Share
from control.domain.refusals import Conflict, Invalid
from gateway.contract.ids import RANDOM_LENGTH, OrganizationTag, random_base62
from gateway.contract.money import AMOUNT_MAX, Microcredits, format_credits
from gateway.contract.records import Budget

OPEN_MAX: Final = 100
"""Grants of one organization that are neither used up nor expired: each is looked at by every admission."""
LIFETIME_MAX: Final = timedelta(days=3653)


@dataclass(frozen=True, slots=True)
class NewGrant:
    """`expires_at` in whole milliseconds. `idempotency_key` is the caller's name for the call: said twice, it is one grant."""

    amount: Microcredits
    expires_at: datetime | None
    note: str | None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """One row. `lost` is what of a closed one expired unused; an open one's is not written down yet."""

    id: str
    organization: OrganizationTag
    amount: Microcredits
    expires_at: datetime | None
    note: str | None
    lost: Microcredits
    created_by: str
    created_at: datetime
    closed_at: datetime | None

    @property
    def share(self) -> Share | None:
        """What has become of it, once it is closed."""
        if self.closed_at is None:
            return None
        return Share(Microcredits(self.amount - self.lost), self.lost, Microcredits(0))


async def create(change: Change, tag: OrganizationTag, new: NewGrant, *, actor: str) -> tuple[Grant, bool]:
    """The grant, and whether it is new: an idempotency key that was said before leads to the grant it made.

    Raises Conflict if the organization is not prepaid or full, or the idempotency key was said with another grant; Invalid
    for an expiry that is past or far; NotSaved if Redis, which knows what is used up, is away.
    """
    conn = change.conn
    row = await _locked(conn, tag)
    if (made := await _made_before(conn, tag, new)) is not None:
        await change.touch(
            "organization", [tag]
        )  # if the first call could not put it in force, this one does
        return made, False
    if row["billing"] != "prepaid":
        raise Conflict(
            "not_prepaid",
            f"{row['name']} is not prepaid, so that credits granted to it would limit nothing: set billing to prepaid first.",
        )
    window_ms = row["period_since_ms"]
    now_ms, counters = await change.counters(tag)
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    _check_expiry(new.expires_at, now)
    stands = standing(Budget(limit=AMOUNT_MAX, since_ms=window_ms), counters, now_ms, grants=())
    lost = max(stands.lost, row["lost_microcredits"])
    parts = await open_parts(conn, tag, window_ms)
    kept = await _without_used_up(conn, parts, now, stands.spent + lost)
    if len(kept) >= OPEN_MAX:
        raise Conflict(
            "too_many_grants",
            f"{row['name']} has {OPEN_MAX} grants that are neither used up nor expired, the most allowed. "
            "Grant larger amounts.",
        )
    added = Part(f"gr_{tag}{random_base62(RANDOM_LENGTH)}", new.amount, Microcredits(0), new.expires_at)
    placed = prepaid.laid(kept, added, prepaid.passed(parts, now, stands.spent, lost))
    _check_sum(row["name"], placed, new.amount)
    made = await _insert(
        conn, tag, window_ms, new, next(part for part in placed if part.id == added.id), actor
    )
    await _move(conn, [part for part in placed if part.id != added.id])
    await conn.execute(
        "UPDATE organizations SET version = nextval('rule_version'), updated_at = now() WHERE tag = $1", tag
    )
    await change.touch("organization", [tag])
    return made, True


async def listed(conn: Connection, tag: OrganizationTag, page: Page) -> Listing[Grant]:
    """Newest first, those of former lines too."""
    rows = await conn.fetch(
        """SELECT * FROM grants
           WHERE organization = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3))
           ORDER BY created_at DESC, id DESC LIMIT $4""",
        tag,
        page.before,
        page.before_id,
        page.limit + 1,
    )
    return listing([_of_row(row) for row in rows], page, lambda shown: (shown.created_at, shown.id))


async def open_parts(conn: Connection, tag: OrganizationTag, window_ms: int) -> list[Part]:
    """Every grant of this line that is not closed, in the order in which they are used."""
    rows = await conn.fetch(
        """SELECT id, amount_microcredits, end_microcredits, expires_at FROM grants
           WHERE organization = $1 AND window_ms = $2 AND closed_at IS NULL
           ORDER BY expires_at NULLS LAST, created_at, id""",
        tag,
        window_ms,
    )
    return [
        Part(row["id"], row["amount_microcredits"], row["end_microcredits"], row["expires_at"])
        for row in rows
    ]


async def end_line(conn: Connection, tag: OrganizationTag, line: Line, window_ms: int) -> None:
    """Close every grant of an organization that is no longer prepaid: what the ledger does not have as spent is lost."""
    (spent,) = await usage.spent_in(conn, [("organization", tag, window_ms)])
    parts = await open_parts(conn, tag, window_ms)
    now = datetime.now(UTC)
    position = prepaid.passed(parts, now, spent, line.lost)
    found = prepaid.shares(parts, now, position, position - spent - line.closed)
    await close(conn, {part.id: found[part.id].lost + found[part.id].left for part in parts})


async def close(conn: Connection, lost: dict[str, int]) -> None:
    """Close these grants (by id), each with what of it was lost."""
    await conn.execute(
        """UPDATE grants SET closed_at = now(), lost_microcredits = closed.lost
           FROM unnest($1::text[], $2::bigint[]) AS closed (id, lost) WHERE grants.id = closed.id""",
        list(lost.keys()),
        list(lost.values()),
    )


async def lost_of(conn: Connection, tags: Sequence[OrganizationTag]) -> dict[OrganizationTag, int]:
    """Microcredits that each of these prepaid organizations has lost by grants that expired, as last written down."""
    rows = await conn.fetch(
        "SELECT tag, lost_microcredits FROM organizations WHERE tag = ANY($1::text[]) AND lost_microcredits > 0",
        list(tags),
    )
    return {row["tag"]: row["lost_microcredits"] for row in rows}


async def _locked(conn: Connection, tag: OrganizationTag) -> Record:
    row = await conn.fetchrow(
        "SELECT name, billing, period_since_ms, lost_microcredits FROM organizations WHERE tag = $1 FOR NO KEY UPDATE",
        tag,
    )
    if row is None:
        raise LookupError("an organization vanished")
    return row


async def _made_before(conn: Connection, tag: OrganizationTag, new: NewGrant) -> Grant | None:
    row = await conn.fetchrow(
        "SELECT * FROM grants WHERE organization = $1 AND idempotency_key = $2", tag, new.idempotency_key
    )
    if row is None:
        return None
    found = _of_row(row)
    if (found.amount, found.expires_at, found.note) != (new.amount, new.expires_at, new.note):
        raise Conflict(
            "idempotency_key_reused",
            f"This Idempotency-Key made the grant {found.id}, which is another one than this request asks for. A key "
            "stands for one grant for ever: repeat the same request with it, or send a new grant with a new key.",
        )
    return found


def _check_expiry(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is None:
        return
    if expires_at <= now:
        raise Invalid.field("expires_at", "is in the past; nothing of such a grant could be used")
    if expires_at > now + LIFETIME_MAX:
        raise Invalid.field(
            "expires_at", "is more than ten years away; leave it out for credits that do not expire"
        )


def _check_sum(name: str, placed: Sequence[Part], amount: int) -> None:
    if (end := max(part.end for part in placed)) > AMOUNT_MAX:
        raise Conflict(
            "too_much_granted",
            f"{name} would have been granted {format_credits(end)} credits since it became prepaid; the most is "
            f"{format_credits(AMOUNT_MAX)}, so at most {format_credits(AMOUNT_MAX - end + amount)} more are possible.",
        )


async def _without_used_up(
    conn: Connection, parts: Sequence[Part], now: datetime, position: int
) -> list[Part]:
    """The unexpired parts that are not used up. Those that are have nothing left to give or to lose, and are closed, so
    that they take no place; what has expired is the job's."""
    unexpired = [part for part in parts if not prepaid.has_expired(part, now)]
    used_up = [part.id for part in unexpired if part.end <= position]
    if used_up:
        await close(conn, dict.fromkeys(used_up, 0))
    return [part for part in unexpired if part.end > position]


async def _insert(
    conn: Connection, tag: OrganizationTag, window_ms: int, new: NewGrant, part: Part, actor: str
) -> Grant:
    row = await conn.fetchrow(
        """INSERT INTO grants (id, organization, window_ms, amount_microcredits, end_microcredits, expires_at, note,
                               idempotency_key, created_by)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING *""",
        part.id,
        tag,
        window_ms,
        new.amount,
        part.end,
        new.expires_at,
        new.note,
        new.idempotency_key,
        actor,
    )
    if row is None:
        raise LookupError("a grant vanished as it was made")
    return _of_row(row)


async def _move(conn: Connection, parts: Sequence[Part]) -> None:
    await conn.execute(
        """UPDATE grants SET end_microcredits = moved.place
           FROM unnest($1::text[], $2::bigint[]) AS moved (id, place)
           WHERE grants.id = moved.id AND end_microcredits <> moved.place""",
        [part.id for part in parts],
        [part.end for part in parts],
    )


def _of_row(row: Record) -> Grant:
    return Grant(
        id=row["id"],
        organization=row["organization"],
        amount=row["amount_microcredits"],
        expires_at=row["expires_at"],
        note=row["note"],
        lost=row["lost_microcredits"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        closed_at=row["closed_at"],
    )
