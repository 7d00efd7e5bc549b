"""Alerts: each threshold is told once an entity and window, whoever is killed or restarted meanwhile; nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from standardwebhooks import Webhook

from control.embedded import wait_until
from tests.faults.fickle_process import fickle_upstream
from tests.faults.firms import MANY, PRICE, USUAL, Crossing, Firm, credits_of, crossings, deck, founded
from tests.faults.stack import Stack
from tests.integration.receivers import Received, Receiver, receiving
from tests.system.installation import Gateway, Installation, Workload, another_gateway
from tests.system.wire import Wire, request

ROUTES = """
[[route]]
name = "counted"
path = "/counted/"
upstream = "{upstream}"
price.request = "0.01"
"""
REQUESTS = 10_000
LOOPS = 16
ANSWER_MS = 20
WORKERS = 2
RETRY_S = 0.02
STEP_TIMEOUT_S = 40.0


# -- the requests


@dataclass(slots=True)
class Asking:
    """Requests that go on until the deck is used up, never beyond what is allowed by then."""

    port: int
    cards: list[Workload]
    allowed: int
    begun: int = 0
    ended: int = 0
    statuses: Counter[int | None] = field(default_factory=Counter)

    async def loop(self) -> None:
        client: Wire | None = None
        while self.begun < len(self.cards):
            if self.begun >= self.allowed:
                await asyncio.sleep(RETRY_S)
                continue
            workload, self.begun = self.cards[self.begun], self.begun + 1
            status: int | None = None
            while status not in (200, 402):
                client, status = await ask(self.port, client, workload)
                self.statuses[status] += 1
                if status not in (200, 402):
                    await asyncio.sleep(RETRY_S)
            self.ended += 1
        if client is not None:
            client.close()

    async def until(self, count: int) -> None:
        await wait_until(lambda: self.ended >= count, STEP_TIMEOUT_S, f"{count} requests")


async def ask(
    port: int, client: Wire | None, workload: Workload, wait_ms: int = ANSWER_MS
) -> tuple[Wire | None, int | None]:
    """One request: its status, None if the connection broke; and the connection, if it can be used again."""
    try:
        client = client or await Wire.open(port)
        client.send(request(workload, f"/counted/plain/{wait_ms}/0/"))
        answer = await client.answer()
    except (OSError, EOFError):  # TimeoutError is an OSError
        if client is not None:
            client.close()
        return None, None
    if answer.all("connection"):
        client.close()
        return None, answer.status
    return client, answer.status


async def spend_all(installation: Installation, port: int, keys: list[tuple[Workload, int]]) -> None:
    """Ask until these keys have spent so many requests, each at least once: the first in a new window begins it."""
    client: Wire | None = None
    for workload, limit in keys:
        spent = 0
        while spent < limit * PRICE:
            client, _ = await ask(port, client, workload, wait_ms=0)
            spent = (await installation.live("key", workload.key)).spent
    if client is not None:
        client.close()


# -- what is done meanwhile


@dataclass(slots=True)
class Site:
    stack: Stack
    installation: Installation
    gateway: Gateway
    receiver: Receiver
    asking: Asking
    on_their_way: set[str] = field(default_factory=set)
    """Alerts that were being told when the jobs were killed: nobody can know whether the receiver has them."""

    def logged(self, event: str) -> int:
        return log_of(self.stack).read_bytes().count(f'"{event}"'.encode())

    async def pids(self) -> set[int]:
        """Of the workers; of whom one may end while they are counted."""
        while True:
            with suppress(psutil.NoSuchProcess):
                return {worker.pid for worker in await asyncio.to_thread(self.gateway.workers)}

    async def kill_a_worker(self) -> None:
        (victim, *_) = before = await self.pids()
        os.kill(victim, signal.SIGKILL)

        async def is_replaced() -> bool:
            now = await self.pids()
            return len(now) == WORKERS and now != before

        await wait_until(is_replaced, STEP_TIMEOUT_S, "a worker in place of the one that was killed")

    async def roll(self) -> None:
        done = self.logged("rolling_restart_done")
        self.gateway.process.send_signal(signal.SIGUSR2)
        await wait_until(
            lambda: self.logged("rolling_restart_done") > done, STEP_TIMEOUT_S, "the rolling restart"
        )

    async def restart_redis(self) -> None:
        await self.stack.redis.stop()
        await self.stack.redis.start()

    async def receiver_dies(self) -> None:
        self.receiver.answer = "drop"
        await wait_until(lambda: bool(self.receiver.refused), STEP_TIMEOUT_S, "an alert that is not taken")

    async def kill_jobs_while_they_tell(self) -> None:
        """The receiver takes its time, and has said nothing yet."""
        self.receiver.answer = "hang"

        async def is_being_told() -> bool:
            await self.let_it_be_due()
            return self.receiver.inside > 0

        await wait_until(is_being_told, STEP_TIMEOUT_S, "an alert to be told")
        await self.kill_jobs()
        assert self.on_their_way

    async def kill_jobs(self) -> None:
        await self.stack.kill_process("jobs")
        self.receiver.answer = 200
        database = self.installation.database
        # They would be told when the lease of the killed process ends; it is let end now.
        claimed = await database.fetch(
            "UPDATE alert_deliveries SET leased_until = now() WHERE leased_until > now() RETURNING alert"
        )
        self.on_their_way |= {row["alert"] for row in claimed}
        await self.stack.start_process("jobs")

    async def let_it_be_due(self) -> None:
        """As if the pauses until the next attempts were over."""
        await self.installation.database.execute(
            "UPDATE alert_destinations SET paused_until = now() WHERE paused_until > now()"
        )
        await self.installation.database.execute(
            "UPDATE alert_deliveries SET next_attempt_at = now()"
            " WHERE status = 'pending' AND next_attempt_at > now() AND leased_until IS NULL"
        )

    async def go_through(self, steps: list[tuple[float, Callable[[], Awaitable[None]]]]) -> None:
        """Each step begins when this part of all requests has ended, and requests go on until the next one may begin."""
        count = len(self.asking.cards)
        ends = [int(share * count) for share, _ in steps[1:]] + [count]
        self.asking.allowed = int(steps[0][0] * count)
        tasks = [asyncio.create_task(self.asking.loop()) for _ in range(LOOPS)]
        try:
            for (_, step), end in zip(steps, ends, strict=True):
                await self.asking.until(self.asking.allowed)
                self.asking.allowed = end
                await step()
            await asyncio.wait_for(asyncio.gather(*tasks), STEP_TIMEOUT_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def told(self, firms: list[Firm]) -> list[Received]:
        """What the receiver has taken, once everything is drained and nothing is left to tell."""
        for firm in firms:
            await self.installation.settled(firm.tag)
        tags = [firm.tag for firm in firms]

        async def nothing_waits() -> bool:
            await self.let_it_be_due()
            return not await self.installation.database.fetchval(_WAITING, tags)

        await wait_until(nothing_waits, STEP_TIMEOUT_S, "every alert to be told")
        return list(self.receiver.taken)


_WAITING = """
SELECT EXISTS (SELECT FROM alerts a LEFT JOIN alert_deliveries d ON d.alert = a.id
                WHERE a.organization = ANY($1::text[])
                  AND (a.fanned_out_at IS NULL OR d.status IS DISTINCT FROM 'delivered'))
