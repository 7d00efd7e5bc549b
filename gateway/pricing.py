"""What a request costs. Pure: integers of microcredits in, integers out.

A price is the sum of its parts. Parts that depend on a measure are rounded up once, at the end of the request, so that the
sum over many small requests is never less than what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.contract.money import AMOUNT_MAX, Microcredits


@dataclass(frozen=True, slots=True)
class Price:
    """Rates in microcredits: for the request itself, per KiB of body each way, and per second from admission to end."""

    request: Microcredits = Microcredits(0)
    kib_in: Microcredits = Microcredits(0)
    kib_out: Microcredits = Microcredits(0)
    second: Microcredits = Microcredits(0)

    @property
    def is_fixed(self) -> bool:
        """True if the cost is known before the request is forwarded."""
        return not (self.kib_in or self.kib_out or self.second)

    def cost(self, bytes_in: int, bytes_out: int, elapsed_ms: int) -> Microcredits:
        """The cost of one request that reached its upstream."""
        if self.is_fixed:
            return self.request
        measured = (
            _round_up(bytes_in * self.kib_in, 1024)
            + _round_up(bytes_out * self.kib_out, 1024)
            + _round_up(elapsed_ms * self.second, 1000)
        )
        return Microcredits(min(self.request + measured, AMOUNT_MAX))


def _round_up(amount: int, unit: int) -> int:
    return -(-amount // unit)
