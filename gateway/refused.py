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
"""Until a count that is new is written. After that, as it grows, each time twice as long: six times or so in a minute."""
ROWS_MAX: Final = 50_000
"""Different counts of a minute that are kept; beyond, refusals are counted in the metrics only."""

OBSERVED: Final[Mapping[bytes, Reason]] = {
    b"budget": Reason.BUDGET_EXCEEDED, b"rate": Reason.RATE_LIMITED, b"in_flight": Reason.TOO_MANY_IN_FLIGHT,
}  # fmt: skip
"""What admit says that an observing level would have refused for."""

_MINUTE_MS: Final = 60_000
_AT_ONCE: Final = float("inf")


class _What(NamedTuple):
    """What is counted as one row."""

    caller: Caller
    route: str
    reason: str
    level: str
    observed: bool
    minute_ms: int


class _Count:
    """What is not written yet, when it is to be, and how long to wait the time after."""

    __slots__ = ("due", "pause_s", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.due = 0.0
        self.pause_s = FLUSH_S


class RefusalCounts:
    """Counts of one worker, written to the streams: soon, and ever more seldom as long as they go on."""

    def __init__(self, ledger: Ledger, worker_id: str) -> None:
        self._ledger = ledger
        self._worker_id = worker_id
        self._counts: defaultdict[_What, _Count] = defaultdict(_Count)
        self._flushes = 0
        self._due = 0.0

    def add(self, caller: Caller, route: str, reason: Reason, level: str, *, observed: bool = False) -> None:
        """One more request of a known key that was refused, or would have been."""
        what = _What(caller, route, reason.value, level, observed, _minute_ms())
        if what in self._counts or len(self._counts) < ROWS_MAX:
            self._counts[what].waiting += 1

    def on_tick(self, now: float) -> None:
        if now >= self._due:
            self._due = now + FLUSH_S
            self.flush(now)

    def flush(self, now: float = _AT_ONCE) -> None:
        """Write what is due of what was counted, or everything; a count that is not taken is kept. Those of a minute that is
        over are forgotten once they are written."""
        if not self._counts or not self._ledger.is_ready:
            return
        minute_ms = _minute_ms()
        gathered: list[tuple[_What, int]] = []
        for what, counted in list(self._counts.items()):
            if counted.waiting and (now >= counted.due or what.minute_ms != minute_ms):
                gathered.append((what, counted.waiting))
                counted.waiting, counted.due = 0, now + counted.pause_s
                counted.pause_s *= 2
            if what.minute_ms != minute_ms and not counted.waiting:
                del self._counts[what]
        self._flushes += 1
        for position, (what, count) in enumerate(gathered):
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
                self._counts[what].waiting += count

        if not self._ledger.append_event(what.caller.shard, event, on_reply):
            self._counts[what].waiting += count


def _minute_ms() -> int:
    return int(time.time() * 1000) // _MINUTE_MS * _MINUTE_MS
