"""Organizations: who pays. Their names are immutable, their budget caps everything below them.

A plain one has a limit, a postpaid one's limit is only observed, a prepaid one may spend what was granted (`grants`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from asyncpg import Record

from control.database import Connection
from control.domain import grants
from control.domain.budgets import BudgetPatch, amended, budget_of_row
from control.domain.changes import Change
from control.domain.names import is_slug
from control.domain.pages import Listing, Page, listing
from control.domain.prepaid import ORGANIZATIONS, Billing, Line, budget_in_force, line_of_row
from control.domain.refusals import Conflict, NotFound
from gateway.contract.ids import OrganizationTag, new_organization_tag, tag_of_organization
from gateway.contract.records import Budget, Enforcement, OrganizationStatus

_TAG_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Organization:
    """One row. `tag` is the six characters that every identifier below it carries. `own_budget` is what was set; while it is
    prepaid, and has a `line`, that is in force which was granted."""

    tag: OrganizationTag
    name: str
    display_name: str
    description: str | None
    status: OrganizationStatus
    own_budget: Budget
    billing: Billing | None
    line: Line | None
    created_by: str
    created_at: datetime
    updated_at: datetime

    @property
    def budget(self) -> Budget:
        """The one in force."""
        return budget_in_force(self.own_budget, self.billing, self.line)


@dataclass(frozen=True, slots=True)
class NewOrganization:
    name: str
    display_name: str
    description: str | None
    budget: Budget
    billing: Billing | None = None


class OrganizationPatch(BudgetPatch, total=False):
    """What is to change; a missing entry stays as it is."""

    display_name: str
    description: str | None
    status: OrganizationStatus
    billing: Billing | None


async def create(change: Change, new: NewOrganization, *, actor: str) -> Organization:
    """Raises Conflict if the name is taken, NotSaved if Redis is away."""
    for _ in range(_TAG_ATTEMPTS):
        row = await change.conn.fetchrow(
            """INSERT INTO organizations (tag, name, display_name, description, limit_microcredits, reset_period,
                                          billing_day, enforcement, alert_thresholds, billing, created_by)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING tag""",
            new_organization_tag(),
            new.name,
            new.display_name,
            new.description,
            new.budget.limit,
            new.budget.period,
            new.budget.billing_day,
            new.budget.enforcement,
            list(new.budget.alerts),
            new.billing,
            actor,
        )
        if row is not None:
            await change.introduce("organization", row["tag"])
            return await _get(change.conn, row["tag"])
        if await change.conn.fetchval("SELECT EXISTS (SELECT FROM organizations WHERE name = $1)", new.name):
            raise Conflict(
                "name_taken", f"There is an organization named {new.name!r}; names are never used twice."
            )
    raise RuntimeError("no free organization tag in five attempts")


async def get(conn: Connection, reference: str) -> Organization:
    """By id (`org_…`) or by name. Raises NotFound."""
    row = await conn.fetchrow(f"{ORGANIZATIONS} WHERE o.tag = $1 OR o.name = $2", *_either(reference))
    return _of_row(_found(row, reference))


async def listed(conn: Connection, page: Page, status: str | None) -> Listing[Organization]:
    """Newest first. `status` None or "all" shows every one."""
    rows = await conn.fetch(
        f"""{ORGANIZATIONS}
           WHERE ($1::text IS NULL OR $1 = 'all' OR o.status = $1)
             AND ($2::timestamptz IS NULL OR (o.created_at, o.tag) < ($2, $3))
           ORDER BY o.created_at DESC, o.tag DESC LIMIT $4""",
        status,
        page.before,
        page.before_id,
        page.limit + 1,
    )
    return listing([_of_row(row) for row in rows], page, lambda shown: (shown.created_at, shown.tag))


async def amend(change: Change, reference: str, patch: OrganizationPatch) -> Organization:
    """Raises NotFound, Conflict for what its billing does not let be set, and NotYetInForce from the change itself.

    To become prepaid, or to be it no longer, starts a fresh window: what was spent before counts against no grant, and
    what is left of grants ends with them.
    """
    found = await change.conn.fetchrow(
        """SELECT tag, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms
           FROM organizations WHERE tag = $1 OR name = $2 FOR NO KEY UPDATE""",
        *_either(reference),
    )
    row = _found(found, reference)
    old, now_ms = (
        await _get(change.conn, row["tag"]),
        int(row["now_ms"]),
    )  # with grants as they are under the lock
    new = replace(
        old,
        display_name=patch.get("display_name", old.display_name),
        description=patch.get("description", old.description),
        status=patch.get("status", old.status),
        billing=patch.get("billing", old.billing),
        own_budget=_amended(old, patch, now_ms),
    )
    if new == old:
        return old
    if (new.status, new.own_budget, new.billing) != (old.status, old.own_budget, old.billing):
        await change.touch("organization", [old.tag])
    if new.own_budget.billing_day != old.own_budget.billing_day:
        await _restart_months(change, old.tag, now_ms)
    if old.line is not None and new.billing != "prepaid":
        await grants.end_line(change.conn, old.tag, old.line, old.own_budget.since_ms)
    await _update(change.conn, new, is_new_line=(new.billing == "prepaid") != (old.billing == "prepaid"))
    return await _get(change.conn, old.tag)


def _amended(old: Organization, patch: OrganizationPatch, now_ms: int) -> Budget:
    billing, was = patch.get("billing", old.billing), old.own_budget
    if (refused := unfit(billing, patch.keys(), patch.get("enforcement"))) is not None:
        raise Conflict("not_with_this_billing", refused)
    budget = amended(was, patch, now_ms)
    if (billing == "prepaid") != (old.billing == "prepaid"):
        return replace(budget, since_ms=max(now_ms, was.since_ms + 1))
    return replace(budget, since_ms=was.since_ms) if billing == "prepaid" else budget


def unfit(billing: Billing | None, said: Collection[str], enforcement: Enforcement | None) -> str | None:
    """Why what is said of the limit does not go with the billing, for people; None if it does. Pure."""
    if billing == "prepaid" and not {"limit", "period"}.isdisjoint(said):
        return (
            "The limit of a prepaid organization is the sum of its grants and has no period: make a grant with "
            "POST /v1/organizations/{org}/grants. To set credit_limit or reset_period, set billing to null or postpaid as well."
        )
    if billing == "prepaid" and enforcement == "observe":
        return "Prepaid credits are always enforced. To only observe a limit, set billing to null or postpaid as well."
    if billing == "postpaid" and enforcement == "enforce":
        return "The limit of a postpaid organization is only observed. To enforce it, set billing to null as well."
    return None


async def lock_against_new_billing_day(conn: Connection, tag: OrganizationTag) -> None:
    """Hold the billing day still until the transaction ends: for whoever creates or changes a budget below it.

    Without it, a budget could become monthly while a new billing day is being carried to all monthly ones, and miss it.
    """
    await conn.execute("SELECT FROM organizations WHERE tag = $1 FOR SHARE", tag)


async def _update(conn: Connection, new: Organization, *, is_new_line: bool) -> None:
    await conn.execute(
        """UPDATE organizations
           SET display_name = $2, description = $3, status = $4, limit_microcredits = $5, reset_period = $6,
               billing_day = $7, period_since_ms = $8, enforcement = $9, alert_thresholds = $10, billing = $11,
               lost_microcredits = CASE WHEN $12 THEN 0 ELSE lost_microcredits END,
               version = nextval('rule_version'), updated_at = now()
           WHERE tag = $1""",
        new.tag,
        new.display_name,
        new.description,
        new.status,
        new.own_budget.limit,
        new.own_budget.period,
        new.own_budget.billing_day,
        new.own_budget.since_ms,
        new.own_budget.enforcement,
        list(new.own_budget.alerts),
        new.billing,
        is_new_line,
    )


async def _get(conn: Connection, tag: OrganizationTag) -> Organization:
    row = await conn.fetchrow(f"{ORGANIZATIONS} WHERE o.tag = $1", tag)
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
        own_budget=budget_of_row(row),
        billing=row["billing"],
        line=line_of_row(row),
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
