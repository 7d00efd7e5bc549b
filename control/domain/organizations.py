"""Organizations: who pays. Their names are immutable, their budget caps everything below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from asyncpg import Record

from control.database import Connection
from control.domain.budgets import BudgetPatch, amended, budget_of_row
from control.domain.changes import Change
from control.domain.names import is_slug
from control.domain.pages import Listing, Page, listing
from control.domain.refusals import Conflict, NotFound
from gateway.contract.ids import OrganizationTag, new_organization_tag, tag_of_organization
from gateway.contract.records import Budget, OrganizationStatus

_TAG_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Organization:
    """One row. `tag` is the six characters that every identifier below it carries."""

    tag: OrganizationTag
    name: str
    display_name: str
    description: str | None
    status: OrganizationStatus
    budget: Budget
    created_by: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewOrganization:
    name: str
    display_name: str
    description: str | None
    budget: Budget


class OrganizationPatch(BudgetPatch, total=False):
    """What is to change; a missing entry stays as it is."""

    display_name: str
    description: str | None
    status: OrganizationStatus


async def create(change: Change, new: NewOrganization, *, actor: str) -> Organization:
    """Raises Conflict if the name is taken, NotSaved if Redis is away."""
    for _ in range(_TAG_ATTEMPTS):
        row = await change.conn.fetchrow(
            """INSERT INTO organizations (tag, name, display_name, description, limit_microcredits, reset_period,
                                          billing_day, created_by)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING RETURNING *""",
            new_organization_tag(),
            new.name,
            new.display_name,
            new.description,
            new.budget.limit,
            new.budget.period,
            new.budget.billing_day,
            actor,
        )
        if row is not None:
            await change.introduce("organization", row["tag"])
            return _of_row(row)
        if await change.conn.fetchval("SELECT EXISTS (SELECT FROM organizations WHERE name = $1)", new.name):
            raise Conflict(
                "name_taken", f"There is an organization named {new.name!r}; names are never used twice."
            )
    raise RuntimeError("no free organization tag in five attempts")


async def get(conn: Connection, reference: str) -> Organization:
    """By id (`org_…`) or by name. Raises NotFound."""
    row = await conn.fetchrow("SELECT * FROM organizations WHERE tag = $1 OR name = $2", *_either(reference))
    return _of_row(_found(row, reference))


async def listed(conn: Connection, page: Page, status: str | None) -> Listing[Organization]:
    """Newest first. `status` None or "all" shows every one."""
    rows = await conn.fetch(
        """SELECT * FROM organizations
           WHERE ($1::text IS NULL OR $1 = 'all' OR status = $1)
             AND ($2::timestamptz IS NULL OR (created_at, tag) < ($2, $3))
           ORDER BY created_at DESC, tag DESC LIMIT $4""",
        status,
        page.before,
        page.before_id,
        page.limit + 1,
    )
    return listing([_of_row(row) for row in rows], page, lambda shown: (shown.created_at, shown.tag))


async def amend(change: Change, reference: str, patch: OrganizationPatch) -> Organization:
    """Raises NotFound, and NotYetInForce from the change itself."""
    found = await change.conn.fetchrow(
        """SELECT *, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms
           FROM organizations WHERE tag = $1 OR name = $2 FOR NO KEY UPDATE""",
        *_either(reference),
    )
    row = _found(found, reference)
    old, now_ms = _of_row(row), int(row["now_ms"])
    new = replace(
        old,
        display_name=patch.get("display_name", old.display_name),
        description=patch.get("description", old.description),
        status=patch.get("status", old.status),
        budget=amended(old.budget, patch, now_ms),
    )
    if new == old:
        return old
    if (new.status, new.budget) != (old.status, old.budget):
        await change.touch("organization", [old.tag])
    if new.budget.billing_day != old.budget.billing_day:
        await _restart_months(change, old.tag, now_ms)
    return await _update(change.conn, new)


async def lock_against_new_billing_day(conn: Connection, tag: OrganizationTag) -> None:
    """Hold the billing day still until the transaction ends: for whoever creates or changes a budget below it.

    Without it, a budget could become monthly while a new billing day is being carried to all monthly ones, and miss it.
    """
    await conn.execute("SELECT FROM organizations WHERE tag = $1 FOR SHARE", tag)


async def _update(conn: Connection, new: Organization) -> Organization:
    row = await conn.fetchrow(
        """UPDATE organizations
           SET display_name = $2, description = $3, status = $4, limit_microcredits = $5, reset_period = $6,
               billing_day = $7, period_since_ms = $8, version = nextval('rule_version'), updated_at = now()
           WHERE tag = $1 RETURNING *""",
        new.tag,
        new.display_name,
        new.description,
        new.status,
        new.budget.limit,
        new.budget.period,
        new.budget.billing_day,
        new.budget.since_ms,
    )
    if row is None:
        raise LookupError("an organization vanished under its lock")
    return _of_row(row)


async def _restart_months(change: Change, tag: OrganizationTag, now_ms: int) -> None:
    """Every monthly budget below the organization starts a fresh window, by the new billing day."""
    accounts = await change.conn.fetch(
        """UPDATE accounts SET period_since_ms = $2, version = nextval('rule_version')
           WHERE organization = $1 AND reset_period = 'monthly' AND status <> 'deleted' RETURNING id""",
        tag,
        now_ms,
    )
    keys = await change.conn.fetch(
        """UPDATE keys SET period_since_ms = $2, version = nextval('rule_version')
           WHERE organization = $1 AND reset_period = 'monthly' AND status <> 'revoked' RETURNING id""",
        tag,
        now_ms,
    )
    await change.touch("account", _ids(accounts))
    await change.touch("key", _ids(keys))


def _ids(rows: Sequence[Record]) -> list[str]:
    return [row["id"] for row in rows]


def _either(reference: str) -> tuple[str | None, str | None]:
    """(tag, name) to look for, at most one of them: no name contains the underscore of an id."""
    return tag_of_organization(reference), reference if is_slug(reference) else None


def _found(row: Record | None, reference: str) -> Record:
    if row is None:
        raise NotFound.of("organization", reference)
    return row


def _of_row(row: Record) -> Organization:
    return Organization(
        tag=row["tag"],
        name=row["name"],
        display_name=row["display_name"],
        description=row["description"],
        status=row["status"],
        budget=budget_of_row(row),
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
