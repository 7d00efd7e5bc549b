"""argon2id in threads: right, bounded, and out of the event loop's way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from control.domain.hashing import Hashing, hash_now
from control.domain.refusals import Overloaded


@pytest.fixture
def hashing() -> Iterator[Hashing]:
    pool = Hashing(1)
    yield pool
    pool.close()


async def test_a_hash_matches_its_secret_and_no_other(hashing: Hashing) -> None:
    token_hash = await hashing.hash("secret")

    assert token_hash.startswith("$argon2id$v=19$m=8192,t=1,p=1$")
    assert await hashing.matches(token_hash, "secret")
    assert not await hashing.matches(token_hash, "Secret")
    assert await hashing.matches(hash_now("secret"), "secret")


async def test_what_is_no_hash_is_an_error_and_not_a_mismatch(hashing: Hashing) -> None:
    with pytest.raises(ValueError, match="not an argon2id hash"):
        await hashing.matches("nonsense", "secret")


async def test_more_than_can_wait_is_refused_at_once(hashing: Hashing) -> None:
    results = await asyncio.gather(*(hashing.hash("secret") for _ in range(200)), return_exceptions=True)

    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(refused) == 200 - 65
    assert await hashing.matches(await hashing.hash("secret"), "secret")
