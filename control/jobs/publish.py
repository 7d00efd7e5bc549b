"""Publish: what Postgres says is what Redis has. Changed rules go out, and a Redis that lost everything is loaded anew.

- The outbox: rules whose call died between its commit and Redis, or could not reach it.
- `tk:meta` without an epoch (an empty Redis, a flushed one): every rule is written with what the ledger says was spent in
  its current window and what was lost by then, parents before children, and the epoch last. Until then gateways refuse
  everything.
- Another server than the one that was loaded (a restart, a fail-over): every rule is written again. Versions make that
  harmless, and what was lost on the way is put right. Which server was loaded is a field of `tk:meta`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, cast

import asyncpg
import structlog
from redis.asyncio import Redis
from redis.exceptions import WatchError

from control.domain import grants, outbox, rules, usage
from control.domain.rules import Rules
from control.jobs import drain
from control.jobs.context import Context
from control.jobs.expire import clock_ms
from control.publishing import Publisher, Start
from gateway.contract.ids import Level
from gateway.contract.layout import META, SCHEMA_VERSION, Layout
from gateway.contract.periods import window_at
from gateway.contract.records import AccountRules, OrganizationRules

BATCH_MAX: Final = 1_000

_log = structlog.get_logger(__name__)


class WrongInstallation(Exception):
    """Redis holds the data of an installation with other constants than ours; nothing may be written to it."""


class LoadInterrupted(Exception):
    """Redis was emptied or replaced while it was loaded; the next run starts over."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a run did: changes taken out of the outbox, records written, and whether Redis was loaded anew."""

    changes: int = 0
    written: int = 0
    rebuilt: bool = False


async def run_once(context: Context) -> Published:
    """Bring Redis up to what Postgres says. Raises WrongInstallation, LoadInterrupted."""
    redis = context.redis
    meta = await check_installation(redis, context.layout)
    server = str((await redis.info("server"))["run_id"])
    written, rebuilt = 0, b"epoch" not in meta
    if rebuilt:
        written = await _load(context, server)
        context.metrics.rebuilds.inc()
        (_log.warning if written else _log.info)("redis_loaded", records=written)
    elif meta.get(b"server") != server.encode():
        await drain.run_once(context)
        written = await _write_everything(context)
        await redis.hset(META, "server", server)
        (_log.warning if written else _log.info)("redis_changed", records_missing=written)
    changes, changed = await _publish_changes(context)
    context.metrics.published_rules.inc(written + changed)
    return Published(changes, written + changed, rebuilt)


async def check_installation(redis: Redis, layout: Layout) -> dict[bytes, bytes]:
    """The fields of `tk:meta`, none if Redis is empty. Raises WrongInstallation if they contradict our settings."""
    meta = cast("dict[bytes, bytes]", await redis.hgetall(META))
    for name, ours in ((b"shards", layout.shards), (b"schema", SCHEMA_VERSION)):
        theirs = meta.get(name)
        if theirs is not None and theirs != str(ours).encode():
            raise WrongInstallation(
                f"Redis holds an installation with {name.decode()} {theirs.decode(errors='replace')}, and this process is "
                f"set to {ours}. " + _ADVICE[name]
            )
    return meta


_ADVICE: Final = {
    b"shards": "The number of shards never changes once data exists: set TOLLKEEPER_SHARDS to what Redis says, "
    "or point TOLLKEEPER_REDIS_URL to another Redis.",
    b"schema": "It was written by another version of Tollkeeper: run that one.",
}


async def _load(context: Context, server: str) -> int:
    """Load a Redis that has no epoch. A mark, put down first, must still be there at the end: without it somebody emptied
    Redis in the middle, and an epoch would vouch for records that are gone.
    """
    redis, mark = context.redis, secrets.token_hex(8)
    await redis.hset(META, "loading", mark)
    await drain.run_once(context)  # events in streams that outlived the epoch are part of what was spent
    written = await _write_everything(context)
    async with redis.pipeline() as pipe:
        await pipe.watch(META)
        if await pipe.hget(META, "loading") != mark.encode():
            raise LoadInterrupted("Redis was emptied while it was being loaded")
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.hset(META, "server", server, {"schema": SCHEMA_VERSION, "shards": context.layout.shards})
        pipe.hset(META, "epoch", secrets.token_hex(8))
        pipe.hdel(META, "loading")
        try:
            await pipe.execute()
        except WatchError as error:
            raise LoadInterrupted("Redis was emptied while it was being loaded") from error
    return written


async def _write_everything(context: Context) -> int:
    """Every rule there is, each with its counters for the case that it is not there; how many were written."""
    publisher = Publisher(context.redis, context.layout)
    now_ms = await clock_ms(context.redis)
    written = 0
    async with aclosing(
        rules.all_rules(context.postgres)
    ) as all_rules:  # whatever happens, its transaction ends here
        async for batch in _batches(all_rules):
            items = await _with_counters(context.postgres, batch, now_ms)
            written += sum(await publisher.publish_many(items))
    return written


async def _publish_changes(context: Context) -> tuple[int, int]:
    """The outbox, oldest first; how many entries it had and how many records were written."""
    publisher = Publisher(context.redis, context.layout)
    changes = written = 0
    while True:
        entries = await outbox.take(context.postgres, BATCH_MAX)
        if not entries:
            return changes, written
        now_ms = await clock_ms(context.redis)
        for level in rules.PUBLISHING_ORDER:
            changed = [entry.entity for entry in entries if entry.kind == level]
            found = await rules.load_all(context.postgres, level, changed) if changed else []
            items = await _with_counters(context.postgres, found, now_ms)
            written += sum(await publisher.publish_many(items))
        await outbox.done(context.postgres, [entry.id for entry in entries])
        changes += len(entries)
        if context.stopping.is_set():
            return changes, written


async def _with_counters(
    postgres: asyncpg.Connection, batch: Sequence[Rules], now_ms: int
) -> list[tuple[Rules, Start]]:
    """Each with its window at `now_ms`, what the ledger says was spent in it, and what was lost of prepaid credits."""
    windows: list[tuple[Level, str, int]] = []
    lost = await grants.lost_of(postgres, [item.tag for item in batch if isinstance(item, OrganizationRules)])
    for item in batch:
        budget = item.budget
        window = window_at(budget.period, now_ms, billing_day=budget.billing_day, since_ms=budget.since_ms)
        windows.append((*_level_and_id(item), window.start_ms))
    spent = await usage.spent_in(postgres, windows)
    return [
        (item, Start(window[2], sum_, lost.get(item.tag, 0) if isinstance(item, OrganizationRules) else 0))
        for item, window, sum_ in zip(batch, windows, spent, strict=True)
    ]


def _level_and_id(item: Rules) -> tuple[Level, str]:
    if isinstance(item, OrganizationRules):
        return "organization", item.tag
    return ("account" if isinstance(item, AccountRules) else "key"), item.id


async def _batches(items: AsyncIterator[Rules]) -> AsyncIterator[list[Rules]]:
    batch: list[Rules] = []
    async for item in items:
        batch.append(item)
        if len(batch) == BATCH_MAX:
            yield batch
            batch = []
    if batch:
        yield batch
