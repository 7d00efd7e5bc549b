"""Grants of a prepaid organization that expire: where each ends on the line of all credits granted, and what is lost. Pure.

`scripts/grants.lua` computes the same in Redis, which is where losses are booked; here they are only foreseen, for what is
shown and for where a new grant goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.contract.money import Microcredits

_PACKED: Final = re.compile(r"(\d+):(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Grant:
    """A part of the credits that expires, and where it ends on the line."""

    expires_at_ms: int
    end: Microcredits


def packed(grants: Iterable[Grant]) -> str:
    """As the record of the organization has them: "expires_at_ms:end,…", soonest first; '' for none."""
    return ",".join(f"{grant.expires_at_ms}:{grant.end}" for grant in grants)


def unpacked(text: str) -> tuple[Grant, ...]:
    """The grants in a record's field."""
    return tuple(Grant(int(expires_at), Microcredits(int(end))) for expires_at, end in _PACKED.findall(text))


def lost_by(grants: Iterable[Grant], now_ms: int, used: int, lost: int) -> Microcredits:
    """What is lost at `now_ms` if `used` is spent or held and `lost` is booked. `grants`: soonest first."""
    for grant in grants:
        if now_ms < grant.expires_at_ms:
            break
        lost = max(lost, grant.end - used)
    return Microcredits(lost)
