"""The Lua scripts: the only code that touches counters and holds. Read once, at import; no other I/O.

Each opens with a paragraph that lists its KEYS, ARGV and answers, and says why it is right. Callers send EVALSHA with
`Script.sha` and, when Redis answers NOSCRIPT, load `Script.text` and send again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its name, its source, and the SHA-1 by which Redis knows it (40 hex digits)."""

    name: str
    text: str
    sha: str


def _load(name: str, *parts: str) -> Script:
    folder = files(__package__)
    text = "\n".join((folder / f"{part}.lua").read_text("utf-8") for part in (*parts, name))
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ADMIT: Final = _load("admit", "window", "grants")
SETTLE: Final = _load("settle", "window", "grants")
EXTEND: Final = _load("extend", "window", "grants")
PUBLISH: Final = _load("publish", "window")
ADOPT: Final = _load("adopt")
ALL: Final[tuple[Script, ...]] = (ADMIT, SETTLE, EXTEND, PUBLISH, ADOPT)
