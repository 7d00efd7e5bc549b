"""Refused requests, counted for the ledger: by key, route, reason, level and minute, so that a flood of them is a number. Acts.

Beside them stand the requests that a level which only observes would have refused.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.contract.usage_event import RefusalCount
from gateway.redis_pipe import PipeLost, Reply
from gateway.refusals import Reason

if TYPE_CHECKING:
    from gateway.caller import Caller
    from gateway.ledger import Ledger

FLUSH_S: Final = 0.5
ROWS_MAX: Final = 10_000
"""Different counts that are kept between two flushes; beyond, refusals are counted in the metrics only."""

OBSERVED: Final[Mapping[bytes, Reason]] = {
    b"budget": Reason.BUDGET_EXCEEDED, b"rate": Reason.RATE_LIMITED, b"in_flight": Reason.TOO_MANY_IN_FLIGHT,
}  # fmt: skip
"""What admit says that an observing level would have refused for."""

_MINUTE_MS: Final = 60_000


class _What(NamedTuple):
    """What is counted as one row."""

    caller: Caller
    route: str
    reason: str
    level: str
    observed: bool
    minute_ms: int


class RefusalCounts:
    """Counts of one worker, written to the streams a few times a second."""

    def __init__(self, ledger: Ledger, worker_id: str) -> None:
        self._ledger = ledger
        self._worker_id = worker_id
        self._counts: defaultdict[_What, int] = defaultdict(int)
        self._flushes = 0
        self._due = 0.0

    def add(self, caller: Caller, route: str, reason: Reason, level: str, *, observed: bool = False) -> None:
        """One more request of a known key that was refused, or would have been."""
        minute_ms = int(time.time() * 1000) // _MINUTE_MS * _MINUTE_MS
        what = _What(caller, route, reason.value, level, observed, minute_ms)
        if what in self._counts or len(self._counts) < ROWS_MAX:
            self._counts[what] += 1

    def on_tick(self, now: float) -> None:
        if now >= self._due:
            self._due = now + FLUSH_S
            self.flush()

    def flush(self) -> None:
        """Write what was counted since the last time; a count that is not taken is kept."""
        if not self._counts or not self._ledger.is_ready:
            return
        gathered, self._counts = self._counts, defaultdict(int)
        self._flushes += 1
        for position, (what, count) in enumerate(gathered.items()):
            identity = what.caller.identity
            event = RefusalCount(
                id=f"{self._worker_id}-{self._flushes}-{position}", minute_ms=what.minute_ms,
                organization=identity.organization_tag, account=identity.account_id, key=identity.key_id,
                route=what.route, reason=what.reason, count=count, level=what.level, observed=what.observed,
            )  # fmt: skip
            self._append(what, count, event.encode())

    def _append(self, what: _What, count: int, event: bytes) -> None:
        def on_reply(reply: Reply) -> None:
            if isinstance(reply, bytes):
                return
            # A lost connection leaves open whether the event was appended. A count too few is better than one too many.
            if not isinstance(reply, PipeLost):
                self._counts[what] += count

        if not self._ledger.append_event(what.caller.shard, event, on_reply):
            self._counts[what] += count
