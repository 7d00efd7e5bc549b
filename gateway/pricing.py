"""What a request costs, and what is held for it. Pure: integers of microcredits in, integers out.

A price is the sum of its parts: the request itself, its bytes each way, its seconds, and the units that its answer reports.
Parts that depend on a measure are rounded up to a whole microcredit once each, at the end of the request, so that the sum over
many small requests is never less than what was measured.

    cost      what it came to, by what was measured
    Estimate  what to hold for it before anything is
    RateTable rates that depend on a field of the request or of the answer, such as the model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.contract.money import AMOUNT_MAX, Microcredits
from gateway.json_pointer import Pointer


@dataclass(frozen=True, slots=True)
class Rate:
    """Microcredits for so many units: 600 000 for `per` = 1000 output tokens."""

    microcredits: Microcredits
    per: int = 1000

    def cost(self, count: int) -> int:
        return _round_up(count * self.microcredits, self.per)


Rates = Mapping[str, Rate]
"""Rates by unit."""

NO_RATES: Final[Rates] = {}


@dataclass(frozen=True, slots=True)
class RateTable:
    """Rates by what a field says: of the request's body, or of the answer. What is not in the table has the rates `otherwise`;
    None refuses such requests, which only a field of the request can do."""

    rows: Mapping[str, Rates]
    otherwise: Rates | None
    request: tuple[Pointer, ...] = ()
    answer: tuple[Pointer, ...] = ()

    def rates(self, value: str | None) -> Rates | None:
        """The rates for what the field says, None if it says nothing; None where there are none: refuse."""
        return self.otherwise if value is None else self.rows.get(value, self.otherwise)


@dataclass(frozen=True, slots=True)
class Price:
    """Rates in microcredits: for the request itself, per KiB of body each way, per second from admission to end, and per unit
    that the answer reports. `cap` bounds what one request may cost."""

    request: Microcredits = Microcredits(0)
    kib_in: Microcredits = Microcredits(0)
    kib_out: Microcredits = Microcredits(0)
    second: Microcredits = Microcredits(0)
    units: Rates = field(default_factory=dict)
    table: RateTable | None = None
    cap: Microcredits = AMOUNT_MAX
    charges_failures: bool = False
    """Whether a request costs something whose upstream failed before it answered."""

    @property
    def is_fixed(self) -> bool:
        """True if the cost is known before the request is forwarded."""
        return not (self.kib_in or self.kib_out or self.second or self.is_metered)

    @property
    def is_metered(self) -> bool:
        """True if the cost depends on what the answer says."""
        return bool(self.units) or self.table is not None

    def total(
        self,
        bytes_in: int,
        bytes_out: int,
        elapsed_ms: int,
        counts: Mapping[str, int] = {},
        rates: Rates = NO_RATES,
    ) -> int:
        """What one request that reached its upstream has come to; no more than `cap` of it is charged. `counts` are units that
        were reported, at `rates` (those of `units`, or a row of the table)."""
        total: int = self.request
        if self.kib_in:
            total += _round_up(bytes_in * self.kib_in, 1024)
        if self.kib_out:
            total += _round_up(bytes_out * self.kib_out, 1024)
        if self.second:
            total += _round_up(elapsed_ms * self.second, 1000)
        for unit, count in counts.items():
            rate = rates.get(unit)
            if rate is not None:
                total += rate.cost(count)
        return total

    def bytes_out_within(self, amount: int, already: int) -> float:
        """How many bytes may be sent before more than `amount` is reached, if all else has cost `already`; infinite where bytes
        cost nothing."""
        return max(amount - already, 0) * 1024 // self.kib_out if self.kib_out else float("inf")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What to hold: a fixed part, a part for each KiB of the body that is announced or there, and a part for the units that a
    field of the request's JSON body asks for (say `max_tokens`), at the unit's rate. `missing` units where it says nothing."""

    base: Microcredits = Microcredits(0)
    per_kib: Microcredits = Microcredits(0)
    json: tuple[Pointer, ...] = ()
    unit: str = ""
    missing: int = 0

    def amount(self, length: int, wanted: int | None, rates: Rates, cap: int) -> Microcredits:
        """Microcredits to hold for a body of `length` bytes (0 if that is not known) that asks for `wanted` units."""
        total = self.base + self.of_bytes(length)
        if self.json:
            total += rates[self.unit].cost(self.missing if wanted is None else wanted)
        return Microcredits(min(total, cap))

    def of_bytes(self, length: int) -> int:
        return _round_up(length * self.per_kib, 1024)


def _round_up(amount: int, unit: int) -> int:
    return -(-amount // unit)
