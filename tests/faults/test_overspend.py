"""P1: of two thousand requests at once no limit is overspent, whatever clients, upstreams and a killed worker do to them."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from control.embedded import wait_until
from tests.faults.fickle_clients import Clients, clients_of
from tests.faults.fickle_process import FickleUpstream, fickle_upstream
from tests.faults.fickle_routes import HELD_MEAN, KNOWN, OPEN, ROUTES
from tests.faults.stack import Stack
from tests.faults.town import Town, keeps_pace, overshoot, settled_town
from tests.faults.watcher import Watched, watching
from tests.system.installation import Gateway, Installation, Row, another_gateway

CLIENTS = 2_000
WORKERS = 2
LOOKS_MIN = 300
AT_ONCE_MIN = 300
"""So many are admitted and in flight together at least, before any is answered."""
BEFORE_THE_KILL = 300
"""So many have come to their end by then, of those that the upstream answers."""
STEP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Rush:
    """Two thousand clients, ready to ask."""

    town: Town
    clients: Clients
    gateway: Gateway
    upstream: FickleUpstream


@asynccontextmanager
async def rushing(
    stack: Stack, installation: Installation, seed: int, hold_ttl_s: int
) -> AsyncIterator[Rush]:
    town = await settled_town(installation, random.Random(seed), wanted=CLIENTS * HELD_MEAN // 28)
    routes = [KNOWN if each.organization in town.careful else (*KNOWN, *OPEN) for each in town.workloads]
    table = stack.directory / "fickle.toml"
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # and does not listen
        async with fickle_upstream() as upstream:
            address = f"http://127.0.0.1:{refusing.getsockname()[1]}"
            table.write_text(ROUTES.format(fickle=upstream.url, refusing=address))
            with another_gateway(
                stack.redis.url, stack.directory / "pepper", stack.directory / "fickle.log", table,
                workers=str(WORKERS), hold_ttl_s=str(hold_ttl_s), redis_timeout_s="10",
                access_log="off",
            ) as gateway:  # fmt: skip
                clients = clients_of(town.workloads, routes, CLIENTS, gateway.port, seed)
                await clients.connect()
                yield Rush(town, clients, gateway, upstream)


async def all_are_decided(rush: Rush, watched: Watched) -> None:
    """Wait until each of the first requests is admitted and waits for the upstream, or has come to its end."""
    await wait_until(
        lambda: watched.holds + len(rush.clients.asked) >= CLIENTS, STEP_TIMEOUT_S, "two thousand decisions"
    )
    assert watched.holds_most >= AT_ONCE_MIN


def nothing_was_overspent(town: Town, watched: Watched, rows: list[Row]) -> None:
    """At no moment."""
    assert watched.looks >= LOOKS_MIN
    assert not watched.crowded
    assert not watched.adrift
    for entity, at_ms, sum_ in watched.over:
        assert entity.limit is not None
        assert sum_ - entity.limit <= overshoot(rows, entity, at_ms), entity
    assert not [row for row in rows if row["route"] in KNOWN and row["cost"] > row["held"]]
    assert [row for row in rows if row["cost"] > row["held"]], "nothing cost more than was held"
    for key in town.paced:
        assert keeps_pace([row for row in rows if row["key"] == key.key])


async def books(town: Town) -> list[Row]:
    """The rows of all, once nothing is held; every counter is their sum."""
    found = [await town.installation.settled(tag) for tag in town.tags]
    for entity in town.entities:
        live = await town.installation.live(entity.level, entity.id)
        assert (live.held, live.in_flight) == (0, 0), entity
    redis = town.installation.redis
    assert [await redis.zcard(name) for name in town.holds] == [0] * len(town.holds)
    return [row for rows in found for row in rows]


async def everything_has_its_row(rush: Rush, rows: list[Row]) -> None:
    """One for each request that the upstream saw and each answer, none for a refusal; and each costs what it should."""
    by_id = {row["request_id"]: row for row in rows}
    assert len(by_id) == len(rows)
    seen = await rush.upstream.seen()
    assert seen.keys() <= by_id.keys()
    for asked in rush.clients.asked:
        if asked.answer is None:
            continue
        assert (asked.request_id in by_id) == (not asked.is_refused), asked.answer
        row = by_id.get(asked.request_id)
        if row is not None and asked.status == 200 and row["outcome"] == "completed":
            assert row["cost"] == asked.plan.cost, (asked.plan.route, row)


def limits_of_all_kinds_were_hit(clients: Clients) -> None:
    hit = clients.refusals()
    for level in ("key", "account", "organization"):
        assert hit["budget_exceeded", level], hit
    assert hit["rate_limited", "key"], hit
    assert hit["too_many_in_flight", "key"], hit
    assert hit["too_many_in_flight", "account"], hit


@pytest.fixture
def seed() -> int:
    """What chance is drawn from: SEED in the environment, or another each time, printed where a test fails."""
    drawn = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"drawn from SEED={drawn}")
    return drawn


@pytest.mark.slow
async def test_two_thousand_requests_at_once_overspend_no_limit(
    stack: Stack, installation: Installation, seed: int
) -> None:
    async with rushing(stack, installation, seed, hold_ttl_s=30) as rush:
        town, clients = rush.town, rush.clients
        async with watching(stack.redis.url, town.entities, town.holds, LOOKS_MIN) as watched:
            playing = asyncio.create_task(clients.play())
            await all_are_decided(rush, watched)
            rush.upstream.open()
            await playing
            rows = await books(town)
        nothing_was_overspent(town, watched, rows)
        await everything_has_its_row(rush, rows)
    limits_of_all_kinds_were_hit(clients)
    assert clients.statuses().keys() - {504} == {200, 402, 429, 500, 502}
    outcomes = Counter(row["outcome"] for row in rows)
    assert outcomes.keys() >= {"completed", "client_gone", "upstream_failed"}, outcomes
    assert outcomes.keys() <= {"completed", "client_gone", "upstream_failed", "cut"}, outcomes


@pytest.mark.slow
async def test_a_worker_killed_among_two_thousand_requests_overspends_no_limit_and_the_other_goes_on(
    stack: Stack, installation: Installation, seed: int
) -> None:
    async with rushing(stack, installation, seed, hold_ttl_s=3) as rush:
        town, clients = rush.town, rush.clients
        async with watching(stack.redis.url, town.entities, town.holds, LOOKS_MIN) as watched:
            playing = asyncio.create_task(clients.play())
            await all_are_decided(rush, watched)
            victim = (await asyncio.to_thread(rush.gateway.workers))[seed % WORKERS]
            decided = len(clients.asked)
            rush.upstream.open()
            await wait_until(
                lambda: len(clients.asked) >= decided + BEFORE_THE_KILL, STEP_TIMEOUT_S, "some answers"
            )
            os.kill(victim.pid, signal.SIGKILL)
            killed_at = time.monotonic()
            await playing
            rows = await books(town)
        nothing_was_overspent(town, watched, rows)
        await everything_has_its_row(rush, rows)
    limits_of_all_kinds_were_hit(clients)
    # None: connections of the worker that was killed.
    assert clients.statuses().keys() - {504} == {200, 402, 429, 500, 502, None}
    assert "expired" in {row["outcome"] for row in rows}, "nobody was in the middle of a request"
    kept = [asked for asked in clients.asked if asked.connected_at < killed_at < asked.began]
    assert 200 in {asked.status for asked in kept}, "the other worker did not go on"
