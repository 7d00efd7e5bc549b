"""Publishing: rules go from Postgres into Redis. The publish job and `domain.changes` call it.

Only this module and the jobs speak to Redis from the control plane. Versions make every publish harmless to repeat, in
any order and from several processes (see `publish.lua`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from control.domain.rules import Rules
from control.settings import ControlSettings
from gateway.contract import scripts
from gateway.contract.ids import OrganizationTag
from gateway.contract.layout import Layout
from gateway.contract.records import (
    COUNTER_FIELDS,
    AccountRules,
    Counters,
    OrganizationRules,
    read_counters,
)

_BATCH: Final = 1_000
_WRITTEN: Final = 1
_MISSING: Final = -1


class Start(NamedTuple):
    """Counters for a record that does not exist yet: start of its window in ms, microcredits spent in it and, of prepaid
    credits, lost in it."""

    window_ms: int = 0
    spent: int = 0
    lost: int = 0


class RedisUnavailable(Exception):
    """Redis did not answer, or answered with an error; the message is the kind of failure only, never an address."""


@asynccontextmanager
async def redis_answers() -> AsyncIterator[None]:
    """Turns whatever the client library raises into RedisUnavailable."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        raise RedisUnavailable(type(error).__name__) from error


def connect_redis(settings: ControlSettings) -> Redis:
    """A client (no connection is made yet): bounded waits, dead connections noticed, replies as bytes.

    One retry, for a connection that Redis closed while it was idle; every command sent here may be sent twice.
    """
    return Redis.from_url(
        settings.redis_url.get_secret_value(),
        decode_responses=False,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        socket_keepalive=True,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),
        client_name="tollkeeper-control",
    )


class Publisher:
    """Writes rules into the Redis of one installation."""

    def __init__(self, redis: Redis, layout: Layout) -> None:
        self._redis = redis
        self._layout = layout

    async def publish(self, rules: Rules, window_ms: int = 0, spent: int = 0, lost: int = 0) -> bool:
        """Write one record; False if it already has this version or a newer one. Raises RedisUnavailable.

        `window_ms`, `spent` and `lost` are its counters if it does not exist yet.
        """
        return (await self.publish_many([(rules, Start(window_ms, spent, lost))]))[0]

    async def publish_many(self, items: Sequence[tuple[Rules, Start]]) -> list[bool]:
        """Write several, in order, a round trip a thousand. Answers as `publish`. Raises RedisUnavailable."""
        return [answer == _WRITTEN for answer in await self._publish_all(items)]

    async def publish_changes(self, changed: Sequence[Rules]) -> list[bool]:
        """Write rules of things that may have spent already: which of them are in force now. Raises RedisUnavailable.

        A record that is missing is left out: it would start with nothing spent. The publish job, which knows what was
        spent, writes it.
        """
        return [
            answer != _MISSING for answer in await self._publish_all([(rules, None) for rules in changed])
        ]

    async def counters(self, tag: OrganizationTag) -> tuple[int, Counters | None]:
        """Redis's clock in ms and an organization's live counters, None without a record. Raises RedisUnavailable."""
        async with redis_answers(), self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hmget(self._layout.organization(tag), COUNTER_FIELDS)
            (seconds, micros), values = await pipe.execute()
        return seconds * 1000 + micros // 1000, read_counters(cast("list[bytes | None]", values))

    def record_of(self, rules: Rules) -> str:
        """The name of the Redis key that holds these rules."""
        if isinstance(rules, OrganizationRules):
            return self._layout.organization(rules.tag)
        if isinstance(rules, AccountRules):
            return self._layout.account(rules.id)
        return self._layout.key(rules.id)

    async def _publish_all(self, items: Sequence[tuple[Rules, Start | None]]) -> list[int]:
        answers: list[int] = []
        async with redis_answers():
            for first in range(0, len(items), _BATCH):
                answers += await self._publish_batch(items[first : first + _BATCH])
        return answers

    async def _publish_batch(self, items: Sequence[tuple[Rules, Start | None]]) -> list[int]:
        answers = await self._send(items)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await self._redis.script_load(scripts.PUBLISH.text)
            answers = await self._send(items)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return cast("list[int]", answers)

    async def _send(self, items: Sequence[tuple[Rules, Start | None]]) -> list[object]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for rules, start in items:
                self._append(pipe, rules, start)
            return list(await pipe.execute(raise_on_error=False))

    def _append(self, pipe: Pipeline, rules: Rules, start: Start | None) -> None:
        arguments = [rules.version, *(start or ("", "", "")), *rules.fields()]
        pipe.execute_command("EVALSHA", scripts.PUBLISH.sha, 1, self.record_of(rules), *arguments)
