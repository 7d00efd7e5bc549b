"""An installation for the tests of the jobs: rules in Postgres, a Redis, and requests that go through the real scripts.

No server of ours runs here; each test runs the jobs it is about, when it wants them.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg
import redis.asyncio

from control.jobs.context import Context
from gateway.contract import scripts
from gateway.contract.ids import (
    AccountId,
    KeyId,
    OrganizationTag,
    new_account_id,
    new_key_id,
    new_organization_tag,
)
from gateway.contract.layout import EVENT_FIELD, Layout
from gateway.contract.records import Hold
from gateway.contract.usage_event import RefusalCount, UsageEvent

TOKEN_HASH = "$argon2id$not-a-real-one"
DIGEST = b"d" * 32
MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Workload:
    """One key, its account and its organization."""

    tag: OrganizationTag
    account: AccountId
    key: KeyId
    name: str


@dataclass(slots=True)
class World:
    context: Context
    workloads: list[Workload] = field(default_factory=list)

    @property
    def redis(self) -> redis.asyncio.Redis:
        return self.context.redis

    @property
    def postgres(self) -> asyncpg.Connection:
        return self.context.postgres

    @property
    def layout(self) -> Layout:
        return self.context.layout

    async def add_workload(
        self, period: str = "never", tag: OrganizationTag | None = None, limit: int | None = None
    ) -> Workload:
        """A new key of a new account (of a new organization, unless given) in Postgres; Redis does not know it yet."""
        number = len(self.workloads)
        if tag is None:
            tag = new_organization_tag()
            await self.postgres.execute(
                "INSERT INTO organizations (tag, name, display_name, created_by) VALUES ($1, $2, $2, 'test')",
                tag,
                f"organization-{number}",
            )
        new = Workload(tag, new_account_id(tag, "service-account"), new_key_id(tag), f"worker-{number}")
        await self.postgres.execute(
            "INSERT INTO accounts (id, organization, kind, name, display_name, reset_period, created_by)"
            " VALUES ($1, $2, 'service-account', $3, $3, $4, 'test')",
            new.account, tag, new.name, period,
        )  # fmt: skip
        await self.postgres.execute(
            "INSERT INTO keys (id, organization, account, name, hint, token_hash, reset_period, limit_microcredits, created_by)"
            " VALUES ($1, $2, $3, $4, 'tk_…abcd', $5, $6, $7, 'test')",
            new.key, tag, new.account, f"key of {new.name}", TOKEN_HASH, period, limit,
        )  # fmt: skip
        self.workloads.append(new)
        return new

    def records(self, workload: Workload) -> list[str]:
        layout = self.layout
        return [layout.key(workload.key), layout.account(workload.account), layout.organization(workload.tag)]

    async def admit(self, workload: Workload, amount: int, ttl_ms: int = MINUTE_MS) -> bytes:
        """The hold of a request; fails the test if it is refused."""
        await self.eval(scripts.ADOPT, self.records(workload)[:1], TOKEN_HASH, DIGEST)
        head = "|".join(
            [f"req_{secrets.token_hex(8)}", workload.key, workload.account, workload.tag, "models"]
        )
        keys = [self.layout.holds(self.shard(workload)), *self.records(workload)]
        (answer,) = await self.eval(scripts.ADMIT, keys, "", ttl_ms, DIGEST, amount, head)
        assert isinstance(answer, bytes), f"refused: {answer!r}"
        return answer

    async def settle(self, workload: Workload, member: bytes, cost: int) -> int:
        event = self.event(workload, member, cost)
        shard = self.shard(workload)
        keys = [self.layout.holds(shard), self.layout.events(shard), *self.records(workload)]
        (answer,) = await self.eval(scripts.SETTLE, keys, "", member, cost, event.encode())
        return cast(int, answer)

    async def request(self, workload: Workload, cost: int, hold: int = 1_000) -> None:
        """One request, admitted and settled."""
        assert await self.settle(workload, await self.admit(workload, hold), cost) == 1

    def event(self, workload: Workload, member: bytes, cost: int, **other: Any) -> UsageEvent:
        hold = Hold.unpack(member)
        fields: dict[str, Any] = {
            "request_id": hold.request_id, "admitted_at_ms": hold.admitted_at_ms,
            "ended_at_ms": hold.admitted_at_ms + 5, "organization": workload.tag, "account": workload.account,
            "account_name": workload.name, "account_kind": "service-account", "key": workload.key,
            "route": hold.route, "method": "POST", "path": "/v1/x", "status": 200, "outcome": "completed",
            "bytes_in": 10, "bytes_out": 20, "held": hold.amount, "cost": cost, "windows": hold.windows,
        }  # fmt: skip
        return UsageEvent(**{**fields, **other})

    def refusals(self, workload: Workload, minute_ms: int, count: int) -> RefusalCount:
        return RefusalCount(
            id=secrets.token_hex(8), minute_ms=minute_ms, organization=workload.tag, account=workload.account,
            key=workload.key, route="models", reason="budget_exceeded", count=count,
        )  # fmt: skip

    async def append(self, workload: Workload, payload: bytes) -> bytes:
        """Put an entry into the workload's stream as it is; its id."""
        return cast(
            bytes, await self.redis.xadd(self.layout.events(self.shard(workload)), {EVENT_FIELD: payload})
        )

    async def counters(self) -> dict[str, dict[bytes, bytes]]:
        """Window, spent and held of every record, by its name."""
        counters: dict[str, dict[bytes, bytes]] = {}
        for workload in self.workloads:
            for name in self.records(workload):
                values = cast("list[bytes]", await self.redis.hmget(name, ["window", "spent", "held"]))
                counters[name] = dict(zip([b"window", b"spent", b"held"], values, strict=True))
        return counters

    async def undrained(self) -> int:
        return sum([await self.redis.xlen(self.layout.events(shard)) for shard in range(self.layout.shards)])

    async def ledger(self) -> list[asyncpg.Record]:
        return await self.postgres.fetch("SELECT * FROM usage_events ORDER BY admitted_at, request_id")

    def shard(self, workload: Workload) -> int:
        return self.layout.shard_of(workload.tag)

    async def eval(self, script: scripts.Script, keys: list[str], *arguments: Any) -> Any:
        return await self.redis.eval(script.text, len(keys), *keys, *arguments)
