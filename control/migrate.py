"""The schema, brought up to date by numbered SQL files. Called by `tollkeeper migrate`, `tollkeeper up` and the tests.

Each file runs once, in order, in a transaction of its own, and is recorded with the SHA-256 of its text: a file that
was edited after it ran is an error, since two installations would then differ. An advisory lock lets several processes
start at once; the first one migrates, the others find nothing to do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import asyncpg

from control.database import Connection

_ADVISORY_LOCK: Final = 0x746B_6D69_6772  # "tkmigr"
_FILE: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_CONNECT_TIMEOUT_S: Final = 10.0

_SESSION: Final = """
    SET lock_timeout = '10s';
    SET statement_timeout = '5min';
    SET timezone = 'UTC';
    SET client_min_messages = 'warning';
"""
_RECORDS: Final = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
      name       text PRIMARY KEY,
      checksum   text NOT NULL,
      applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


class MigrationError(Exception):
    """The schema and the files disagree; the message names the file."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: `NNNN_words.sql`, its text and the SHA-256 of the text (64 hex digits)."""

    name: str
    text: str
    checksum: str


def migrations() -> list[Migration]:
    """Every packaged migration, in order. Raises MigrationError if two have one number."""
    found = sorted(
        (item.name, item.read_text("utf-8"))
        for item in (files("control") / "migrations").iterdir()
        if _FILE.fullmatch(item.name)
    )
    numbers = [name[:4] for name, _ in found]
    if len(set(numbers)) != len(numbers):
        raise MigrationError(f"two migrations have the same number: {', '.join(name for name, _ in found)}")
    return [Migration(name, text, hashlib.sha256(text.encode()).hexdigest()) for name, text in found]


async def migrate(dsn: str) -> list[str]:
    """Apply what is missing; gives the names of the files that ran now.

    Raises MigrationError if an applied file has changed since, or the schema is newer than these files.
    """
    conn = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        await conn.execute(_SESSION)
        await conn.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
        await conn.execute(_RECORDS)
        missing = await _missing(conn)
        for migration in missing:
            await _apply(conn, migration)
        return [migration.name for migration in missing]
    finally:
        await conn.close(timeout=_CONNECT_TIMEOUT_S)


async def is_current(conn: Connection) -> bool:
    """Whether the schema is that of these files. Raises MigrationError where `migrate` would."""
    if await conn.fetchval("SELECT to_regclass('schema_migrations') IS NULL"):
        return False
    return not await _missing(conn)


async def _missing(conn: Connection) -> list[Migration]:
    applied = {
        row["name"]: row["checksum"]
        for row in await conn.fetch("SELECT name, checksum FROM schema_migrations")
    }
    known = migrations()
    for migration in known:
        if applied.get(migration.name, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"{migration.name} was edited after it had been applied; put it back, and add a new file instead"
            )
    if unknown := applied.keys() - {migration.name for migration in known}:
        raise MigrationError(
            f"the schema is newer than this version of Tollkeeper: it has {', '.join(sorted(unknown))}"
        )
    return [migration for migration in known if migration.name not in applied]


async def _apply(conn: Connection, migration: Migration) -> None:
    async with conn.transaction():
        try:
            await conn.execute(migration.text)
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{migration.name} failed and was rolled back: {error}") from error
        await conn.execute(
            "INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)",
            migration.name,
            migration.checksum,
        )
