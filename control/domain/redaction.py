"""Secrets of ours in what callers write: found, and taken out of what is said back. Pure.

Somebody will paste a token where an id or a name belongs. It must not be kept, and not be repeated: answers are logged by
those who get them.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.contract.token import PATTERN

OPERATOR_TOKEN: Final = re.compile(r"tko_[0-9A-Za-z]{43}", re.ASCII)

_SECRET: Final = re.compile(PATTERN.pattern + b"|" + OPERATOR_TOKEN.pattern.encode())
_SHOWN: Final = "tk_…".encode()


def holds_secret(text: str) -> bool:
    """Whether a key's token or an operator token stands anywhere in `text`."""
    return _SECRET.search(text.encode(errors="replace")) is not None


def without_secrets(data: bytes) -> bytes:
    """`data` (UTF-8) with each token shown as tk_…."""
    return _SECRET.sub(_SHOWN, data)
