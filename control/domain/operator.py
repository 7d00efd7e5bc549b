"""The operator: whoever holds the one token that may do everything, until there are members and management tokens.

The token is made at the first start and shown once; Postgres keeps its argon2id hash only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from control.database import Connection
from control.domain.hashing import Hashing, hash_now
from control.domain.redaction import OPERATOR_TOKEN
from gateway.contract.ids import random_base62

ACTOR: Final = "operator"
PREFIX: Final = "tko_"

_ADVISORY_LOCK: Final = 0x746B_6F70_6572  # "tkoper"


async def ensure_operator_token(conn: Connection) -> str | None:
    """Make the operator's token if there is none: the token then, to be shown once; None if there is one already."""
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
        if await conn.fetchval("SELECT EXISTS (SELECT FROM operator_tokens)"):
            return None
        return await _make(conn)


async def renew_operator_token(conn: Connection) -> str:
    """A new token in place of all others, which stop working with this. For a token that was lost or leaked."""
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
        await conn.execute("DELETE FROM operator_tokens")
        return await _make(conn)


async def _make(conn: Connection) -> str:
    token = PREFIX + random_base62(43)
    await conn.execute("INSERT INTO operator_tokens (token_hash) VALUES ($1)", hash_now(token))
    return token


class OperatorGate:
    """Tells the operator's token from others.

    argon2id is computed once for a token; after that a digest under a key of this process's own is compared, so that
    neither a memory dump nor timing gives the token away. Whether the hash is still the valid one is read every time.
    """

    def __init__(self, hashing: Hashing) -> None:
        self._hashing = hashing
        self._digest_key: Final = secrets.token_bytes(32)
        self._known: tuple[bytes, str] | None = None

    async def admits(self, conn: Connection, token: str) -> bool:
        """Raises Overloaded if too many wrong tokens are being tried at once."""
        if OPERATOR_TOKEN.fullmatch(token) is None:
            return False
        valid = [row["token_hash"] for row in await conn.fetch("SELECT token_hash FROM operator_tokens")]
        digest = hashlib.blake2b(token.encode(), key=self._digest_key, digest_size=32).digest()
        if self._known is not None and hmac.compare_digest(self._known[0], digest):
            return self._known[1] in valid
        for token_hash in valid:
            if await self._hashing.matches(token_hash, token):
                self._known = (digest, token_hash)
                return True
        return False
