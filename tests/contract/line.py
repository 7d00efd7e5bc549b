"""Prepaid credits as their publisher lays them: all on one line, used up from its start, those that expire first in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from gateway.contract.grants import Grant
from gateway.contract.money import Microcredits
from gateway.contract.periods import NEVER_ENDS_MS

NO_EXPIRY_MS: Final = NEVER_ENDS_MS
"""When a grant without expiry expires."""


def with_grant(
    line: Sequence[Grant], amount: int, expires_at_ms: int, *, gone: int, now_ms: int
) -> list[Grant]:
    """The line with one more grant: after those that expire no later, and after what is gone (spent, lost, or of grants
    that have expired); those that expire later move on."""
    expired = [grant.end for grant in line if grant.expires_at_ms <= now_ms]
    before = [grant for grant in line if grant.expires_at_ms <= expires_at_ms]
    after = [grant for grant in line if grant.expires_at_ms > expires_at_ms]
    start = max([gone, *expired, *(grant.end for grant in before)])
    moved = [replace(grant, end=Microcredits(max(grant.end, start) + amount)) for grant in after]
    return [*before, Grant(expires_at_ms, Microcredits(start + amount)), *moved]


def expiring(line: Sequence[Grant]) -> tuple[Grant, ...]:
    """Those that Redis is told of."""
    return tuple(grant for grant in line if grant.expires_at_ms != NO_EXPIRY_MS)


def end_of(line: Sequence[Grant], otherwise: int = 0) -> Microcredits:
    """Where the last grant ends: the limit, of which what is lost goes off."""
    return Microcredits(max((grant.end for grant in line), default=otherwise))
