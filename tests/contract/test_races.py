"""Crowds: fifty connections at once, on the scripts as they are shipped and on Redis's own clock: credits, paces, alerts."""

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
from gateway.contract.records import Budget, Pace
from tests.contract.desk import (
    TTL_MS,
    Desk,
    Request,
    Settlement,
    Workload,
    admit_arguments,
    key_rules,
    publish_arguments,
    rules_of,
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


def admit(desk: Desk, of: Workload, request: str, amount: int, *, ttl_ms: int = TTL_MS) -> tuple[Any, ...]:
    keys, *arguments = admit_arguments(desk.layout, [Request(of, amount, request)], ttl_ms=ttl_ms)
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


# Paces.


def redis_now_us(desk: Desk) -> int:
    moment: Any = desk.client.time()
    return int(moment[0]) * 1_000_000 + int(moment[1])


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("size", [1, 7])
async def test_of_a_crowd_a_burst_passes_and_then_no_more_than_the_rate(
    loaded: Desk, redis_url: str, level: Level, size: int
) -> None:
    """Whether requests come one by one or in batches, over however many connections."""
    workloads = CROWDS[level]
    for of in workloads:
        loaded.publish_all(of)
        loaded.publish(rules_of(level, of, pace=Pace(600, 20), version=2))

    async def some(client: redis.asyncio.Redis, number: int) -> Any:
        batch = [Request(workloads[each % len(workloads)], 1, f"r{number}-{each}") for each in range(size)]
        keys, *arguments = admit_arguments(loaded.layout, batch)
        return await client.evalsha(scripts.ADMIT.sha, len(keys), *keys, *arguments)

    async with crowd(redis_url) as clients:
        started_us = redis_now_us(loaded)
        answers = [answer for batch in await race(clients, 400, some) for answer in batch]
        took_us = redis_now_us(loaded) - started_us
    admitted = sum(isinstance(answer, bytes) for answer in answers)
    assert 20 <= admitted <= 20 + took_us * 600 // 60_000_000
    assert len(answers) == 400 * size
    refused = {tuple(answer[:4]) for answer in answers if not isinstance(answer, bytes)}
    assert refused == {(b"rate", level.encode(), 600, 20)}
    assert loaded.counter(workloads[0], level, "in_flight") == admitted
    assert loaded.client.zcard(loaded.holds(workloads[0])) == admitted


@pytest.mark.parametrize("level", LEVELS[:2])
async def test_never_more_of_a_crowd_are_in_flight_than_may_and_every_place_comes_back(
    loaded: Desk, redis_url: str, level: Level
) -> None:
    """Each is settled by two at once, or left to the job that settles what is due; no place is freed twice."""
    workloads = CROWDS[level]
    for of in workloads:
        loaded.publish_all(of)
        loaded.publish(rules_of(level, of, pace=Pace(in_flight=10), version=2))
    admitted = refused = running = most = 0

    async def whole_request(client: redis.asyncio.Redis, number: int) -> None:
        nonlocal admitted, refused, running, most
        of = workloads[number % len(workloads)]
        (answer,) = await client.evalsha(
            scripts.ADMIT.sha, *admit(loaded, of, f"r{number}", 1, ttl_ms=0 if number % 3 == 0 else TTL_MS)
        )
        if answer[0] == b"in_flight":
            assert [*answer[1:3], answer[3] >= 10] == [level.encode(), 10, True]
            refused += 1
            return
        placed, hold = answer
        assert placed == b"placed"
        admitted, running = admitted + 1, running + 1
        most = max(most, running)
        await client.ping()
        running -= 1
        settlements = (settle(loaded, of, hold.decode(), 1, due=number % 3 == 0) for _ in range(2))
        other = clients[(number + 1) % len(clients)]
        both = await asyncio.gather(
            *(
                who.evalsha(scripts.SETTLE.sha, *how)
                for who, how in zip((client, other), settlements, strict=True)
            )
        )
        assert sorted(both) == [[0], [1]]

    async with crowd(redis_url) as clients:
        await race(clients, 1_000, whole_request)
    assert most <= 10
    assert (admitted >= 10, refused >= 10, admitted + refused) == (True, True, 1_000)
    assert loaded.counters(workloads[0], level) == (admitted, 0)
    for of in workloads:
        assert [loaded.counter(of, each, "in_flight") for each in LEVELS[:2]] == [0, 0]
    assert loaded.client.zcard(loaded.holds(workloads[0])) == 0


async def test_places_without_settlements_are_given_to_exactly_so_many_of_a_crowd(
    loaded: Desk, redis_url: str
) -> None:
    workloads = CROWDS["account"]
    for of in workloads:
        loaded.publish_all(of)
        loaded.publish(rules_of("key", of, pace=Pace(in_flight=4), version=2))
    loaded.publish(rules_of("account", workloads[0], pace=Pace(in_flight=10), version=2))

    async def one(client: redis.asyncio.Redis, number: int) -> Any:
        of = workloads[number % len(workloads)]
        (answer,) = await client.evalsha(scripts.ADMIT.sha, *admit(loaded, of, f"r{number}", 0))
        return answer

    async with crowd(redis_url) as clients:
        answers = await race(clients, 200, one)
    assert sum(answer[0] == b"placed" for answer in answers) == 10
    by_key = [loaded.counter(of, "key", "in_flight") for of in workloads]
    assert (sum(by_key), max(by_key) <= 4) == (10, True)


async def test_a_crowd_that_is_only_observed_is_let_through_and_counted_to_the_last(
    loaded: Desk, redis_url: str
) -> None:
    of = workload()
    loaded.publish_all(of, organization=Budget(ONE_CREDIT, enforcement="observe"))
    loaded.publish(rules_of("account", of, Budget(enforcement="observe"), pace=Pace(in_flight=50), version=2))

    async def one(client: redis.asyncio.Redis, number: int) -> Any:
        (answer,) = await client.evalsha(scripts.ADMIT.sha, *admit(loaded, of, f"r{number}", TENTH))
        return answer

    async with crowd(redis_url) as clients:
        answers = await race(clients, 200, one)
    observed = Counter(level for answer in answers for level in answer[2::2])
    assert observed == {b"organization": 190, b"account": 150}
    assert {answer[0] for answer in answers} == {b"placed", b"observed"}
    assert [loaded.counter(of, level, "observed") for level in LEVELS] == [0, 150, 190]
    assert loaded.counters(of, "organization") == (0, 200 * TENTH)


async def test_however_many_settle_at_once_each_threshold_is_told_once(loaded: Desk, redis_url: str) -> None:
    workloads = CROWDS["organization"]
    for of in workloads:
        loaded.publish_all(
            of, organization=Budget(ONE_CREDIT), account=Budget(ONE_CREDIT, alerts=(10, 20, 30))
        )
    holds = [
        (workloads[number % 4], loaded.admitted(workloads[number % 4], 5_000, request=f"r{number}"))
        for number in range(200)
    ]

    async def one(client: redis.asyncio.Redis, number: int) -> Any:
        of, hold = holds[number]
        return await client.evalsha(scripts.SETTLE.sha, *settle(loaded, of, hold, 5_000))

    async with crowd(redis_url) as clients:
        assert await race(clients, 200, one) == [[1]] * 200
    told = Counter((alert.id, alert.threshold) for alert in loaded.alerts(workloads[0]))
    accounts = {of.account for of in workloads}
    expected = {(account, threshold) for account in accounts for threshold in (10, 20, 30)}
    assert told == dict.fromkeys(expected | {(workloads[0].tag, 80), (workloads[0].tag, 100)}, 1)
