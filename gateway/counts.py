"""What is at a place in a document: a count, a text that selects rates, or neither. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.json_pointer import NOWHERE
from gateway.json_scan import Absence, JsonScan
from gateway.pointer_tree import PointerTree

COUNT_MAX: Final = 2**53
"""A larger number is no count: not every reader of JSON gives it exactly. A sum ends here."""

FIELD_LENGTH_MAX: Final = 256
"""Characters of the text that selects rates; a longer one is as if it were not there."""

UNREADABLE: Final = -1
"""Something is there, and it is no count."""

Way = tuple[str, ...]
"""The names on the way to a place, as of a pointer."""


def count_of(value: object) -> int | None:
    """A whole number from 0 to COUNT_MAX, however it is written (12, 12.0, 1.2e1); None if this is anything else."""
    if type(value) is float and value.is_integer():
        value = int(value)
    # A bool is an int in Python and none in JSON.
    return value if type(value) is int and 0 <= value <= COUNT_MAX else None


def first_count(look: Callable[[Way], object], places: tuple[Way, ...]) -> int | None:
    """The count at the first of these places that has one; else UNREADABLE if there is anything at one of them, but null."""
    found = None
    for names in places:
        value = look(names)
        if type(value) is int and 0 <= value <= COUNT_MAX:
            return value
        if value is NOWHERE or value is None or value is Absence.MISSING:
            continue
        if (count := count_of(value)) is not None:
            return count
        found = UNREADABLE
    return found


def first_text(look: Callable[[Way], object], places: tuple[Way, ...]) -> str | None:
    """The first of these places that has a text, unless that is too long."""
    for names in places:
        value = look(names)
        if isinstance(value, str) and len(value) <= FIELD_LENGTH_MAX:
            return value
    return None


def scanned(text: bytes, tree: PointerTree, wanted: tuple[Way, ...]) -> Callable[[Way], object]:
    """What is at each place of a document that the quick reader refuses: for a text cut within a character ("\\ud83d"), which
    JSON allows, or because it is no JSON; then nothing can be read at any place."""
    scan = JsonScan(tree)
    scan.feed(text)
    return ended(scan, wanted)


def ended(scan: JsonScan, wanted: tuple[Way, ...]) -> Callable[[Way], object]:
    """What a scan has found at each place, now that the document is whole."""
    scan.end()
    return dict(zip(wanted, scan.values, strict=True)).__getitem__
