"""Service accounts: identities of workloads. They own keys, have a budget, and never sign in anywhere else.

Members will live in the same table; everything here is restricted to the kind `service-account`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from asyncpg import Record

from control.database import Connection
from control.domain.budgets import (
    BudgetPatch,
    PacePatch,
    amended,
    amended_pace,
    budget_of_row,
    pace_of_row,
)
from control.domain.changes import Change
from control.domain.organizations import Organization, lock_against_new_billing_day
from control.domain.pages import Listing, Page, listing
from control.domain.refusals import Conflict, NotFound
from gateway.contract.ids import AccountId, AccountKind, OrganizationTag, new_account_id, tag_of_account
from gateway.contract.records import AccountStatus, Budget, Pace

KIND: Final = "service-account"


@dataclass(frozen=True, slots=True)
class Account:
    """One row, with what its organization adds: the name, and the billing day inside the budget."""

    id: AccountId
    organization: OrganizationTag
    organization_name: str
    kind: AccountKind
    name: str
    display_name: str
    description: str | None
    status: AccountStatus
    budget: Budget
    pace: Pace
    created_by: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewAccount:
    name: str
    display_name: str
    description: str | None
    budget: Budget
    pace: Pace


class AccountPatch(BudgetPatch, PacePatch, total=False):
    """What is to change; a missing entry stays as it is."""

    display_name: str
    description: str | None


@dataclass(frozen=True, slots=True)
class RevokedKey:
    """A key that went with its account."""

    id: str
    name: str
    hint: str
    last_used_at: datetime | None


_SELECT: Final = """
    SELECT a.*, o.name AS organization_name, o.billing_day,
           floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms
    FROM accounts a JOIN organizations o ON o.tag = a.organization
