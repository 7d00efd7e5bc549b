"""argon2id of tokens, in a bounded pool of threads: a hash takes milliseconds of CPU and must not stop the event loop.

The parameters are small (t=1, 8 MiB, p=1) because what is hashed has 256 random bits, which nobody can guess through;
passwords will need stronger ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from control.domain.refusals import Overloaded

_HASHER: Final = PasswordHasher(
    time_cost=1, memory_cost=8 * 1024, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
)
_WAITING_MAX: Final = 64

Result = TypeVar("Result")


class Hashing:
    """Hashes and verifies in `threads` threads; at most 64 more wait, the rest are refused as Overloaded."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._pending = 0
        self._pending_max = threads + _WAITING_MAX

    async def hash(self, secret: str) -> str:
        """The argon2id hash in PHC form, `$argon2id$v=19$m=8192,t=1,p=1$…`."""
        return await self._run(_HASHER.hash, secret)

    async def matches(self, token_hash: str, secret: str) -> bool:
        """Whether the hash is of this secret. Raises ValueError if the hash is not one."""
        return await self._run(_verify, token_hash, secret)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[..., Result], *arguments: str) -> Result:
        if self._pending >= self._pending_max:
            raise Overloaded(
                "overloaded", "Too many tokens are being hashed at this moment; try again in a second."
            )
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *arguments))
        finally:
            self._pending -= 1


def hash_now(secret: str) -> str:
    """The same hash, here and now: for a start, when nobody waits for the event loop."""
    return _HASHER.hash(secret)


def _verify(token_hash: str, secret: str) -> bool:
    try:
        return _HASHER.verify(token_hash, secret)
    except VerifyMismatchError:
        return False
    except (InvalidHashError, VerificationError) as error:
        raise ValueError(f"not an argon2id hash: {type(error).__name__}") from error
