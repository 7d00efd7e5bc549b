"""The ledger on a real Valkey: settlements survive whatever happens to the connection, once; unknown states are refused."""

import asyncio

import pytest
import redis.asyncio

from control.embedded import EmbeddedRedis
from gateway.batches import BATCH_MAX
from gateway.contract import layout
from gateway.contract.layout import Layout
from gateway.contract.money import Microcredits
from gateway.contract.records import Budget
from gateway.ledger import SETTLEMENT_ATTEMPTS_MAX, Ledger
from gateway.redis_pipe import PipeLost, Reply
from tests.integration.gateway.world import (
    AMOUNT,
    HELD,
    NAMES,
    SHARD,
    Heard,
    Workload,
    books,
    events,
    kill_gateways,
    ledger_on,
    load,
    publish,
    until,
)


@pytest.fixture
async def workload(redis_client: redis.asyncio.Redis) -> Workload:
    """A workload that a loaded Redis knows."""
    of = Workload.mint()
    await publish(redis_client, of)
    await load(redis_client)
    return of


async def admitted(ledger: Ledger, of: Workload, request: str) -> Reply:
    """The answer of admit."""
    heard = Heard()
    assert ledger.admit(of.caller, HELD, request.encode(), b"models", heard)
    await until(lambda: heard.replies)
    return heard.replies[0]


