"""One change: its transaction, its outbox entries, and putting it in force before it is answered.

Two ways into Redis, by what can go wrong. Something *new* is published inside the transaction, just before the commit:
if Redis is away nothing is saved, and if the commit fails, Redis keeps a record that no token leads to. Something
that *exists* is published after the commit: publishing a change that is then rolled back would be wrong, so if Redis is
away the change stays saved, the caller is told that it is not yet in force, and the outbox puts it in force later.
A process that dies anywhere in between leaves the outbox entry behind, with the same effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import structlog

from control.database import POSTGRES_ERRORS, Connection, Pool
from control.domain import outbox, rules
from control.domain.outbox import Entry
from control.domain.refusals import NotSaved, NotYetInForce
from control.domain.rules import PUBLISHING_ORDER, Rules
from control.publishing import Publisher, RedisUnavailable
from gateway.contract.ids import Level, OrganizationTag
from gateway.contract.records import Counters, KeyRules
from gateway.contract.token import Digest

_log = structlog.get_logger("control.changes")


class Change:
    """What one transaction changes. Domain functions use `conn` for their SQL and say here what Redis must learn."""

    def __init__(self, conn: Connection, publisher: Publisher) -> None:
        self.conn = conn
        self.changed: list[Entry] = []
        self.introduced: list[tuple[Entry, Rules]] = []
        self._publisher = publisher

    async def introduce(self, kind: Level, entity: str, *, digest: Digest | None = None) -> None:
        """Publish something new, now. Raises NotSaved, which ends the transaction."""
        entry = await outbox.enqueue(self.conn, kind, entity)
        new = await rules.load(self.conn, kind, entity)
        if new is None:
            raise LookupError(f"{kind} {entity} was announced but not inserted")
        if digest is not None and isinstance(new, KeyRules):
            new = replace(new, digest=digest)
        try:
            await self._publisher.publish(new)
        except RedisUnavailable as error:
            raise NotSaved from error
        self.introduced.append((entry, new))

    async def counters(self, tag: OrganizationTag) -> tuple[int, Counters]:
        """Redis's clock in ms and an organization's live counters, for a change that is worked out from them.

        Raises NotSaved, which ends the transaction, also if Redis has no such record: it is being loaded.
        """
        try:
            now_ms, counters = await self._publisher.counters(tag)
        except RedisUnavailable as error:
            raise NotSaved from error
        if counters is None:
            raise NotSaved
        return now_ms, counters

    async def touch(self, kind: Level, entities: Sequence[str]) -> None:
        """Publish the new state of these once the transaction is committed."""
        if entities:
            self.changed += await outbox.enqueue_all(self.conn, kind, entities)


class Changes:
    """Where changes are made: `async with changes.begin() as change`."""

    def __init__(self, pool: Pool, publisher: Publisher, *, timeout_s: float) -> None:
        self._pool = pool
        self._publisher = publisher
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Change]:
        """A transaction. After the block it is committed and in force; raises NotYetInForce if it is only committed."""
        async with self._pool.acquire(timeout=self._timeout_s) as conn:
            async with conn.transaction():
                change = Change(conn, self._publisher)
                yield change
            if change.changed:
                await self._put_in_force(conn, change)
            if entries := change.changed + await self._still_there(change.introduced):
                await _tidy(conn, entries)

    async def _still_there(self, introduced: Sequence[tuple[Entry, Rules]]) -> list[Entry]:
        """Entries of those that Redis still has. One that it lost before the commit was in nobody's picture of the rules, so
        its entry stays, and the publish job writes it."""
        if not introduced:
            return []
        try:
            there = await self._publisher.publish_changes([new for _, new in introduced])
        except RedisUnavailable:
            return []
        return [entry for (entry, _), is_there in zip(introduced, there, strict=True) if is_there]

    async def _put_in_force(self, conn: Connection, change: Change) -> None:
        try:
            changed = await _load(conn, change.changed)
            in_force = await self._publisher.publish_changes(changed)
        except (RedisUnavailable, *POSTGRES_ERRORS) as error:
            _log.warning("change_not_yet_in_force", entries=len(change.changed), error=type(error).__name__)
            raise NotYetInForce from error
        if not all(
            in_force
        ):  # Redis lost its data: a rebuild under way may have read the rules before this change
            raise NotYetInForce


async def _load(conn: Connection, entries: Sequence[Entry]) -> list[Rules]:
    found: list[Rules] = []
    for kind in PUBLISHING_ORDER:
        if wanted := [entry.entity for entry in entries if entry.kind == kind]:
            found += await rules.load_all(conn, kind, wanted)
    return found


async def _tidy(conn: Connection, entries: Sequence[Entry]) -> None:
    """Everything is in force; an entry that cannot be removed now is published once more by the job, to no effect."""
    try:
        await outbox.done(conn, [entry.id for entry in entries])
    except (asyncpg.PostgresError, *POSTGRES_ERRORS) as error:
        _log.warning("outbox_entries_left", entries=len(entries), error=type(error).__name__)
