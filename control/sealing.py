"""Secrets at rest: sealed with AES-256-GCM under a key that is derived from the pepper, which is not in the database.

Each use has a key of its own (HKDF-SHA-256, RFC 5869, by the purpose), and what is sealed is bound to the row it belongs to:
moved to another one, it does not open. Called where such a row is written, and by those who need the secret.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.contract.token import Pepper

_VERSION: Final = b"\x01"
_NONCE_LENGTH: Final = 12
_KEY_LENGTH: Final = 32


class SealBroken(Exception):
    """It does not open: sealed under another pepper, moved here from another row, or damaged."""


class Sealing:
    """Seals and opens the secrets of one purpose, such as "alert-destinations"."""

    def __init__(self, pepper: Pepper, purpose: str) -> None:
        derivation = HKDF(
            algorithm=SHA256(), length=_KEY_LENGTH, salt=None, info=f"tollkeeper/{purpose}/v1".encode()
        )
        self._cipher = AESGCM(derivation.derive(pepper))

    def seal(self, secret: str, row: str) -> bytes:
        """Version (1 byte), nonce (12), ciphertext and tag (16 more than the secret's UTF-8). `row` names where it belongs."""
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret.encode(), row.encode())

    def open(self, sealed: bytes, row: str) -> str:
        """The secret that was sealed for this row. Raises SealBroken."""
        if sealed[:1] != _VERSION:
            raise SealBroken("sealed in a form that this version does not know")
        nonce, ciphertext = sealed[1 : 1 + _NONCE_LENGTH], sealed[1 + _NONCE_LENGTH :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, row.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise SealBroken("does not open with this pepper for this row") from error
