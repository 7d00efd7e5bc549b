"""Migrations: the schema comes up once, in order, and two installations never differ."""

from __future__ import annotations

import asyncio
import dataclasses

import asyncpg
import pytest

from control import migrate as module
from control.migrate import MigrationError, is_current, migrate, migrations


async def test_an_empty_database_gets_every_file_once(postgres_dsn: str) -> None:
    names = [migration.name for migration in migrations()]

    assert await migrate(postgres_dsn) == names
    assert await migrate(postgres_dsn) == []


async def test_processes_that_start_at_once_apply_each_file_once(postgres_dsn: str) -> None:
    applied = await asyncio.gather(*(migrate(postgres_dsn) for _ in range(4)))

    assert sorted(name for names in applied for name in names) == [
        migration.name for migration in migrations()
    ]


async def test_a_file_that_was_edited_after_it_ran_is_an_error(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(postgres_dsn)
    first, *others = migrations()
    edited = dataclasses.replace(first, checksum="0" * 64)
    monkeypatch.setattr(module, "migrations", lambda: [edited, *others])

    with pytest.raises(MigrationError, match=first.name):
        await migrate(postgres_dsn)


async def test_a_schema_from_a_newer_version_is_refused(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(postgres_dsn)
    monkeypatch.setattr(module, "migrations", lambda: migrations()[:-1] if len(migrations()) > 1 else [])

    with pytest.raises(MigrationError, match="newer"):
        await migrate(postgres_dsn)


async def test_a_file_that_fails_leaves_nothing_behind(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = module.Migration("9999_broken.sql", "CREATE TABLE half (id int); SELECT 1/0;", "0" * 64)
    monkeypatch.setattr(module, "migrations", lambda: [broken])

    with pytest.raises(MigrationError, match="rolled back"):
        await migrate(postgres_dsn)

    conn = await asyncpg.connect(postgres_dsn)
    try:
        assert await conn.fetchval("SELECT to_regclass('half')") is None
        assert not await is_current(conn)
    finally:
        await conn.close()


async def test_rules_of_an_older_version_are_published_once_more_with_what_is_new_of_them(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a gateway would go by records that say nothing of enforcement, pace and alerts."""
    before, tag = migrations()[:3], "Acme01"
    with monkeypatch.context() as older:
        older.setattr(module, "migrations", lambda: before)
        await migrate(postgres_dsn)
    conn = await asyncpg.connect(postgres_dsn)
    try:
        await conn.execute(
            f"""INSERT INTO organizations (tag, name, display_name, created_by) VALUES ('{tag}', 'acme', 'Acme', 'test');
            INSERT INTO accounts (id, organization, kind, name, display_name, created_by)
            VALUES ('sa_{tag}0123456789', '{tag}', 'service-account', 'bot', 'Bot', 'test');
            INSERT INTO keys (id, organization, account, name, hint, token_hash, created_by)
            VALUES ('{tag}0123456789', '{tag}', 'sa_{tag}0123456789', 'dev', 'tk_…', '$argon2id$', 'test')"""
        )
        versions = "SELECT version FROM organizations UNION ALL SELECT version FROM accounts UNION ALL SELECT version FROM keys"
        old = max(row["version"] for row in await conn.fetch(versions))
        await migrate(postgres_dsn)
        assert min(row["version"] for row in await conn.fetch(versions)) > old
        waiting = {
            (row["kind"], row["entity"]) for row in await conn.fetch("SELECT kind, entity FROM outbox")
        }
        assert waiting == {
            ("organization", tag),
            ("account", f"sa_{tag}0123456789"),
            ("key", f"{tag}0123456789"),
        }
    finally:
        await conn.close()
