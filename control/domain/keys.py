"""API keys. The token is known to the call that creates the key and to nobody after it.

Active and disabled turn into each other; revoked is final; deleted is revoked and hidden. Expired is not stored: it is
what an unrevoked key is after its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
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
from control.domain.hashing import Hashing
from control.domain.organizations import lock_against_new_billing_day
from control.domain.pages import Listing, Page, listing
from control.domain.refusals import Conflict, Invalid, NotFound
from gateway.contract import token
from gateway.contract.ids import AccountId, AccountKind, KeyId, OrganizationTag, tag_of_account, tag_of_key
from gateway.contract.records import Budget, KeyStatus, Pace
from gateway.contract.token import Digest, Pepper, Token

LIFETIME_MAX: Final = timedelta(days=3653)
"""Ten years, with the leap days that they may have."""

ShownStatus = Literal["active", "disabled", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Key:
    """One row, with what its account and organization add. No part of the token is in it but the hint."""

    id: KeyId
    organization: OrganizationTag
    organization_name: str
    account: AccountId
    account_name: str
    account_kind: AccountKind
    name: str
    hint: str
    status: KeyStatus
    expires_at: datetime | None
    budget: Budget
    pace: Pace
    created_by: str
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None
    deleted_at: datetime | None
    read_at: datetime

    @property
    def shown_status(self) -> ShownStatus:
        """The status with `expired`, by the database's clock when the row was read."""
        if self.status != "revoked" and self.expires_at is not None and self.expires_at <= self.read_at:
            return "expired"
        return self.status


@dataclass(frozen=True, slots=True)
class NewKey:
    name: str
    expires_at: datetime | None
    budget: Budget
    pace: Pace


@dataclass(frozen=True, slots=True)
class Minted:
    """A token and what is kept of it: the hash in Postgres, the digest in Redis."""

    id: KeyId
    token: Token
    token_hash: str
    digest: Digest

    def __repr__(self) -> str:
        return f"Minted(id={self.id!r})"


class KeyPatch(BudgetPatch, PacePatch, total=False):
    """What is to change; a missing entry stays as it is."""

    name: str
    expires_at: datetime | None


_SELECT: Final = """
    SELECT k.*, a.name AS account_name, a.kind AS account_kind, o.name AS organization_name, o.billing_day,
           clock_timestamp() AS read_at
    FROM keys k JOIN accounts a ON a.id = k.account JOIN organizations o ON o.tag = k.organization
"""
_BY_ID: Final = f"{_SELECT} WHERE k.id = $1"
_EXPIRED: Final = "(k.status <> 'revoked' AND k.expires_at <= now())"


async def mint(account: str, hashing: Hashing, pepper: Pepper) -> Minted:
    """A token for a key of this account, before any transaction is open. Raises NotFound if that is no account's id."""
    tag = tag_of_account(account)
    if tag is None:
        raise NotFound.of("service account", account)
    identifier, secret = token.mint(tag)
    return Minted(identifier, secret, await hashing.hash(secret), token.digest(pepper, secret.encode()))


async def create(
    change: Change, account: str, new: NewKey, minted: Minted, *, actor: str, keys_max: int
) -> Key:
    """Raises NotFound, Conflict if the account is deleted or full, NotSaved if Redis is away."""
    conn = change.conn
    check_expiry(new.expires_at, datetime.now(UTC))
    await _lock_account(conn, account, keys_max)
    await conn.execute(
        """INSERT INTO keys (id, organization, account, name, hint, token_hash, expires_at, limit_microcredits,
                             reset_period, enforcement, alert_thresholds, requests_per_minute, burst, requests_in_flight,
                             created_by)
           SELECT $1, organization, id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14 FROM accounts WHERE id = $2""",
        minted.id,
        account,
        new.name,
        token.hint(minted.token),
        minted.token_hash,
        new.expires_at,
        new.budget.limit,
        new.budget.period,
        new.budget.enforcement,
        list(new.budget.alerts),
        new.pace.per_minute,
        new.pace.burst,
        new.pace.in_flight,
        actor,
    )
    await change.introduce("key", minted.id, digest=minted.digest)
    return await get(conn, minted.id)


async def get(conn: Connection, identifier: str) -> Key:
    """Deleted ones too. Raises NotFound."""
    return await _read(conn, identifier, _BY_ID)


async def listed(conn: Connection, account: AccountId, page: Page, status: str | None) -> Listing[Key]:
    """Newest first. `status` None hides the deleted ones, "all" shows them, others are as shown."""
    rows = await conn.fetch(
        f"""{_SELECT}
           WHERE k.account = $1
             AND (CASE WHEN $2::text IS NULL THEN k.deleted_at IS NULL
                       WHEN $2 = 'all' THEN true
                       ELSE k.deleted_at IS NULL AND $2 = CASE WHEN {_EXPIRED} THEN 'expired' ELSE k.status END END)
             AND ($3::timestamptz IS NULL OR (k.created_at, k.id) < ($3, $4))
           ORDER BY k.created_at DESC, k.id DESC LIMIT $5""",
        account,
        status,
        page.before,
        page.before_id,
        page.limit + 1,
    )
    return listing([_of_row(row) for row in rows], page, lambda shown: (shown.created_at, shown.id))