"""
_BY_ID: Final = f"{_SELECT} WHERE a.id = $1 AND a.kind = 'service-account'"


async def create(
    change: Change, organization: Organization, new: NewAccount, *, actor: str, accounts_max: int
) -> Account:
    """Raises Conflict if the name is taken or the organization is full, NotSaved if Redis is away."""
    conn, tag = change.conn, organization.tag
    # Not just a share: creations in one organization wait for each other, so that the count below holds.
    await conn.execute("SELECT FROM organizations WHERE tag = $1 FOR NO KEY UPDATE", tag)
    count = "SELECT count(*) FROM accounts WHERE organization = $1 AND kind = $2 AND status <> 'deleted'"
    if await conn.fetchval(count, tag, KIND) >= accounts_max:
        raise Conflict(
            "too_many_accounts", f"{organization.name} has {accounts_max} service accounts, the most allowed."
        )
    identifier = new_account_id(tag, KIND)
    inserted = await conn.fetchval(
        """INSERT INTO accounts (id, organization, kind, name, display_name, description, limit_microcredits,
                                 reset_period, enforcement, alert_thresholds, requests_per_minute, burst,
                                 requests_in_flight, created_by)
           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
           ON CONFLICT (organization, name) DO NOTHING RETURNING id""",
        identifier,
        tag,
        KIND,
        new.name,
        new.display_name,
        new.description,
        new.budget.limit,
        new.budget.period,
        new.budget.enforcement,
        list(new.budget.alerts),
        new.pace.per_minute,
        new.pace.burst,
        new.pace.in_flight,
        actor,
    )
    if inserted is None:
        raise Conflict(
            "name_taken",
            f"{organization.name} has or had an account named {new.name!r}; names are never used twice, "
            "so that the history of one is never taken for another's.",
        )
    await change.introduce("account", identifier)
    return await get(conn, identifier)


async def get(conn: Connection, identifier: str) -> Account:
    """Deleted ones too. Raises NotFound."""
    return _of_row(await _row(conn, identifier, _BY_ID))


async def listed(conn: Connection, tag: OrganizationTag, page: Page, status: str | None) -> Listing[Account]:
    """Newest first. `status` None hides the deleted ones, "all" shows them."""
    rows = await conn.fetch(
        f"""{_SELECT}
           WHERE a.organization = $1 AND a.kind = 'service-account'
             AND (CASE WHEN $2::text IS NULL THEN a.status <> 'deleted' ELSE $2 IN ('all', a.status) END)
             AND ($3::timestamptz IS NULL OR (a.created_at, a.id) < ($3, $4))
           ORDER BY a.created_at DESC, a.id DESC LIMIT $5""",
        tag,
        status,
        page.before,
        page.before_id,
        page.limit + 1,
    )
    return listing([_of_row(row) for row in rows], page, lambda shown: (shown.created_at, shown.id))


async def amend(change: Change, identifier: str, patch: AccountPatch) -> Account:
    """Raises NotFound, Invalid for a burst without a rate, and Conflict if it is deleted."""
    if tag := tag_of_account(identifier):
        await lock_against_new_billing_day(change.conn, tag)
    row = await _locked(change.conn, identifier)
    old = _living(_of_row(row))
    new = replace(
        old,
        display_name=patch.get("display_name", old.display_name),
        description=patch.get("description", old.description),
        budget=amended(old.budget, patch, row["now_ms"]),
        pace=amended_pace(old.pace, patch),
    )
    return old if new == old else await _update(change, old, new)


async def set_status(change: Change, identifier: str, status: Literal["active", "inactive"]) -> Account:
    """Activate or deactivate; both may be said twice. Raises NotFound, and Conflict if it is deleted.

    Its keys keep their own status: those that were revoked stay so when the account becomes active again.
    """
    old = _living(_of_row(await _locked(change.conn, identifier)))
    return old if old.status == status else await _update(change, old, replace(old, status=status))


async def delete(change: Change, identifier: str) -> tuple[Account, list[RevokedKey]]:
    """Delete the account and revoke every key of it; said twice, there are no keys left to revoke. Raises NotFound.

    The lock on the account's row is what a key being created at the same moment waits for.
    """
    old = _of_row(await _locked(change.conn, identifier))
    if old.status == "deleted":
        return old, []
    keys = await change.conn.fetch(
        """WITH revoked AS (
             UPDATE keys
             SET status = 'revoked', revoked_at = now(), updated_at = now(), version = nextval('rule_version')
             WHERE account = $1 AND status <> 'revoked' RETURNING id, name, hint, last_used_at, created_at)
           SELECT * FROM revoked ORDER BY created_at, id""",
        identifier,
    )
    deleted = await _update(change, old, replace(old, status="deleted"))
    await change.touch("key", [key["id"] for key in keys])
    return deleted, [RevokedKey(key["id"], key["name"], key["hint"], key["last_used_at"]) for key in keys]


def _living(account: Account) -> Account:
    if account.status == "deleted":
        raise Conflict("account_deleted", f"The service account {account.name!r} is deleted; that is final.")
    return account


async def _locked(conn: Connection, identifier: str) -> Record:
    return await _row(conn, identifier, f"{_BY_ID} FOR NO KEY UPDATE OF a")


async def _row(conn: Connection, identifier: str, query: str) -> Record:
    row = await conn.fetchrow(query, identifier) if tag_of_account(identifier) else None
    if row is None:
        raise NotFound.of("service account", identifier)
    return row


async def _update(change: Change, old: Account, new: Account) -> Account:
    await change.conn.execute(
        """UPDATE accounts
           SET display_name = $2, description = $3, status = $4, limit_microcredits = $5, reset_period = $6,
               period_since_ms = $7, enforcement = $8, alert_thresholds = $9, requests_per_minute = $10, burst = $11,
               requests_in_flight = $12, version = nextval('rule_version'), updated_at = now(),
               deleted_at = CASE WHEN $4 = 'deleted' THEN now() END
           WHERE id = $1""",
        new.id,
        new.display_name,
        new.description,
        new.status,
        new.budget.limit,
        new.budget.period,
        new.budget.since_ms,
        new.budget.enforcement,
        list(new.budget.alerts),
        new.pace.per_minute,
        new.pace.burst,
        new.pace.in_flight,
    )
    if (new.status, new.budget, new.pace) != (old.status, old.budget, old.pace):
        await change.touch("account", [new.id])
    return await get(change.conn, new.id)


def _of_row(row: Record) -> Account:
    return Account(
        id=row["id"],
        organization=row["organization"],
        organization_name=row["organization_name"],
        kind=row["kind"],
        name=row["name"],
        display_name=row["display_name"],
        description=row["description"],
        status=row["status"],
        budget=budget_of_row(row),
        pace=pace_of_row(row),
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
    )
