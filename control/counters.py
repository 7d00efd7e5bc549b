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
from gateway.contract.ids import AccountId, KeyId, Level, OrganizationTag
from gateway.contract.layout import Layout
from gateway.contract.records import COUNTER_FIELDS, Budget, read_counters


@dataclass(frozen=True, slots=True)
class Budgeted:
    """Something that has a budget: `id` is an organization's tag, an account's id or a key's id, by `level`."""

    level: Level
    id: str
    budget: Budget


class LiveCounters:
    """Reads the counters of one installation."""

    def __init__(self, redis: Redis, layout: Layout) -> None:
        self._redis = redis
        self._layout = layout

    async def standings(self, of: Sequence[Budgeted]) -> list[Standing | None]:
        """Where each budget stands now; all None if Redis does not answer."""
        try:
            async with redis_answers():
                return await self._read(of)
        except RedisUnavailable:
            return [None] * len(of)

    async def is_answering(self) -> bool:
        try:
            async with redis_answers():
                return bool(await self._redis.ping())
        except RedisUnavailable:
            return False

    async def _read(self, of: Sequence[Budgeted]) -> list[Standing | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for item in of:
                pipe.hmget(self._record(item), COUNTER_FIELDS)
            (seconds, micros), *answers = await pipe.execute()
        now_ms = seconds * 1000 + micros // 1000
        return [
            standing(item.budget, read_counters(cast("list[bytes | None]", values)), now_ms)
            for item, values in zip(of, answers, strict=True)
        ]

    def _record(self, item: Budgeted) -> str:
        if item.level == "organization":
            return self._layout.organization(OrganizationTag(item.id))
        if item.level == "account":
            return self._layout.account(AccountId(item.id))
        return self._layout.key(KeyId(item.id))
