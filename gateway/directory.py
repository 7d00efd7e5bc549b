"""Token -> caller. The warm path is one `dict` access on a keyed digest; the cold path asks Redis once. Acts.

What the table holds never changes (names are immutable, a key never moves), so nothing ever has to be invalidated in it:
whether the key is still *in force* is judged by admit, in Redis, every time. A digest that is not in the table is looked up
once. If the key's record carries no digest (Redis was rebuilt), the token is verified against the argon2id hash in a small
thread pool, one verification a key at a time, and the digest is written back.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from weakref import WeakValueDictionary

import argon2
import hiredis
import structlog

from gateway.caller import Caller
from gateway.contract import scripts
from gateway.contract.ids import KeyId
from gateway.contract.layout import Layout
from gateway.contract.records import IDENTITY_FIELDS, KeyFacts, read_key_facts
from gateway.contract.token import Digest, Pepper, digest, key_id_of
from gateway.ledger import Ledger
from gateway.redis_pipe import PipeLost
from gateway.refusals import Reason, Refusal

CALLERS_MAX: Final = 100_000
_VERIFY_THREADS: Final = 2

log = structlog.get_logger("gateway.directory")

INVALID: Final = Refusal(Reason.INVALID_TOKEN)
NOT_READY: Final = Refusal(Reason.NOT_READY)
OVERLOADED: Final = Refusal(Reason.OVERLOADED)


class Directory:
    """The callers this process knows, and the way to get to know more."""

    def __init__(self, ledger: Ledger, names: Layout, pepper: Pepper, *, lookups_max: int) -> None:
        self._ledger = ledger
        self._names = names
        self._pepper = pepper
        self._lookups_max = lookups_max
        self._callers: dict[bytes, Caller] = {}
        self._lookups: dict[bytes, asyncio.Task[Caller | Refusal]] = {}
        self._verifying: WeakValueDictionary[KeyId, asyncio.Lock] = WeakValueDictionary()
        self._pool = ThreadPoolExecutor(_VERIFY_THREADS, thread_name_prefix="argon2")
        self._hasher = argon2.PasswordHasher()
        self.verifications = 0

    @property
    def lookups(self) -> int:
        """Cold look-ups under way."""
        return len(self._lookups)

    @property
    def known_count(self) -> int:
        return len(self._callers)

    def digest(self, token: bytes) -> Digest:
        return digest(self._pepper, token)

    def known(self, token_digest: bytes) -> Caller | None:
        """The warm path: who this digest stands for, if it was seen before."""
        return self._callers.get(token_digest)

    def forget(self, token_digest: bytes) -> None:
        """Redis has another digest for the key, or none: look it up again next time."""
        self._callers.pop(token_digest, None)

    async def recognise(self, token: bytes, token_digest: Digest) -> Caller | Refusal:
        """The cold path, one look-up a digest however many requests wait for it. `token` has passed `key_id_of`."""
        caller = self._callers.get(token_digest)
        if caller is not None:
            return caller
        lookup = self._lookups.get(token_digest)
        if lookup is None:
            key_id = key_id_of(token)
            if key_id is None:
                return INVALID
            if len(self._lookups) >= self._lookups_max:
                return OVERLOADED
            lookup = asyncio.create_task(self._look_up(key_id, token, token_digest), name="look up key")
            self._lookups[token_digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(token_digest, None))
        return await asyncio.shield(lookup)

    async def readopt(self, caller: Caller, token_digest: Digest) -> Caller | Refusal:
        """Admit found another digest than this known caller's, or none. That the digest is the key's was proved when the
        caller became known, so a record that has lost its digest (Redis was rebuilt) is given it again."""
        key_id = caller.identity.key_id
        try:
            facts = await self._read(key_id)
            if facts is None:
                return INVALID if await self._is_loaded() else NOT_READY
            if facts.digest is None and not await self._adopt(key_id, facts.token_hash, token_digest):
                return INVALID
            if facts.digest not in (None, token_digest):
                return INVALID
        except PipeLost:
            return NOT_READY
        except hiredis.ReplyError as error:
            self._ledger.note_error(error)
            return NOT_READY
        self._remember(token_digest, caller)
        return caller

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, key_id: KeyId, token: bytes, token_digest: Digest) -> Caller | Refusal:
        try:
            facts = await self._read(key_id)
            if facts is None:
                return INVALID if await self._is_loaded() else NOT_READY
            if facts.digest is None:
                if not await self._verify_once(key_id, token, token_digest):
                    return INVALID
            elif facts.digest != token_digest:
                return INVALID
        except PipeLost:
            return NOT_READY
        except hiredis.ReplyError as error:
            self._ledger.note_error(error)
            return NOT_READY
        except argon2.exceptions.VerificationError as error:  # neither proved nor disproved
            log.error("token_hash_not_verified", key=key_id, error=str(error))
            return NOT_READY
        caller = Caller.prepare(facts.identity, token_digest, self._names)
        self._remember(token_digest, caller)
        return caller

    def _remember(self, token_digest: Digest, caller: Caller) -> None:
        if len(self._callers) >= CALLERS_MAX:
            self._callers.clear()
        self._callers[bytes(token_digest)] = caller

    async def _read(self, key_id: KeyId) -> KeyFacts | None:
        values = await self._ledger.pipe.call("HMGET", self._names.key(key_id), *IDENTITY_FIELDS)
        try:
            return read_key_facts(key_id, values)
        except ValueError:  # not text
            log.error("unreadable_key_record", key=key_id)
            return None

    async def _is_loaded(self) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._ledger.confirm_loaded(answer.set_result)
        return await answer

    async def _verify_once(self, key_id: KeyId, token: bytes, token_digest: Digest) -> bool:
        """argon2id in the pool, one at a time for each key: a second token of the same key finds the digest there."""
        lock = self._verifying.setdefault(key_id, asyncio.Lock())
        async with lock:
            fresh = await self._read(key_id)
            if fresh is None:
                return False
            if fresh.digest is not None:
                return fresh.digest == token_digest
            self.verifications += 1
            loop = asyncio.get_running_loop()
            if not await loop.run_in_executor(self._pool, self._matches, fresh.token_hash, token):
                return False
            return await self._adopt(key_id, fresh.token_hash, token_digest)

    async def _adopt(self, key_id: KeyId, token_hash: str, token_digest: Digest) -> bool:
        name = self._names.key(key_id)
        return bool(
            await self._ledger.pipe.call("EVALSHA", scripts.ADOPT.sha, 1, name, token_hash, token_digest) == 1
        )

    def _matches(self, token_hash: str, token: bytes) -> bool:
        try:
            return self._hasher.verify(token_hash, token)
        except argon2.exceptions.VerifyMismatchError:
            return False
        except argon2.exceptions.InvalidHashError:
            log.error("unreadable_token_hash")
            return False
