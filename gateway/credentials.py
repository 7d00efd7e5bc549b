"""Where a request may carry its token: Bearer, the password of Basic, or X-Api-Key. Pure.

Basic is what `git` and package managers send; its user name is ignored. A token in the query is never looked at: queries end
up in logs.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from gateway.http1.fields import Kind

CREDENTIALS_LENGTH_MAX: Final = 512


def token_in(scheme: Kind | None, value: bytes | None) -> bytes | None:
    """The token in the value of Authorization or X-Api-Key; None if there is none, b"" if it cannot be one."""
    if value is None:
        return None
    if len(value) > CREDENTIALS_LENGTH_MAX:
        return b""
    if scheme is Kind.API_KEY:
        return value
    if value[:10] == b"Bearer tk_":  # as nearly everybody writes it
        return value[7:]
    word, _, rest = value.partition(b" ")
    word = word.lower()
    if word == b"bearer":
        return rest.strip(b" ")
    if word == b"basic":
        return _password(rest.strip(b" "))
    return b""


def _password(encoded: bytes) -> bytes:
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return b""
    _, colon, password = decoded.partition(b":")
    return password if colon else b""
