"""Expire: a hold whose deadline has passed is settled at what was held, exactly once.

Its gateway was killed, or lost Redis for longer than the deadline, and nobody will say any more what the request cost.
The upstream may well have done the work, so the held amount is billed: the side that cannot be abused by killing
gateways. The event says `expired` with status 0, so that such rows can be found and forgiven. A settlement that comes
after it finds no hold and changes nothing; one that comes before it leaves nothing to expire: the settle script decides,
in one atomic step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio import Redis

from control.jobs.context import Context
from gateway.contract import scripts
from gateway.contract.ids import AccountKind, tag_of_account, tag_of_key
from gateway.contract.layout import Layout
from gateway.contract.records import Hold
from gateway.contract.usage_event import UsageEvent

BATCH_MAX: Final = 500
FAR: Final = "+inf"
"""The deadline of what cannot be read: it never comes, and it is easily found."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Expired:
    """Holds settled by this run, and members put aside because they are not holds."""

    settled: int = 0
    unreadable: int = 0


async def run_once(context: Context) -> Expired:
    """Settle everything that is due by Redis's clock."""
    settled = unreadable = 0
    while True:
        now_ms = await clock_ms(context.redis)
        due = await _due(context.redis, context.layout, now_ms)
        holds: list[tuple[bytes, Hold]] = []
        for shard, member in due:
            hold = read_hold(context.layout, shard, member)
            if hold is None:
                await _put_aside(context, shard, member)
                unreadable += 1
            else:
                holds.append((member, hold))
        settled += await _settle(context, holds, now_ms)
        if len(due) < BATCH_MAX or context.stopping.is_set():
            return Expired(settled, unreadable)


async def clock_ms(redis: Redis) -> int:
    """Redis's clock, the only one that deadlines and windows go by."""
    seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def read_hold(layout: Layout, shard: int, member: bytes) -> Hold | None:
    """The hold that a member of this shard's set is; None unless settle can take it.

    Stricter than `Hold.unpack`: the script removes the member before it reads the numbers in it, so what it could not
    read must not reach it, and neither must a hold whose records live on another shard.
    """
    try:
        hold = Hold.unpack(member)
    except ValueError:
        return None
    own = tag_of_key(hold.key_id) == tag_of_account(hold.account_id) == hold.organization_tag
    if not own or layout.shard_of(hold.organization_tag) != shard:
        return None
    return hold if all(number.isdigit() for number in member.split(b"|")[5:]) else None


async def _due(redis: Redis, layout: Layout, now_ms: int) -> list[tuple[int, bytes]]:
    """At most BATCH_MAX due members, with their shards."""
    async with redis.pipeline(transaction=False) as pipe:
        for shard in range(layout.shards):
            pipe.zrangebyscore(layout.holds(shard), "-inf", now_ms, start=0, num=BATCH_MAX)
        found = await pipe.execute()
    return [(shard, member) for shard, members in enumerate(found) for member in members][:BATCH_MAX]


async def _settle(context: Context, due: Sequence[tuple[bytes, Hold]], now_ms: int) -> int:
    if not due:
        return 0
    redis, layout = context.redis, context.layout
    await redis.script_load(scripts.SETTLE.text)
    names = await _account_names(redis, layout, [hold for _, hold in due])
    async with redis.pipeline(transaction=False) as pipe:
        for (member, hold), name in zip(due, names, strict=True):
            shard = layout.shard_of(hold.organization_tag)
            pipe.evalsha(
                scripts.SETTLE.sha, 5, layout.holds(shard), layout.events(shard),
                layout.key(hold.key_id), layout.account(hold.account_id), layout.organization(hold.organization_tag),
                "due", member, hold.amount, _event(hold, name, now_ms).encode(),
            )  # fmt: skip
        answers = await pipe.execute()
    settled = sum(1 for answer in answers if answer == [1])
    context.metrics.expired_holds.inc(settled)
    if settled:
        _log.warning("holds_expired", count=settled)
    return settled


async def _account_names(redis: Redis, layout: Layout, holds: Sequence[Hold]) -> list[str]:
    """The accounts' names as the key records have them; empty where the record is gone (rows keep the id)."""
    async with redis.pipeline(transaction=False) as pipe:
        for hold in holds:
            pipe.hget(layout.key(hold.key_id), "account_name")
        return [name.decode() if name else "" for name in await pipe.execute()]


def _event(hold: Hold, account_name: str, now_ms: int) -> UsageEvent:
    kind: AccountKind = "member" if hold.account_id.startswith("mb_") else "service-account"
    return UsageEvent(
        request_id=hold.request_id,
        admitted_at_ms=hold.admitted_at_ms,
        ended_at_ms=now_ms,
        organization=hold.organization_tag,
        account=hold.account_id,
        account_name=account_name,
        account_kind=kind,
        key=hold.key_id,
        route=hold.route,
        method="",
        path="",
        status=0,
        outcome="expired",
        total_ms=max(0, now_ms - hold.admitted_at_ms),
        held=hold.amount,
        cost=hold.amount,
        windows=hold.windows,
    )


async def _put_aside(context: Context, shard: int, member: bytes) -> None:
    """Out of the way and not lost: it stays in the set with a deadline that never comes, so it is met only once."""
    await context.redis.zadd(context.layout.holds(shard), {member: FAR}, xx=True)
    context.metrics.unreadable_holds.inc()
    _log.error("hold_unreadable", shard=shard, member=repr(member[:200]))
