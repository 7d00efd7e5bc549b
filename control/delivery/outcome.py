"""What became of an attempt to tell a destination something. Pure.

The words of libraries are not repeated: they quote addresses, and a Slack webhook's address is its secret.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """`error` is None if it was taken; `note` is what it said beside. `status` is of HTTP, or an SMTP reply code."""

    error: str | None = None
    status: int | None = None
    milliseconds: int = 0
    note: str | None = None
    is_gone: bool = False
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        return self.error is None
