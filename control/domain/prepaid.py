"""Prepaid credits as a line: where each grant lies on it, what of it is used, lost and left. Pure.

All credits granted since an organization became prepaid lie on a line and are used up from its start: those that expire
first come first. How far the organization has come is what it has spent, what is held for it, and what it has lost: a grant
that expires before it is used up takes the rest of itself away (`gateway.contract.grants`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from asyncpg import Record

from gateway.contract.grants import Grant
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget

Billing = Literal["prepaid", "postpaid"]


@dataclass(frozen=True, slots=True)
class Line:
    """`end` is where the last grant ends: the limit, of which what is lost goes off. `lost` is as Postgres has it, and may lag
    behind Redis; `closed` is what of it closed grants have lost. `grants` are those that will expire and the
    last that has, if it is not closed, soonest first.
    """

    granted: Microcredits
    end: Microcredits
    lost: Microcredits
    closed: Microcredits
    grants: tuple[Grant, ...]


def budget_in_force(own: Budget, billing: Billing | None, line: Line | None) -> Budget:
    """What Redis is told of an organization's own budget: prepaid credits take its place, postpaid it is only observed."""
    if billing == "prepaid" and line is not None:
        return replace(own, limit=line.end, period="never", enforcement="enforce")
    return replace(own, enforcement="observe") if billing == "postpaid" else own


ORGANIZATIONS: Final = """
    SELECT o.*, o.tag AS id, line.*
    FROM organizations o LEFT JOIN LATERAL (
      SELECT coalesce(sum(g.amount_microcredits), 0)::bigint AS granted,
             coalesce(max(g.end_microcredits), 0) AS line_end,
             coalesce(sum(g.lost_microcredits), 0)::bigint AS closed_lost,
             array_agg((extract(epoch FROM g.expires_at) * 1000)::bigint ORDER BY g.expires_at, g.created_at, g.id)
               FILTER (WHERE g.closed_at IS NULL AND g.expires_at >= expired.latest) AS expiring_ms,
             array_agg(g.end_microcredits ORDER BY g.expires_at, g.created_at, g.id)
               FILTER (WHERE g.closed_at IS NULL AND g.expires_at >= expired.latest) AS expiring_ends
      FROM grants g CROSS JOIN LATERAL (
        SELECT coalesce(max(e.expires_at), '-infinity') AS latest FROM grants e
        WHERE e.organization = o.tag AND e.window_ms = o.period_since_ms AND e.closed_at IS NULL AND e.expires_at <= now()
      ) expired
      WHERE g.organization = o.tag AND g.window_ms = o.period_since_ms AND o.billing = 'prepaid'
    ) line ON true
"""
"""Rows of organizations with what `line_of_row` reads. Of the grants that have expired and are not closed (there may be any
number of them where nobody spends, and so nothing is booked), Redis is told of the last one alone: it ends behind the others.
"""


def line_of_row(row: Record) -> Line | None:
    """Out of a row of ORGANIZATIONS; None unless it is prepaid."""
    if row["billing"] != "prepaid":
        return None
    pairs = zip(row["expiring_ms"] or (), row["expiring_ends"] or (), strict=True)
    grants = tuple(Grant(expires_at_ms, end) for expires_at_ms, end in pairs)
    return Line(row["granted"], row["line_end"], row["lost_microcredits"], row["closed_lost"], grants)


@dataclass(frozen=True, slots=True)
class Part:
    """One open grant on the line, in the order of use."""

    id: str
    amount: Microcredits
    end: Microcredits
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Share:
    """What has become of one grant. The three add up to its amount; `used` is spent or held."""

    used: Microcredits
    lost: Microcredits
    left: Microcredits


def laid(parts: Sequence[Part], new: Part, gone: int) -> list[Part]:
    """The unexpired `parts` with `new` (its `end` counts for nothing) among them, each with its end.

    `gone` is how far the line is used up for good: what is spent, what is lost, and grants that have expired. What is
    held is no part of it, for it may come back. The new grant begins after that and after those that expire no later, so that
    earlier spending takes nothing of it; those that expire later move on by its amount.
    """
    before = [part for part in parts if _expires_no_later(part, new)]
    after = [part for part in parts if not _expires_no_later(part, new)]
    start = max([gone, *(part.end for part in before)])
    placed = replace(new, end=Microcredits(start + new.amount))
    moved = [replace(part, end=Microcredits(max(part.end, start) + new.amount)) for part in after]
    return [*before, placed, *moved]


def shares(parts: Sequence[Part], now: datetime, position: int, lost: int) -> dict[str, Share]:
    """What has become of each open grant, by id. `position` is what is spent, held and lost on the line in all, `lost` what of
    that its open grants have lost. Which of several that have expired lost it is not written anywhere until they are
    closed: the last one is taken to have lost first.
    """
    found: dict[str, Share] = {}
    for part in reversed([part for part in parts if has_expired(part, now)]):
        share = Microcredits(min(part.amount, lost))
        lost -= share
        found[part.id] = Share(Microcredits(part.amount - share), share, Microcredits(0))
    for part in parts:
        if part.id not in found:
            left = Microcredits(min(part.amount, max(0, part.end - position)))
            found[part.id] = Share(Microcredits(part.amount - left), Microcredits(0), left)
        position = max(position, part.end)
    return found


def passed(parts: Sequence[Part], now: datetime, spent: int, lost: int) -> int:
    """How far the line is used up for good, as `laid` asks for it."""
    return max([spent + lost, *(part.end for part in parts if has_expired(part, now))])


def has_expired(part: Part, now: datetime) -> bool:
    """Whether its time has passed; one without expiry never does."""
    return part.expires_at is not None and part.expires_at <= now


def _expires_no_later(part: Part, new: Part) -> bool:
    """Of two that expire together, the one made first comes first; those that do not expire come last."""
    if new.expires_at is None:
        return True
    return part.expires_at is not None and part.expires_at <= new.expires_at
