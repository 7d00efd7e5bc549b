"""The outbox: what changed in Postgres and is perhaps not in Redis yet.

A row is written in the transaction of the change and removed once the rules are published, by the call that made the
change or, if that died in between, by the publish job. It names the thing, not the change: what is published is
always its present state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control.database import Connection
from gateway.contract.ids import Level


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: `entity` is an organization's tag, an account's id or a key's id, by `kind`."""

    id: int
    kind: Level
    entity: str


async def enqueue(conn: Connection, kind: Level, entity: str) -> Entry:
    """Call it in the transaction of the change."""
    return (await enqueue_all(conn, kind, [entity]))[0]


async def enqueue_all(conn: Connection, kind: Level, entities: Sequence[str]) -> list[Entry]:
    rows = await conn.fetch(
        "INSERT INTO outbox (kind, entity) SELECT $1, entity FROM unnest($2::text[]) AS entity RETURNING id, entity",
        kind,
        list(entities),
    )
    return [Entry(row["id"], kind, row["entity"]) for row in rows]


async def take(conn: Connection, limit: int) -> list[Entry]:
    """The oldest entries. They stay until `done`: taken twice, they are published twice, which changes nothing."""
    rows = await conn.fetch("SELECT id, kind, entity FROM outbox ORDER BY id LIMIT $1", limit)
    return [Entry(row["id"], row["kind"], row["entity"]) for row in rows]


async def done(conn: Connection, ids: Sequence[int]) -> None:
    """Remove entries whose rules are in Redis."""
    await conn.execute("DELETE FROM outbox WHERE id = ANY($1::bigint[])", list(ids))
