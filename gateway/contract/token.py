"""The token: the secret string a workload sends. Pure, but for the randomness of `mint`.

    tk_<key id, 16 base62>_<secret, 43 base62><checksum, 6 base62>

The secret has 256 bits. The checksum is CRC-32 of everything before it: a mistyped token is told apart without I/O, and
a scanner of leaked secrets has few false alarms. Neither is a defence: the digest and the argon2id hash are.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from typing import Final, NewType

from gateway.contract.ids import BASE62, KEY_ID_LENGTH, KeyId, OrganizationTag, new_key_id, random_base62

Token = NewType("Token", str)
Digest = NewType("Digest", bytes)
Pepper = NewType("Pepper", bytes)

PREFIX: Final = "tk_"
SECRET_LENGTH: Final = 43
CHECKSUM_LENGTH: Final = 6
TOKEN_LENGTH: Final = len(PREFIX) + KEY_ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH
DIGEST_LENGTH: Final = 32
PEPPER_LENGTH_MIN: Final = 16
PEPPER_LENGTH_MAX: Final = 64

PATTERN: Final = re.compile(rb"tk_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}")
"""Finds a token anywhere in bytes: for tests that search logs and dumps, and for scanners of leaks."""


def checksum(body: bytes) -> str:
    """CRC-32 of `body` as six base62 digits, most significant first."""
    value = zlib.crc32(body)
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, 62)
        digits.append(BASE62[digit])
    return "".join(reversed(digits))


def mint(tag: OrganizationTag) -> tuple[KeyId, Token]:
    """A new key id in the organization and the token that belongs to it."""
    key_id = new_key_id(tag)
    body = f"{PREFIX}{key_id}_{random_base62(SECRET_LENGTH)}"
    return key_id, Token(body + checksum(body.encode()))


def key_id_of(token: bytes) -> KeyId | None:
    """The key id inside a token whose shape and checksum are right; None for anything else. No I/O."""
    if len(token) != TOKEN_LENGTH or PATTERN.fullmatch(token) is None:
        return None
    body = token[:-CHECKSUM_LENGTH]
    if checksum(body).encode() != token[-CHECKSUM_LENGTH:]:
        return None
    return KeyId(token[len(PREFIX) : len(PREFIX) + KEY_ID_LENGTH].decode())


def digest(pepper: Pepper, token: bytes) -> Digest:
    """Keyed BLAKE2b-256 of the token: 32 bytes, useless without the pepper, 0.6 µs.

    It stands in for the token everywhere past the parser. It lives in Redis and in memory, never in Postgres.
    """
    return Digest(hashlib.blake2b(token, digest_size=DIGEST_LENGTH, key=pepper).digest())


def holds_token(data: bytes) -> bool:
    """Whether something shaped like a token stands anywhere in `data`, such as a URL that is about to be written down."""
    return b"tk_" in data and PATTERN.search(data) is not None


def hint(token: Token) -> str:
    """What a list may show of a token: its last four characters (they are checksum digits, not secret ones)."""
    return f"tk_…{token[-4:]}"
