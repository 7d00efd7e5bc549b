"""Live counters: what Redis says is spent and held, as answers show it. Reads only; the API calls it.

One round trip whatever the number of budgets. Redis being away is an answer here (None), not a failure: a list of keys
is still worth showing without its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from control.domain.budgets import Standing, standing
from control.publishing import RedisUnavailable, redis_answers
from gateway.contract.grants import Grant
from gateway.contract.ids import AccountId, KeyId, Level, OrganizationTag
from gateway.contract.layout import META, Layout
from gateway.contract.records import COUNTER_FIELDS, Budget, Counters, read_counters


@dataclass(frozen=True, slots=True)
class Budgeted:
    """Something that has a budget: `id` is an organization's tag, an account's id or a key's id, by `level`. `grants` are
    those of a prepaid organization that will expire, else None."""

    level: Level
    id: str
    budget: Budget
    grants: tuple[Grant, ...] | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """What Redis said in one moment, `now_us` by its clock. `counters` in the order asked; None: there is no such record.
    Unless `is_loaded`, gateways refuse everything."""

    now_us: int
    is_loaded: bool
    counters: list[Counters | None]


class LiveCounters:
    """Reads the counters of one installation."""

    def __init__(self, redis: Redis, layout: Layout) -> None:
        self._redis = redis
        self._layout = layout

    async def standings(self, of: Sequence[Budgeted]) -> list[Standing | None]:
        """Where each budget stands now; all None if Redis does not answer."""
        live = await self.live(of)
        if live is None:
            return [None] * len(of)
        now_ms = live.now_us // 1000
        return [
            standing(item.budget, counters, now_ms, item.grants)
            for item, counters in zip(of, live.counters, strict=True)
        ]

    async def live(self, of: Sequence[Budgeted]) -> Live | None:
        """What Redis says of each now; None if it does not answer."""
        try:
            async with redis_answers():
                return await self._read(of)
        except RedisUnavailable:
            return None

    async def is_answering(self) -> bool:
        try:
            async with redis_answers():
                return bool(await self._redis.ping())
        except RedisUnavailable:
            return False

    async def _read(self, of: Sequence[Budgeted]) -> Live:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hexists(META, "epoch")
            for item in of:
                pipe.hmget(self._record(item), COUNTER_FIELDS)
            (seconds, micros), is_loaded, *answers = await pipe.execute()
        counters = [read_counters(cast("list[bytes | None]", values)) for values in answers]
        return Live(seconds * 1_000_000 + micros, bool(is_loaded), counters)

    def _record(self, item: Budgeted) -> str:
        if item.level == "organization":
            return self._layout.organization(OrganizationTag(item.id))
        if item.level == "account":
            return self._layout.account(AccountId(item.id))
        return self._layout.key(KeyId(item.id))