"""


def log_of(stack: Stack) -> Path:
    return stack.directory / "alerts.log"


@asynccontextmanager
async def on_site(stack: Stack, installation: Installation, firms: list[Firm]) -> AsyncIterator[Site]:
    table = stack.directory / "alerts.toml"
    log_of(stack).unlink(missing_ok=True)
    async with fickle_upstream() as upstream:
        upstream.open()
        table.write_text(ROUTES.format(upstream=upstream.url))
        with another_gateway(
            stack.redis.url, stack.directory / "pepper", log_of(stack), table,
            workers=str(WORKERS), hold_ttl_s="3", access_log="off",
        ) as gateway:  # fmt: skip
            cards = deck([key for firm in firms for key in firm.keys])
            assert len(cards) == REQUESTS
            yield Site(stack, installation, gateway, firms[0].receiver, Asking(gateway.port, cards, 0))


# -- what was told


def crossing_of(received: Received) -> tuple[Crossing, str]:
    """What it says was crossed, and in which window."""
    data = json.loads(received.body)["data"]
    return Crossing(data["level"], data["id"], data["threshold"], data["limit"]), data["window"]


def is_genuine(received: Received, firms: list[Firm]) -> bool:
    """Raises if it is not signed as its organization's secret signs."""
    data: dict[str, Any] = json.loads(received.body)["data"]
    (firm,) = (firm for firm in firms if firm.id == data["organization"])
    Webhook(firm.secret).verify(received.body, received.headers)
    return bool(data["alert"] == received.id)


