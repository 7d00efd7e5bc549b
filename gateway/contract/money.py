"""Money: integer microcredits inside, decimal strings of credits at the edges. Pure.

One credit is 1 000 000 microcredits. Amounts stay under 2^53, above which Lua's numbers are no longer exact.
"""

from __future__ import annotations

import re
from typing import Final, NewType

Microcredits = NewType("Microcredits", int)

MICROCREDITS_PER_CREDIT: Final = 1_000_000
AMOUNT_MAX: Final = Microcredits(1_000_000_000 * MICROCREDITS_PER_CREDIT)
"""A thousand million credits: the largest limit, price or hold that is accepted (10^15 < 2^53)."""

_CREDITS: Final = re.compile(r"(\d{1,10})(?:\.(\d{1,6}))?", re.ASCII)


class MoneyError(ValueError):
    """A string that is not an amount of credits; the message says what is wrong with it, for people."""


def parse_credits(text: str) -> Microcredits:
    """Read "12", "0.5" or "0.000001" as microcredits.

    Raises MoneyError for a sign, an exponent, NaN, infinity, more than six decimals or more than a thousand million.
    """
    match = _CREDITS.fullmatch(text)
    if match is None:
        raise MoneyError(
            f'{text[:40]!r} is not an amount of credits: write digits with at most 6 decimals, as in "12.50", and at most '
            "1000000000"
        )
    whole, decimals = match[1], match[2] or ""
    amount = int(whole) * MICROCREDITS_PER_CREDIT + int(decimals.ljust(6, "0"))
    if amount > AMOUNT_MAX:
        raise MoneyError(f"{text!r} credits is more than the largest amount, 1000000000")
    return Microcredits(amount)


def format_credits(amount: int) -> str:
    """Microcredits as a decimal string without trailing zeros: 1500000 -> "1.5", 0 -> "0", -1 -> "-0.000001"."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), MICROCREDITS_PER_CREDIT)
    if fraction == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:06d}".rstrip("0")
