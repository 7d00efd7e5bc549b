"""Names: which are accepted, what to suggest instead, and which are poor advice for the reader of a bill. Pure.

A name is an immutable slug; what people read is the display name, which is free text and may change.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from control.domain.redaction import holds_secret
from control.domain.refusals import Invalid

NAME_LENGTH_MAX: Final = 63
DISPLAY_NAME_LENGTH_MAX: Final = 200
DESCRIPTION_LENGTH_MAX: Final = 2000

_SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_RULE: Final = (
    "use 1 to 63 of a-z, 0-9 and hyphens, with a letter or digit at both ends (display_name takes free text)"
)
_SECRET: Final = "holds a token: a secret that would be shown in every list"
_CONTROL: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of Unicode: control characters, halves of surrogate pairs, and what breaks lines without being either."""
_OF_SEVERAL_LINES: Final = "\n\t\u2028\u2029"
_POOR: Final = re.compile(
    r"(?:.|\d+|(?:sa|service-account|serviceaccount|account|acc|api-?key|key|token|bot|user|test|testing|tmp|temp|foo|bar|baz"
    r"|new|default|my-?(?:account|key|bot)|untitled|asdf|qwerty|example|demo|abc|xxx)[-_ ]?\d*)",
    re.IGNORECASE,
)


def is_slug(text: str) -> bool:
    return _SLUG.fullmatch(text) is not None


def slug_of(text: str) -> str:
    """The nearest slug: "Production Worker" -> "production-worker"; empty if nothing of the text can be kept."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:NAME_LENGTH_MAX].strip("-")


def name_and_display_name(name: str | None, display_name: str | None) -> tuple[str, str]:
    """Both names of something new, each derived from the other where it is missing.

    Raises Invalid if the name is no slug (with a suggestion), or if there is nothing to derive it from.
    """
    if name is None:
        derived = slug_of(display_name or "")
        if not derived:
            raise Invalid.field("name", f"is missing; {_RULE}")
        return derived, display_name or derived
    if holds_secret(name):
        raise Invalid.field("name", _SECRET)
    if not is_slug(name):
        suggestion = slug_of(name) or None
        hint = f"; {suggestion!r} would do" if suggestion else ""
        raise Invalid.field("name", f"{name[:80]!r} is not a name: {_RULE}{hint}", suggestion=suggestion)
    return name, display_name or name


def advice(name: str) -> list[str]:
    """What to say about a name that will tell nobody what it stands for; empty for a good one."""
    if _POOR.fullmatch(name) is None:
        return []
    return [
        f"{name!r} says little to whoever reads the usage later; a name such as 'nightly-report' tells what runs."
    ]


def clean_text(text: str, *, length_max: int, multiline: bool = False) -> str:
    """Free text without surrounding space, on one line unless `multiline`. Raises ValueError if it is empty, too long, or has
    control characters or a token in it."""
    stripped = text.strip()
    if not stripped:
        raise ValueError("is empty")
    if len(stripped) > length_max:
        raise ValueError(f"has {len(stripped)} characters; at most {length_max} are kept")
    allowed = _OF_SEVERAL_LINES if multiline else ""
    if any(
        unicodedata.category(character) in _CONTROL and character not in allowed for character in stripped
    ):
        raise ValueError("has control characters" if multiline else "has control characters or line breaks")
    if holds_secret(stripped):
        raise ValueError(_SECRET)
    return stripped
