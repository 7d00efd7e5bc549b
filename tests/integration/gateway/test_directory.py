"""The cold path on a real Valkey: one look-up a token however many wait, and a rebuilt Redis gets its digests back."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

import argon2
import pytest
import redis.asyncio

from gateway.caller import Caller
from gateway.contract import scripts, token
from gateway.contract.token import Digest
from gateway.directory import Directory
from gateway.ledger import Ledger
from gateway.refusals import Reason, Refusal
from tests.integration.gateway.world import (
    HELD,
    NAMES,
    PEPPER,
    Heard,
    Workload,
    kill_gateways,
    ledger_on,
    load,
    publish,
    run,
    until,
)

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@pytest.fixture
async def ledger(redis_url: str, redis_client: redis.asyncio.Redis) -> AsyncIterator[Ledger]:
    """A ledger on a loaded Redis."""
    await load(redis_client)
    async with ledger_on(redis_url) as ledger:
        await until(lambda: ledger.is_ready)
        yield ledger


@pytest.fixture
def directory(ledger: Ledger) -> Iterator[Directory]:
    directory = Directory(ledger, NAMES, PEPPER, lookups_max=64)
    yield directory
    directory.close()


def hashed() -> Workload:
    """A workload whose record holds a hash of its token."""
    of = Workload.mint()
    return Workload(of.key, of.token, CHEAP.hash(of.token))


async def recognised(directory: Directory, secret: bytes) -> Caller | Refusal:
    return await directory.recognise(secret, directory.digest(secret))


def refused(found: Caller | Refusal) -> Reason:
    assert isinstance(found, Refusal)
    return found.reason


async def test_a_token_is_recognised_by_its_digest_and_known_from_then_on(
    directory: Directory, redis_client: redis.asyncio.Redis
) -> None:
    of = Workload.mint()
    await publish(redis_client, of)
    assert directory.known(of.digest) is None
    found = await recognised(directory, of.token)
    assert isinstance(found, Caller)
    assert found.identity == of.identity
    assert directory.known(of.digest) is found
    assert await recognised(directory, of.token) is found
    assert directory.verifications == 0


async def test_however_many_wait_for_a_token_it_is_looked_up_once(
    directory: Directory, redis_client: redis.asyncio.Redis
) -> None:
    of = hashed()
    await publish(redis_client, of, with_digest=False)
    await redis_client.config_resetstat()
    found = await asyncio.gather(*(recognised(directory, of.token) for _ in range(200)))
    assert all(one is found[0] for one in found)
    assert isinstance(found[0], Caller)
    assert directory.verifications == 1
    stats = await redis_client.info("commandstats")
    assert stats["cmdstat_hmget"]["calls"] <= 3
    assert directory.lookups == 0


async def test_tokens_of_one_key_are_verified_one_at_a_time_whenever_they_come(
    directory: Directory, redis_client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = hashed()
    await publish(redis_client, of, with_digest=False)
    matches, at_once, most = directory._matches, [0], [0]
    counting = threading.Lock()

    def watched(token_hash: str, secret: bytes) -> bool:
        with counting:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.005)  # long enough for another to begin, if it could
        found = matches(token_hash, secret)
        with counting:
            at_once[0] -= 1
        return found

    monkeypatch.setattr(directory, "_matches", watched)
    attempts = []
    for number in range(20):
        body = of.token[: -token.SECRET_LENGTH - token.CHECKSUM_LENGTH] + b"%043d" % number
        wrong = body + token.checksum(body).encode()
        attempts.append(asyncio.create_task(recognised(directory, wrong)))
        await asyncio.sleep(0.003)
    assert {refused(await attempt) for attempt in attempts} == {Reason.INVALID_TOKEN}
    assert directory.verifications == 20
    assert most == [1]


async def test_a_record_that_lost_its_digest_is_given_it_back_once_the_token_is_proved(
    directory: Directory, ledger: Ledger, redis_client: redis.asyncio.Redis
) -> None:
    of = hashed()
    await publish(redis_client, of, with_digest=False)
    found = await recognised(directory, of.token)
    assert isinstance(found, Caller)
    assert await redis_client.hget(NAMES.key(of.key), "digest") == of.digest
    heard = Heard()
    ledger.admit(found, HELD, b"r1", b"models", heard)
    await until(lambda: heard.replies)
    assert isinstance(heard.replies[0], bytes)


async def test_a_wrong_secret_of_a_right_key_is_refused_and_writes_nothing(
    directory: Directory, redis_client: redis.asyncio.Redis
) -> None:
    of = hashed()
    body = b"tk_" + of.key.encode() + b"_" + b"0" * 43
    forged = body + token.checksum(body).encode()
    for with_digest in (True, False):
        await redis_client.delete(NAMES.key(of.key))
        await publish(redis_client, of, with_digest=with_digest)
        assert refused(await recognised(directory, forged)) is Reason.INVALID_TOKEN
        expected = of.digest if with_digest else None
        assert await redis_client.hget(NAMES.key(of.key), "digest") == expected
    assert directory.known_count == 0
    assert directory.verifications == 1


async def test_an_unknown_key_is_refused_while_redis_is_loaded_and_nothing_is_known_while_it_is_not(
    directory: Directory, ledger: Ledger, redis_client: redis.asyncio.Redis
) -> None:
    of = Workload.mint()
    assert refused(await recognised(directory, of.token)) is Reason.INVALID_TOKEN
    await redis_client.flushall()
    assert refused(await recognised(directory, of.token)) is Reason.NOT_READY
    assert not ledger.is_ready
    await publish(redis_client, of)
    await load(redis_client)
    assert isinstance(await recognised(directory, of.token), Caller)


async def test_a_record_that_is_not_whole_is_no_record(
    directory: Directory, redis_client: redis.asyncio.Redis
) -> None:
    of = Workload.mint()
    await publish(redis_client, of)
    await redis_client.hdel(NAMES.key(of.key), "account_name")
    assert refused(await recognised(directory, of.token)) is Reason.INVALID_TOKEN


@pytest.mark.parametrize(
    "token_hash", ["", "nonsense", "$argon2id$nonsense", "$argon2id$v=19$m=64,t=1,p=1$c2FsdA$"]
)
async def test_a_hash_that_cannot_be_read_lets_nobody_through(
    directory: Directory, redis_client: redis.asyncio.Redis, token_hash: str
) -> None:
    of = Workload.mint(token_hash)
    await publish(redis_client, of, with_digest=False)
    assert refused(await recognised(directory, of.token)) in (Reason.NOT_READY, Reason.INVALID_TOKEN)
    assert await redis_client.hget(NAMES.key(of.key), "digest") is None


@pytest.mark.parametrize("field", ["account_name", "organization", "hash"])
async def test_a_record_that_cannot_be_read_is_refused_and_leaves_nobody_waiting(
    directory: Directory, redis_client: redis.asyncio.Redis, field: str
) -> None:
    of = hashed()
    await publish(redis_client, of, with_digest=False)
    await redis_client.hset(NAMES.key(of.key), field, b"\xff\xfe")
    async with asyncio.timeout(10):
        assert refused(await recognised(directory, of.token)) in (Reason.NOT_READY, Reason.INVALID_TOKEN)
    assert directory.lookups == 0


async def test_look_ups_are_bounded(ledger: Ledger, redis_client: redis.asyncio.Redis) -> None:
    directory = Directory(ledger, NAMES, PEPPER, lookups_max=3)
    workloads = [Workload.mint() for _ in range(5)]
    for of in workloads:
        await publish(redis_client, of)
    found = await asyncio.gather(*(recognised(directory, of.token) for of in workloads))
    assert [isinstance(one, Caller) for one in found] == [True, True, True, False, False]
    assert {refused(one) for one in found[3:]} == {Reason.OVERLOADED}
    directory.close()


async def test_a_connection_lost_during_a_look_up_refuses_it_for_now(
    directory: Directory, ledger: Ledger, redis_client: redis.asyncio.Redis
) -> None:
    of = Workload.mint()
    await publish(redis_client, of)
    await redis_client.client_pause(300)
    looking = asyncio.create_task(recognised(directory, of.token))
    await until(lambda: ledger.depth or ledger.pipe.depth)
    ledger.pipe.reconnect()
    assert refused(await looking) is Reason.NOT_READY
    await redis_client.client_unpause()
    await until(lambda: ledger.is_ready)
    await kill_gateways(redis_client)
    await until(lambda: not ledger.is_ready)
    assert refused(await recognised(directory, of.token)) is Reason.NOT_READY
    await until(lambda: ledger.is_ready)
    assert isinstance(await recognised(directory, of.token), Caller)


async def test_a_known_caller_gives_a_rebuilt_redis_its_digest_without_the_token(
    directory: Directory, redis_client: redis.asyncio.Redis
) -> None:
    of = hashed()
    await publish(redis_client, of)
    caller = await recognised(directory, of.token)
    assert isinstance(caller, Caller)
    await redis_client.flushall()
    await load(redis_client)
    await publish(redis_client, of, with_digest=False)
    directory.forget(of.digest)
    assert await directory.readopt(caller, of.digest) is caller
    assert await redis_client.hget(NAMES.key(of.key), "digest") == of.digest
    assert directory.known(of.digest) is caller
    assert directory.verifications == 0


async def test_a_known_caller_whose_record_has_another_digest_is_refused(
    directory: Directory, redis_client: redis.asyncio.Redis
) -> None:
    of = hashed()
    await publish(redis_client, of)
    caller = await recognised(directory, of.token)
    assert isinstance(caller, Caller)
    directory.forget(of.digest)
    await redis_client.hset(NAMES.key(of.key), "digest", bytes(32))
    assert refused(await directory.readopt(caller, of.digest)) is Reason.INVALID_TOKEN
    assert directory.known(of.digest) is None
    await redis_client.delete(NAMES.key(of.key))
    assert refused(await directory.readopt(caller, of.digest)) is Reason.INVALID_TOKEN
    await redis_client.flushall()
    assert refused(await directory.readopt(caller, of.digest)) is Reason.NOT_READY


async def test_a_digest_is_adopted_only_beside_the_hash_it_was_proved_against(
    redis_client: redis.asyncio.Redis,
) -> None:
    """Between the proof and the writing, control may have published another hash."""
    of = hashed()
    await publish(redis_client, of, with_digest=False)
    answer = await run(redis_client, scripts.ADOPT, [NAMES.key(of.key)], "another hash", Digest(bytes(32)))
    assert answer != 1
    assert await redis_client.hget(NAMES.key(of.key), "digest") is None
