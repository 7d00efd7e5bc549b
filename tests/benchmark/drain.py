"""Events a second from full streams into an embedded Postgres with fsync on, by the drain job itself.

Neither drain nor Postgres is pinned: in an installation they share the machine as they like. Redis keeps its core.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg
import redis.asyncio

from control.embedded import EmbeddedPostgres
from control.jobs import drain
from control.jobs.context import Context
from control.migrate import migrate
from gateway.contract import ids
from gateway.contract.layout import EVENT_FIELD, Layout
from gateway.contract.usage_event import UsageEvent
from tests.benchmark.processes import BenchmarkFailed
from tests.benchmark.rig import Rig

EVENTS = 100_000
_ORGANIZATIONS = 8
_KEYS_PER_ORGANIZATION = 25
_FILL_BATCH = 2_000
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class DrainRate:
    """`events` rows in `seconds`, measured with the streams full at the start and empty at the end."""

    events: int
    seconds: float
    problems: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds


def measure(rig: Rig) -> DrainRate:
    """Raises BenchmarkFailed after five minutes, EmbeddedServerFailed when Postgres does not start."""
    try:
        return asyncio.run(asyncio.wait_for(_measure(rig), _TIMEOUT_S))
    except TimeoutError:
        raise BenchmarkFailed(f"not done after {_TIMEOUT_S:g} s") from None


async def _measure(rig: Rig) -> DrainRate:
    layout = Layout()
    client = redis.asyncio.Redis.from_url(rig.redis_url, socket_timeout=30)
    postgres = EmbeddedPostgres(rig.folder / "postgres")
    try:
        await postgres.start()
        await migrate(postgres.dsn)
        connection = await asyncpg.connect(postgres.dsn, timeout=10)
        try:
            await _fill(client, layout)
            started = time.perf_counter()
            await drain.run_once(Context(postgres=connection, redis=client, layout=layout))
            seconds = time.perf_counter() - started
            rows = await connection.fetchval("SELECT count(*) FROM usage_events")
            left = [await client.xlen(layout.events(shard)) for shard in range(layout.shards)]
        finally:
            await connection.close(timeout=5)
    finally:
        await client.aclose()
        await postgres.stop()
        if postgres.data_dir.exists():
            postgres.remove_data()
    problems = []
    if rows != EVENTS or sum(left):
        problems.append(f"drain: {EVENTS} events became {rows} rows, {sum(left)} are still in the streams")
    return DrainRate(EVENTS, seconds, tuple(problems))


async def _fill(client: redis.asyncio.Redis, layout: Layout) -> None:
    """The streams hold these events and nothing of what was measured before."""
    for shard in range(layout.shards):
        await client.delete(layout.events(shard))
    pipe = client.pipeline(transaction=False)
    for number, event in enumerate(_events(), 1):
        stream = layout.events(layout.shard_of(ids.OrganizationTag(event.organization)))
        pipe.xadd(stream, {EVENT_FIELD: event.encode()})
        if number % _FILL_BATCH == 0:
            await pipe.execute()
    await pipe.execute()


def _events() -> Iterator[UsageEvent]:
    """What a busy second of `_ORGANIZATIONS` organizations leaves: every request its own, keys taking turns."""
    callers = []
    for _ in range(_ORGANIZATIONS):
        tag = ids.new_organization_tag()
        account = ids.new_account_id(tag, "service-account")
        callers += [(tag, account, ids.new_key_id(tag)) for _ in range(_KEYS_PER_ORGANIZATION)]
    now_ms = time.time_ns() // 1_000_000
    for number in range(EVENTS):
        tag, account, key = callers[number % len(callers)]
        at_ms = now_ms - (EVENTS - number) // 20
        yield UsageEvent(
            request_id=secrets.token_hex(16), admitted_at_ms=at_ms, ended_at_ms=at_ms + 12, organization=tag,
            account=account, account_name="load", account_kind="service-account", key=key, route="models",
            method="POST", path="/v1/chat/completions", status=200, outcome="completed", bytes_in=412,
            bytes_out=500, upstream_ms=11, total_ms=12, held=1000, cost=700, units={"output_tokens": 117},
            session="nightly", trace=secrets.token_hex(16),
        )  # fmt: skip
