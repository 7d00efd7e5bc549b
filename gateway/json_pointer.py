"""JSON pointers (RFC 6901): where in a document a value is. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
"""What a document is once it is read."""

POINTER_LENGTH_MAX: Final = 256
POINTER_DEPTH_MAX: Final = 16

_BAD_TILDE: Final = re.compile(r"~(?![01])")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Pointer:
    """The names on the way to a value, unescaped: `/usage/a~1b` is ("usage", "a/b"), "" (the whole document) is ()."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join("/" + name.replace("~", "~0").replace("/", "~1") for name in self.names)


def parse_pointer(text: str) -> Pointer:
    """Raises ValueError, with a sentence that says what is wrong and how it should look."""
    if len(text) > POINTER_LENGTH_MAX:
        raise ValueError(f"a JSON pointer has at most {POINTER_LENGTH_MAX} characters, this one {len(text)}")
    if not text:
        return Pointer(())
    if not text.startswith("/"):
        raise ValueError(
            f'a JSON pointer starts with "/": write "/{text.replace(".", "/")}" instead of "{text}"'
        )
    if _BAD_TILDE.search(text):
        raise ValueError(
            f'in a JSON pointer "~" is written "~0" and "/" in a name "~1"; "{text}" has another "~"'
        )
    names = tuple(name.replace("~1", "/").replace("~0", "~") for name in text[1:].split("/"))
    if len(names) > POINTER_DEPTH_MAX:
        raise ValueError(f"a JSON pointer has at most {POINTER_DEPTH_MAX} names, this one {len(names)}")
    return Pointer(names)


def position(name: str) -> int | None:
    """The place in an array that a name in a pointer stands for; None if it can only be a name in an object."""
    return int(name) if _INDEX.fullmatch(name) else None


def has_one_spelling(name: str) -> bool:
    """Whether JSON can write this name in one way only, but for \\u00XX."""
    return name.isascii() and name.isprintable() and not set(name) & set('"\\/')


NOWHERE: Final[dict[str, JsonValue]] = {}
"""Where a pointer leads if there is nothing: this very object (ask with `is`)."""


def look_up(document: JsonValue, names: tuple[str, ...]) -> JsonValue:
    """The value there, or NOWHERE."""
    for name in names:
        if isinstance(document, dict):
            document = document.get(name, NOWHERE)
        elif isinstance(document, list):
            at = position(name)
            document = document[at] if at is not None and at < len(document) else NOWHERE
        else:
            return NOWHERE
    return document