async def test_admit_extend_and_settle_keep_the_books(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        hold = await admitted(ledger, workload, "r1")
        assert hold.startswith(f"r1|{workload.key}|".encode())
        assert await books(redis_client, workload) == (0, AMOUNT, 1, 0)
        extended = Heard()
        ledger.extend(workload.caller, hold, 5, extended)
        await until(lambda: extended.replies)
        assert await books(redis_client, workload) == (0, AMOUNT + 5, 1, 0)
        ledger.settle(workload.caller, extended.replies[0], 7, b'{"e":1}', frees=True)
        await until(lambda: ledger.depth == 0)
        assert await books(redis_client, workload) == (7, 0, 0, 1)
        assert ledger.settled_elsewhere == ledger.settlements_dropped == ledger.unsettled == 0


async def test_a_settlement_that_frees_nothing_is_written_too(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        hold = await admitted(ledger, workload, "r1")
        ledger.settle(workload.caller, hold, AMOUNT, b"{}", frees=False)
        await until(lambda: ledger.depth == 0)
        assert await books(redis_client, workload) == (AMOUNT, 0, 0, 1)


async def test_what_is_admitted_in_one_turn_is_one_call_and_each_hears_its_own_answer(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    """More than fit into one call, with one that is refused in the middle."""
    stranger, count = Workload.mint(), 2 * BATCH_MAX + 1
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        await redis_client.config_resetstat()
        heard = {number: Heard() for number in range(count)}
        for number, answer in heard.items():
            of = stranger if number == 7 else workload
            ledger.admit(of.caller, HELD, f"r{number}".encode(), b"models", answer)
        assert ledger.depth == count
        await until(lambda: ledger.depth == 0)
        assert (await redis_client.info("commandstats"))["cmdstat_evalsha"]["calls"] == 3
        holds = {number: answer.replies[0] for number, answer in heard.items()}
        assert holds.pop(7) == [b"missing", b"key"]
        assert all(hold.startswith(b"r%d|" % number) for number, hold in holds.items())
        for hold in holds.values():
            ledger.settle(workload.caller, hold, 3, hold, frees=True)
        await until(lambda: ledger.depth == 0)
        assert sorted(await events(redis_client)) == sorted(holds.values())
        assert await books(redis_client, workload) == (3 * (count - 1), 0, 0, count - 1)


async def test_a_callback_that_fails_keeps_no_answer_from_the_others_of_its_batch(
    redis_url: str, workload: Workload
) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    error = RuntimeError("of the test")

    def fail(_: Reply) -> None:
        raise error

    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        heard = Heard()
        ledger.admit(workload.caller, HELD, b"r1", b"models", fail)
        ledger.admit(workload.caller, HELD, b"r2", b"models", heard)
        await until(lambda: heard.replies)
        assert isinstance(heard.replies[0], bytes)
        assert failures == [error]


async def test_a_full_ledger_says_so(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url, depth_max=5) as ledger:
        await until(lambda: ledger.is_ready)
        heard, states = Heard(), []
        for number in range(5):
            states.append(ledger.is_full)
            ledger.admit(workload.caller, HELD, b"r%d" % number, b"models", heard)
        assert [*states, ledger.is_full] == [False] * 5 + [True]
        await until(lambda: not ledger.is_full)


async def test_a_refusal_leaves_no_hold(redis_url: str, redis_client: redis.asyncio.Redis) -> None:
    of = Workload.mint()
    await publish(redis_client, of, limit=Budget(Microcredits(AMOUNT - 1)))
    await load(redis_client)
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        reply = await admitted(ledger, of, "r1")
        assert reply == [b"budget", b"key", AMOUNT - 1, 0, 0, 0]
        assert await books(redis_client, of) == (0, 0, 0, 0)


async def test_settlements_survive_lost_connections_and_each_is_written_once(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    """Connections are killed while settlements are on their way: some ran and were not confirmed, some never arrived."""
    rounds, each = 12, 60
    async with ledger_on(redis_url) as ledger:
        for round_ in range(rounds):
            await until(lambda: ledger.is_ready and not ledger.unsettled)
            answers = Heard()
            for number in range(each):
                ledger.admit(workload.caller, HELD, f"r{round_}-{number}".encode(), b"models", answers)
            await heard_all(answers, each)
            losses = ledger.pipe.losses
            killing = asyncio.create_task(kill_gateways(redis_client))
            for number, hold in enumerate(answers.replies):
                assert isinstance(hold, bytes)
                ledger.settle(workload.caller, hold, 3, hold, frees=number % 2 == 0)
                if number % 10 == 0:
                    await asyncio.sleep(0)
            await killing
            await lost_again(ledger, losses)
        await until(lambda: ledger.pipe.is_connected and ledger.unsettled == ledger.depth == 0)
        assert ledger.settlements_dropped == 0
        assert ledger.pipe.losses == rounds
    written = await events(redis_client)
    assert len(written) == len(set(written)) == rounds * each
    assert await books(redis_client, workload) == (3 * rounds * each, 0, 0, rounds * each)


async def lost_again(ledger: Ledger, losses: int) -> None:
    await until(lambda: ledger.pipe.losses > losses)


async def heard_all(heard: Heard, count: int) -> None:
    await until(lambda: len(heard.replies) == count)


async def test_settlements_wait_out_a_redis_that_is_down(own_redis: EmbeddedRedis) -> None:
    of = Workload.mint()
    client = redis.asyncio.Redis.from_url(own_redis.url)
    await publish(client, of)
    await load(client)
    async with ledger_on(own_redis.url) as ledger:
        await until(lambda: ledger.is_ready)
        hold = await admitted(ledger, of, "r1")
        await client.aclose()
        await own_redis.stop()
        await until(lambda: not ledger.is_ready)
        ledger.settle(of.caller, hold, 4, b"{}", frees=True)
        assert ledger.unsettled == 1
        assert not ledger.admit(of.caller, HELD, b"r2", b"models", Heard())
        await own_redis.start()
        await until(lambda: ledger.is_ready and not ledger.unsettled and not ledger.depth)
        assert await books(client, of) == (4, 0, 0, 1)
        assert ledger.settlements_dropped == ledger.settled_elsewhere == 0
    await client.aclose()


async def test_scripts_that_redis_forgot_are_loaded_again_and_no_settlement_is_lost(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        hold = await admitted(ledger, workload, "r1")
        await redis_client.script_flush()
        ledger.settle(workload.caller, hold, 4, b"{}", frees=True)
        await until(lambda: ledger.depth == ledger.unsettled == 0)
        assert await books(redis_client, workload) == (4, 0, 0, 1)
        assert isinstance(await admitted(ledger, workload, "r2"), bytes)
        assert ledger.script_errors == ledger.settlements_dropped == 0
        assert ledger.is_ready


async def test_an_admission_whose_answer_is_lost_is_told_so(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url, timeout_s=0.3) as ledger:
        await until(lambda: ledger.is_ready)
        await redis_client.client_pause(1500)
        reply = await admitted(ledger, workload, "r1")
        assert isinstance(reply, PipeLost)
        assert not ledger.is_ready
        await redis_client.client_unpause()
        await until(lambda: ledger.is_ready)


@pytest.mark.parametrize(
    "meta",
    [
        {}, {"schema": str(layout.SCHEMA_VERSION), "shards": "16"}, {"schema": "999", "shards": "16", "epoch": "e"},
        {"shards": "16", "epoch": "e"}, {"schema": str(layout.SCHEMA_VERSION), "shards": "8", "epoch": "e"},
        {"schema": str(layout.SCHEMA_VERSION), "epoch": "e"},
    ],
    ids=["nothing", "no epoch", "another schema", "no schema", "another count of shards", "no count of shards"],
)  # fmt: skip
async def test_a_redis_in_an_unknown_state_is_not_ready_until_it_is_loaded(
    redis_url: str, redis_client: redis.asyncio.Redis, meta: dict[str, str]
) -> None:
    for name, value in meta.items():
        await redis_client.hset(layout.META, name, value)
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.pipe.is_connected and ledger.pipe.depth == 0)
        await asyncio.sleep(0.6)  # it has asked several times
        assert not ledger.is_ready
        await load(redis_client)
        await until(lambda: ledger.is_ready)


async def test_a_gateway_that_is_set_to_other_shards_never_becomes_ready(
    redis_url: str, redis_client: redis.asyncio.Redis
) -> None:
    await load(redis_client, shards=16)
    async with ledger_on(redis_url, names=Layout(8)) as ledger:
        await until(lambda: ledger.pipe.is_connected and ledger.pipe.depth == 0)
        await asyncio.sleep(0.6)
        assert not ledger.is_ready


async def test_a_missing_record_tells_a_loaded_redis_from_one_that_was_flushed(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    stranger = Workload.mint()
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        assert await admitted(ledger, stranger, "r1") == [b"missing", b"key"]
        heard: list[bool] = []
        ledger.confirm_loaded(heard.append)
        await until(lambda: heard)
        assert heard == [True]
        assert ledger.is_ready
        await redis_client.flushall()
        ledger.confirm_loaded(heard.append)
        await until(lambda: len(heard) == 2)
        assert heard == [True, False]
        assert not ledger.is_ready


async def test_a_script_that_fails_for_good_changes_nothing_and_is_not_tried_for_ever(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    """A stream of another type: the settlement can never run, and the expire job is left to complain."""
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        hold = await admitted(ledger, workload, "r1")
        await redis_client.delete(NAMES.events(SHARD))
        await redis_client.set(NAMES.events(SHARD), "not a stream")
        ledger.settle(workload.caller, hold, 4, b"{}", frees=True)
        await until(lambda: ledger.settlements_dropped == 1)
        assert ledger.unsettled == 0
        assert ledger.script_errors == SETTLEMENT_ATTEMPTS_MAX
        assert await redis_client.zcard(NAMES.holds(SHARD)) == 1


async def test_a_settlement_that_failed_is_sent_again_when_the_cause_is_gone(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        hold = await admitted(ledger, workload, "r1")
        await redis_client.set(NAMES.events(SHARD), "not a stream")
        ledger.settle(workload.caller, hold, 4, b"{}", frees=True)
        await until(lambda: ledger.script_errors > 0)
        await redis_client.delete(NAMES.events(SHARD))
        await until(lambda: ledger.unsettled == 0 and ledger.depth == 0)
        assert await books(redis_client, workload) == (4, 0, 0, 1)


async def test_an_event_without_a_settlement_is_appended(
    redis_url: str, redis_client: redis.asyncio.Redis, workload: Workload
) -> None:
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        heard = Heard()
        assert ledger.append_event(SHARD, b'{"kind":"refused"}', heard)
        await until(lambda: heard.replies)
        assert await events(redis_client) == [b'{"kind":"refused"}']
