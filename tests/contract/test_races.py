"""Crowds: fifty connections at once, on the scripts as they are shipped and on Redis's own clock."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio

from gateway.contract import scripts
from gateway.contract.ids import LEVELS, Level
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget
from tests.contract.desk import (
    TTL_MS,
    Desk,
    Request,
    Settlement,
    Workload,
    admit_arguments,
    key_rules,
    publish_arguments,
    settle_arguments,
    workload,
)

CLIENTS = 50
ONE_CREDIT = Microcredits(1_000_000)
TENTH = 100_000

# Of one key at the key's level; of four keys and of two accounts where the account or the organization is what is limited.
CROWDS: dict[Level, list[Workload]] = {
    "key": [workload()],
    "account": [workload(key=key) for key in range(4)],
    "organization": [workload(account=account, key=key) for account in range(2) for key in range(2)],
}

Call = Callable[[redis.asyncio.Redis, int], Awaitable[Any]]


@asynccontextmanager
async def crowd(url: str) -> AsyncIterator[list[redis.asyncio.Redis]]:
    """Fifty connected clients, each with a connection of its own."""
    clients = [redis.asyncio.Redis.from_url(url, single_connection_client=True) for _ in range(CLIENTS)]
    try:
        await asyncio.gather(*(client.ping() for client in clients))
        yield clients
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))


async def race(clients: Sequence[redis.asyncio.Redis], calls: int, call: Call) -> list[Any]:
    """`calls` calls, spread over all clients, every client as fast as it can."""

    async def turns(first: int) -> list[Any]:
        return [await call(clients[first], number) for number in range(first, calls, len(clients))]

    answers = await asyncio.gather(*(turns(first) for first in range(len(clients))))
    return [answer for own in answers for answer in own]


def admit(desk: Desk, of: Workload, request: str, amount: int) -> tuple[Any, ...]:
    keys, *arguments = admit_arguments(desk.layout, [Request(of, amount, request)])
    return (len(keys), *keys, *arguments)


def settle(desk: Desk, of: Workload, hold: str, cost: int, *, due: bool = False) -> tuple[Any, ...]:
    keys, *arguments = settle_arguments(desk.layout, [Settlement(of, hold, cost)], due=due)
    return (len(keys), *keys, *arguments)


@pytest.fixture
def loaded(desk: Desk) -> Desk:
    for script in scripts.ALL:
        desk.client.script_load(script.text)
    return desk


@pytest.mark.parametrize("level", LEVELS)
async def test_fifty_clients_racing_for_one_credit_in_tenths_get_exactly_ten(
    loaded: Desk, redis_url: str, level: Level
) -> None:
    workloads = CROWDS[level]
    for of in workloads:
        loaded.publish_all(of, **{level: Budget(ONE_CREDIT)})

    async def one(client: redis.asyncio.Redis, number: int) -> Any:
        of = workloads[number % len(workloads)]
        (answer,) = await client.evalsha(scripts.ADMIT.sha, *admit(loaded, of, f"r{number}", TENTH))
        return answer

    async with crowd(redis_url) as clients:
        answers = await race(clients, 200, one)
    admitted = [answer for answer in answers if isinstance(answer, bytes)]
    refused = [answer for answer in answers if not isinstance(answer, bytes)]
    assert len(admitted) == len(set(admitted)) == 10
    assert {tuple(answer[:2]) for answer in refused} == {(b"budget", level.encode())}
    assert loaded.counters(workloads[0], level) == (0, ONE_CREDIT)
    assert loaded.client.zcard(loaded.holds(workloads[0])) == 10


async def test_of_fifty_who_settle_one_hold_one_does(loaded: Desk, redis_url: str) -> None:
    of = workload()
    loaded.publish_all(of)
    hold = loaded.admitted(of, 40, ttl_ms=0)

    async def one(client: redis.asyncio.Redis, number: int) -> Any:
        due = bool(number % 2)
        (answer,) = await client.evalsha(scripts.SETTLE.sha, *settle(loaded, of, hold, 30, due=due))
        return answer

    async with crowd(redis_url) as clients:
        answers = await race(clients, CLIENTS, one)
    assert Counter(answers) == {1: 1, 0: CLIENTS - 1}
    assert [loaded.counters(of, level) for level in LEVELS] == [(30, 0)] * 3
    assert len(loaded.events(of)) == 1


async def test_admits_top_ups_and_settlements_of_a_crowd_never_pass_the_limit(
    loaded: Desk, redis_url: str
) -> None:
    """Every request holds a tenth, tops up by another tenth if it may, and costs what it holds."""
    workloads = CROWDS["organization"]
    for of in workloads:
        loaded.publish_all(of, organization=Budget(ONE_CREDIT))

    async def whole_request(client: redis.asyncio.Redis, number: int) -> int:
        of = workloads[number % len(workloads)]
        (hold,) = await client.evalsha(scripts.ADMIT.sha, *admit(loaded, of, f"r{number}", TENTH))
        if not isinstance(hold, bytes):
            return 0
        keys = (*of.records(loaded.layout), loaded.holds(of))
        grown = await client.evalsha(scripts.EXTEND.sha, 4, *keys, hold, TENTH, TTL_MS)
        text = (grown if isinstance(grown, bytes) else hold).decode()
        cost = int(text.split("|")[5])
        assert await client.evalsha(scripts.SETTLE.sha, *settle(loaded, of, text, cost)) == [1]
        return cost

    async with crowd(redis_url) as clients:
        costs = await race(clients, 200, whole_request)
    assert sum(costs) == ONE_CREDIT, "the limit is used up, and not passed"
    assert loaded.counters(workloads[0], "organization") == (ONE_CREDIT, 0)
    assert len(loaded.events(workloads[0])) == sum(cost > 0 for cost in costs)
    by_account = [loaded.counters(of, "account")[0] for of in (workloads[0], workloads[2])]
    assert sum(by_account) == ONE_CREDIT


async def test_once_a_revocation_is_answered_nobody_of_a_crowd_is_admitted(
    loaded: Desk, redis_url: str
) -> None:
    of = workload()
    loaded.publish_all(of)
    rules = key_rules(of, version=2, status="revoked")
    revoked = asyncio.Event()
    late: list[bool] = []

    async def one(client: redis.asyncio.Redis, number: int) -> Any:
        sent_after = revoked.is_set()
        (answer,) = await client.evalsha(scripts.ADMIT.sha, *admit(loaded, of, f"r{number}", 1))
        if sent_after:
            late.append(isinstance(answer, bytes))
        if number == 500:
            arguments = publish_arguments(rules, 0, 0, 0)
            await client.evalsha(scripts.PUBLISH.sha, 1, loaded.layout.key(of.key), *arguments)
            revoked.set()
        return answer

    async with crowd(redis_url) as clients:
        await race(clients, 2_000, one)
    assert len(late) > 100
    assert not any(late)