def each_was_told_once(site: Site, firms: list[Firm], expected: Counter[Crossing]) -> None:
    taken = site.receiver.taken
    assert all(is_genuine(each, firms) for each in site.receiver.all)
    times = Counter(each.id for each in taken)
    assert {id_ for id_, count in times.items() if count > 1} <= site.on_their_way
    told = {each.id: crossing_of(each) for each in taken}
    assert len(set(told.values())) == len(told), "two alerts say the same"
    assert Counter(crossing for crossing, _ in told.values()) == expected


@pytest.mark.slow
async def test_each_threshold_is_told_once_through_kills_and_restarts_and_once_more_when_its_limit_is_raised(
    stack: Stack, installation: Installation
) -> None:
    async with receiving() as receiver:
        firms = [await founded(installation, receiver, thresholds) for thresholds in (USUAL, MANY)]
        async with on_site(stack, installation, firms) as site:
            await site.go_through(
                [
                    (0.08, site.receiver_dies),
                    (0.20, site.kill_a_worker),
                    (0.32, site.kill_jobs_while_they_tell),
                    (0.48, site.roll),
                    (0.64, site.kill_jobs),
                    (0.80, site.restart_redis),
                    (0.92, site.kill_a_worker),
                ]
            )
            statuses = site.asking.statuses
            assert statuses[402] >= 500, statuses
            for firm in firms:
                await spend_all(installation, site.gateway.port, firm.keys)
            await site.told(firms)
            expected = firms[0].crossings() + firms[1].crossings()
            each_was_told_once(site, firms, expected)
            expected += await raised(site, firms[1])
            await site.told(firms)
            each_was_told_once(site, firms, expected)
    assert receiver.refused, "the receiver took everything at once"


async def raised(site: Site, firm: Firm) -> Counter[Crossing]:
    """Double a key's limit, begin a new window for another, raise what is above them by as much, and spend all of that: which
    thresholds are crossed by it. Those that account and organization keep behind them are not.
    """
    installation = site.installation
    (doubled, limit), (anew, other) = firm.keys[0], firm.keys[1]
    (account, shared), more = next(iter(firm.accounts.items())), limit + other
    assert firm.limit / (firm.limit + more) > 0.8
    assert shared / (shared + more) > 0.8

    async def amend(what: str, **fields: Any) -> None:
        await installation.call("PATCH", f"/v1/{what}", fields)

    await amend(f"organizations/{firm.id}", credit_limit=credits_of(firm.limit + more))
    await amend(f"service-accounts/{account}", credit_limit=credits_of(shared + more))
    await amend(f"keys/{doubled.key}", credit_limit=credits_of(2 * limit))
    await amend(f"keys/{anew.key}", reset_period="monthly")
    await spend_all(installation, site.gateway.port, [(doubled, 2 * limit), (anew, other)])
    return Counter(
        [
            *crossings("key", doubled.key, 2 * limit),
            *crossings("key", anew.key, other),
            *crossings("account", account, shared + more, (100,)),
            *crossings("organization", firm.id, firm.limit + more, (100,)),
        ]
    )
