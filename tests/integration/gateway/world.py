"""The gateway's side of Redis against a real Valkey: one pipe, one ledger, and rules as control publishes them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio

from gateway.caller import Caller
from gateway.contract import layout, scripts, token
from gateway.contract.ids import AccountId, KeyId, OrganizationTag
from gateway.contract.layout import Layout
from gateway.contract.records import AccountRules, Budget, Identity, KeyRules, OrganizationRules
from gateway.contract.token import Digest, Pepper
from gateway.ledger import Ledger
from gateway.redis_pipe import RedisAddress, RedisPipe, Reply, bulk

PEPPER: Final = Pepper(bytes(range(32)))
TAG: Final = OrganizationTag("Acme01")
ACCOUNT: Final = AccountId("sa_Acme010123456789")
NAMES: Final = Layout()
SHARD: Final = NAMES.shard_of(TAG)
PATIENCE_S: Final = 20.0
AMOUNT: Final = 10
HOLD_TTL_MS: Final = 60_000
HELD: Final = bulk(AMOUNT)


async def until(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Until `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def ticking(tick: Callable[[float], None], every_s: float = 0.02) -> AsyncIterator[None]:
    """Call `tick` with the loop's time, as a worker's heartbeat does."""

    async def beat() -> None:
        while True:
            tick(asyncio.get_running_loop().time())
            await asyncio.sleep(every_s)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@dataclass(slots=True)
class Heard:
    """Replies, in the order in which they came."""

    replies: list[Reply] = field(default_factory=list)

    def __call__(self, reply: Reply) -> None:
        self.replies.append(reply)


@asynccontextmanager
async def piped(url: str, *, timeout_s: float = 5.0) -> AsyncIterator[RedisPipe]:
    """A pipe that is being kept connected."""
    pipe = RedisPipe(
        RedisAddress.parse(url), timeout_s=timeout_s,
        on_connected=lambda: None, on_lost=lambda: None, client_name="tollkeeper-test",
    )  # fmt: skip
    pipe.start()
    try:
        async with ticking(pipe.check_waits):
            yield pipe
    finally:
        await pipe.close()


@asynccontextmanager
async def ledger_on(
    url: str, *, names: Layout = NAMES, timeout_s: float = 5.0, depth_max: int = 100_000
) -> AsyncIterator[Ledger]:
    """A ledger with its heartbeat. It is not waited for until it is ready."""
    ledger = Ledger(
        RedisAddress.parse(url), names, timeout_s=timeout_s, depth_max=depth_max, hold_ttl_ms=HOLD_TTL_MS,
        client_name="tollkeeper-test",
    )  # fmt: skip
    ledger.start()
    try:
        async with ticking(ledger.on_tick):
            yield ledger
    finally:
        await ledger.close()


async def load(client: redis.asyncio.Redis, *, schema: str | None = None, shards: int = 16) -> None:
    """Say that Redis is loaded."""
    await client.hset(
        layout.META, mapping={"schema": schema or str(layout.SCHEMA_VERSION), "shards": shards, "epoch": "e1"}
    )


async def events(client: redis.asyncio.Redis) -> list[bytes]:
    """What was written to the shard's stream, oldest first."""
    entries: Any = await client.xrange(NAMES.events(SHARD))
    assert all(list(fields) == [layout.EVENT_FIELD] for _, fields in entries)
    return [fields[layout.EVENT_FIELD] for _, fields in entries]


async def run(client: redis.asyncio.Redis, script: scripts.Script, keys: list[str], *arguments: Any) -> Any:
    return await client.eval(script.text, len(keys), *keys, *arguments)


@dataclass(frozen=True, slots=True)
class Workload:
    """A key of one account, and its token."""

    key: KeyId
    token: bytes
    token_hash: str = "no hash"

    @classmethod
    def mint(cls, token_hash: str = "no hash") -> Workload:
        key, minted = token.mint(TAG)
        return cls(key, minted.encode(), token_hash)

    @property
    def digest(self) -> Digest:
        return token.digest(PEPPER, self.token)

    @property
    def identity(self) -> Identity:
        return Identity(self.key, ACCOUNT, "build-bot", "service-account", TAG, "acme")

    @property
    def caller(self) -> Caller:
        return Caller.prepare(self.identity, self.digest, NAMES)


async def publish(
    client: redis.asyncio.Redis, of: Workload, *, with_digest: bool = True, limit: Budget | None = None
) -> None:
    """Publish the workload's three records, as control does."""
    key = KeyRules(
        of.key, 1, "active", limit or Budget(), None, of.token_hash, ACCOUNT, "build-bot", "service-account", TAG, "acme",
        of.digest if with_digest else None,
    )  # fmt: skip
    account = AccountRules(ACCOUNT, "build-bot", "service-account", 1, "active", Budget())
    organization = OrganizationRules(TAG, "acme", 1, "active", Budget())
    named: list[tuple[str, KeyRules | AccountRules | OrganizationRules]] = [
        (NAMES.key(of.key), key), (NAMES.account(ACCOUNT), account), (NAMES.organization(TAG), organization),
    ]  # fmt: skip
    for name, rules in named:
        await run(client, scripts.PUBLISH, [name], rules.version, 0, 0, 0, *rules.fields())


async def books(client: redis.asyncio.Redis, of: Workload) -> tuple[int, int, int, int]:
    """Spent and held at the key's level, holds in flight, and events written."""
    spent, held = await client.hmget(NAMES.key(of.key), "spent", "held")
    holds = await client.zcard(NAMES.holds(SHARD))
    events = await client.xlen(NAMES.events(SHARD))
    return int(spent or 0), int(held or 0), holds, events


async def kill_gateways(client: redis.asyncio.Redis) -> None:
    """End the connections of every gateway, as Redis sees them."""
    for entry in await client.client_list():
        if entry["name"] == "tollkeeper-test":
            with contextlib.suppress(redis.ResponseError):  # gone between the list and here
                await client.client_kill_filter(_id=entry["id"])