async def amend(change: Change, identifier: str, patch: KeyPatch) -> Key:
    """Raises NotFound, Invalid for an expiry that is past or far or a burst without a rate, Conflict if it is revoked."""
    if tag := tag_of_key(identifier):
        await lock_against_new_billing_day(change.conn, tag)
    old = _unrevoked(await _locked(change.conn, identifier))
    if "expires_at" in patch:
        check_expiry(patch["expires_at"], old.read_at)
    new = replace(
        old,
        name=patch.get("name", old.name),
        expires_at=patch.get("expires_at", old.expires_at),
        budget=amended(old.budget, patch, int(old.read_at.timestamp() * 1000)),
        pace=amended_pace(old.pace, patch),
    )
    return old if new == old else await _update(change, old, new)


async def set_status(change: Change, identifier: str, status: Literal["active", "disabled"]) -> Key:
    """Enable or disable; both may be said twice. Raises NotFound, and Conflict if it is revoked."""
    old = _unrevoked(await _locked(change.conn, identifier))
    return old if old.status == status else await _update(change, old, replace(old, status=status))


async def revoke(change: Change, identifier: str, *, hide: bool = False) -> Key:
    """For ever; may be said twice. `hide` takes it out of lists as well. Raises NotFound."""
    old = await _locked(change.conn, identifier)
    deleted_at = old.deleted_at or (old.read_at if hide else None)
    new = replace(old, status="revoked", revoked_at=old.revoked_at or old.read_at, deleted_at=deleted_at)
    return old if new == old else await _update(change, old, new)


def check_expiry(expires_at: datetime | None, now: datetime) -> None:
    """Raises Invalid unless it is None or lies between now and ten years from now. Pure."""
    if expires_at is None:
        return
    if expires_at <= now:
        raise Invalid.field(
            "expires_at", "is in the past; a key can be revoked, but not be made to have expired"
        )
    if expires_at > now + LIFETIME_MAX:
        raise Invalid.field(
            "expires_at", "is more than ten years away; leave it out for a key that does not expire"
        )


async def _lock_account(conn: Connection, account: str, keys_max: int) -> None:
    if tag := tag_of_account(account):
        await lock_against_new_billing_day(conn, tag)
    row = await conn.fetchrow(
        "SELECT name, status FROM accounts WHERE id = $1 AND kind = 'service-account' FOR NO KEY UPDATE",
        account,
    )
    if row is None:
        raise NotFound.of("service account", account)
    if row["status"] == "deleted":
        raise Conflict(
            "account_deleted", f"The service account {row['name']!r} is deleted; it cannot have new keys."
        )
    usable = await conn.fetchval(
        """SELECT count(*) FROM keys
           WHERE account = $1 AND status <> 'revoked' AND (expires_at IS NULL OR expires_at > now())""",
        account,
    )
    if usable >= keys_max:
        raise Conflict(
            "too_many_keys", f"{row['name']} has {keys_max} keys, the most allowed; revoke some first."
        )


async def _locked(conn: Connection, identifier: str) -> Key:
    return await _read(conn, identifier, f"{_BY_ID} FOR NO KEY UPDATE OF k")


async def _read(conn: Connection, identifier: str, query: str) -> Key:
    row = await conn.fetchrow(query, identifier) if tag_of_key(identifier) else None
    if row is None:
        raise NotFound.of("key", identifier)
    return _of_row(row)


def _unrevoked(key: Key) -> Key:
    if key.status == "revoked":
        raise Conflict("key_revoked", f"The key {key.name!r} is revoked; that is final. Create a new one.")
    return key


async def _update(change: Change, old: Key, new: Key) -> Key:
    await change.conn.execute(
        """UPDATE keys
           SET name = $2, status = $3, expires_at = $4, limit_microcredits = $5, reset_period = $6,
               period_since_ms = $7, revoked_at = $8, deleted_at = $9, enforcement = $10, alert_thresholds = $11,
               requests_per_minute = $12, burst = $13, requests_in_flight = $14, version = nextval('rule_version'),
               updated_at = now()
           WHERE id = $1""",
        new.id,
        new.name,
        new.status,
        new.expires_at,
        new.budget.limit,
        new.budget.period,
        new.budget.since_ms,
        new.revoked_at,
        new.deleted_at,
        new.budget.enforcement,
        list(new.budget.alerts),
        new.pace.per_minute,
        new.pace.burst,
        new.pace.in_flight,
    )
    published = (new.status, new.budget, new.pace, new.expires_at)
    if published != (old.status, old.budget, old.pace, old.expires_at):
        await change.touch("key", [new.id])
    return await get(change.conn, new.id)


def _of_row(row: Record) -> Key:
    return Key(
        id=row["id"],
        organization=row["organization"],
        organization_name=row["organization_name"],
        account=row["account"],
        account_name=row["account_name"],
        account_kind=row["account_kind"],
        name=row["name"],
        hint=row["hint"],
        status=row["status"],
        expires_at=row["expires_at"],
        budget=budget_of_row(row),
        pace=pace_of_row(row),
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        last_used_at=row["last_used_at"],
        revoked_at=row["revoked_at"],
        deleted_at=row["deleted_at"],
        read_at=row["read_at"],
    )
