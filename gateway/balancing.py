"""Which of a route's targets a request goes to, and which are left out for a while. Pure: the time comes in as an argument.

The target with the fewest requests under way is taken; a target that has just come back counts as busier than it is, less so
as time goes by, so that it is not flooded. A target that fails several times in a row is ejected, for longer each time it
fails again without having done well in between. Where nobody is left, ejected targets are tried all the same (they may be
well, and a refusal would be certain); targets that a health check found ill are not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.routing import Ejection, HealthCheck

_SHARE_AT_FIRST: Final = 0.1


@dataclass(slots=True)
class Standing:
    """What is known of one target."""

    pending: int = 0
    """Requests under way at it, and connections being opened or waited for; whoever lends connections counts them."""
    failures: int = 0
    """In a row."""
    ejections: int = 0
    """Since it last did well for a while."""
    ejected_until: float = 0.0
    back_at: float = float("-inf")
    """When it came back, or came."""
    is_well: bool = True
    """What health checks say of it."""
    checks_against: int = 0
    """Health checks in a row that said otherwise than `is_well`."""

    def is_ejected(self, now: float) -> bool:
        return now < self.ejected_until

    def note_answer(self, now: float, ejection: Ejection) -> None:
        """It has answered."""
        self.failures = 0
        if self.ejections and now >= self.back_at + ejection.slow_start_s + ejection.for_s:
            self.ejections = 0

    def note_failure(self, now: float, ejection: Ejection) -> float:
        """It has failed: for how many seconds it is ejected now, or 0. One that is back from an ejection, and has not done well
        since, is ejected again at once."""
        if self.is_ejected(now):
            return 0.0
        self.failures += 1
        if self.failures < ejection.after_failures and not self.ejections:
            return 0.0
        seconds = min(ejection.for_s * 2.0 ** min(self.ejections, 32), ejection.for_max_s)
        self.ejections += 1
        self.failures = 0
        self.ejected_until = self.back_at = now + seconds
        return seconds

    def note_check(self, now: float, is_well: bool, check: HealthCheck) -> bool:
        """What a health check found; True if the target's standing changes with it."""
        if is_well == self.is_well:
            self.checks_against = 0
            return False
        self.checks_against += 1
        if self.checks_against < (check.healthy_after if is_well else check.unhealthy_after):
            return False
        self.is_well, self.checks_against = is_well, 0
        if is_well:
            self.back_at, self.ejected_until, self.failures = now, 0.0, 0
        return True

    def load(self, now: float, slow_start_s: float) -> float:
        """How busy it is to be taken for."""
        since_back_s = now - self.back_at
        if since_back_s >= slow_start_s:
            return float(self.pending)
        share = max(since_back_s / slow_start_s, _SHARE_AT_FIRST)
        return (self.pending + 1) / share


def choose(
    standings: Sequence[Standing],
    now: float,
    ejection: Ejection,
    *,
    first: int = 0,
    avoided: Collection[int] = (),
) -> int | None:
    """The position of the target to take; None if all are avoided or ill. Of equals, the one at or after `first`."""
    count = len(standings)
    best, fallback = None, None
    least, soonest = 0.0, 0.0
    for step in range(count):
        position = (first + step) % count
        standing = standings[position]
        if not standing.is_well or position in avoided:
            continue
        if standing.is_ejected(now):
            if fallback is None or standing.ejected_until < soonest:
                fallback, soonest = position, standing.ejected_until
            continue
        load = standing.load(now, ejection.slow_start_s)
        if best is None or load < least:
            best, least = position, load
    return fallback if best is None else best
