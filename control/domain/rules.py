"""Rules as Redis is to have them, read from Postgres. The publish job and `changes` call it.

Deleted accounts and revoked keys are rules too: a record that says "revoked" outlives any late copy that says "active".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from asyncpg import Record

from control.database import Connection
from control.domain.budgets import budget_of_row, pace_of_row
from control.domain.prepaid import ORGANIZATIONS, budget_in_force, line_of_row
from gateway.contract.ids import LEVELS, Level
from gateway.contract.records import AccountRules, KeyRules, OrganizationRules

Rules: TypeAlias = OrganizationRules | AccountRules | KeyRules

PUBLISHING_ORDER: Final[tuple[Level, ...]] = tuple(reversed(LEVELS))
"""Parents first: a key that is in force has its account and its organization beside it."""

_BATCH: Final = 1_000

_SELECT: Final[dict[Level, str]] = {
    "organization": ORGANIZATIONS,
    "account": """
        SELECT a.id, a.name, a.kind, a.version, a.status, a.limit_microcredits, a.reset_period, o.billing_day,
               a.period_since_ms, a.enforcement, a.alert_thresholds, a.requests_per_minute, a.burst, a.requests_in_flight
        FROM accounts a JOIN organizations o ON o.tag = a.organization""",
    "key": """
        SELECT k.id, k.version, k.status, k.limit_microcredits, k.reset_period, o.billing_day, k.period_since_ms,
               k.enforcement, k.alert_thresholds, k.requests_per_minute, k.burst, k.requests_in_flight,
               k.expires_at, k.token_hash, k.account, a.name AS account_name, a.kind AS account_kind,
               k.organization, o.name AS organization_name
        FROM keys k JOIN accounts a ON a.id = k.account JOIN organizations o ON o.tag = k.organization""",
}
_ID: Final[dict[Level, str]] = {"organization": "o.tag", "account": "a.id", "key": "k.id"}


async def load(conn: Connection, kind: Level, entity: str) -> Rules | None:
    """Rules of one organization (by tag), account or key; None if there is no such row."""
    found = await load_all(conn, kind, [entity])
    return found[0] if found else None


async def load_all(conn: Connection, kind: Level, entities: Sequence[str]) -> list[Rules]:
    """Rules of several of a kind, in no order; those that do not exist are left out."""
    rows = await conn.fetch(f"{_SELECT[kind]} WHERE {_ID[kind]} = ANY($1::text[])", list(entities))
    return [_READ[kind](row) for row in rows]


async def all_rules(conn: Connection) -> AsyncGenerator[Rules, None]:
    """Everything there is: organizations, then accounts, then keys, as one consistent picture, a batch at a time.

    A transaction is open until the generator is closed: whoever may stop early closes it.
    """
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        for kind in PUBLISHING_ORDER:
            async for row in conn.cursor(_SELECT[kind], prefetch=_BATCH):
                yield _READ[kind](row)


def _organization(row: Record) -> Rules:
    line = line_of_row(row)
    budget = budget_in_force(budget_of_row(row), row["billing"], line)
    return OrganizationRules(
        row["id"], row["name"], row["version"], row["status"], budget, line.grants if line is not None else ()
    )


def _account(row: Record) -> Rules:
    return AccountRules(
        row["id"],
        row["name"],
        row["kind"],
        row["version"],
        row["status"],
        budget_of_row(row),
        pace_of_row(row),
    )


def _key(row: Record) -> Rules:
    return KeyRules(
        id=row["id"],
        version=row["version"],
        status=row["status"],
        budget=budget_of_row(row),
        expires_at_ms=milliseconds(row["expires_at"]),
        token_hash=row["token_hash"],
        account_id=row["account"],
        account_name=row["account_name"],
        account_kind=row["account_kind"],
        organization_tag=row["organization"],
        organization_name=row["organization_name"],
        pace=pace_of_row(row),
    )


def milliseconds(at: datetime | None) -> int | None:
    """Milliseconds since 1970 UTC, rounded down."""
    return None if at is None else int(at.timestamp()) * 1000 + at.microsecond // 1000


_READ: Final[dict[Level, Callable[[Record], Rules]]] = {
    "organization": _organization,
    "account": _account,
    "key": _key,
}
