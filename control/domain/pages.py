"""Pages of a list: newest first, continued by an opaque cursor. Pure.

A cursor holds the place of the last row shown (its time of creation and its id), so a page is never skipped or repeated
because something was created meanwhile.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Generic, TypeVar

import orjson

from control.domain.refusals import Invalid

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 200
_CURSOR_LENGTH_MAX: Final = 200

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: at most `limit` rows, those after (`before`, `before_id`) in descending order."""

    limit: int = LIMIT_DEFAULT
    before: datetime | None = None
    before_id: str = ""


@dataclass(frozen=True, slots=True)
class Listing(Generic[Row]):
    """Rows of one page, and the cursor of the next; None if there is none."""

    rows: list[Row]
    next: str | None


def page(limit: int, cursor: str | None) -> Page:
    """Raises Invalid for a cursor that did not come out of a `Listing`."""
    if cursor is None:
        return Page(limit)
    try:
        if len(cursor) > _CURSOR_LENGTH_MAX:
            raise ValueError("too long")
        micros, identifier = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(micros, int) or not isinstance(identifier, str) or "\0" in identifier:
            raise ValueError("other types")
        return Page(
            limit,
            datetime.fromtimestamp(micros // 1_000_000, UTC).replace(microsecond=micros % 1_000_000),
            identifier,
        )
    except (ValueError, TypeError, OverflowError, OSError, binascii.Error):
        raise Invalid.field("cursor", "is not one that a list answered with", code="invalid_cursor") from None


def listing(rows: Sequence[Row], page: Page, place: Callable[[Row], tuple[datetime, str]]) -> Listing[Row]:
    """Cut what was read (one row more than the page's limit) into the page and the cursor of the next."""
    kept = list(rows[: page.limit])
    return Listing(kept, _cursor(*place(kept[-1])) if len(rows) > page.limit else None)


def _cursor(created_at: datetime, identifier: str) -> str:
    micros = int(created_at.timestamp()) * 1_000_000 + created_at.microsecond
    return base64.urlsafe_b64encode(orjson.dumps([micros, identifier])).decode().rstrip("=")
