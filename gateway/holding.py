"""The hold of an admitted request: kept alive and topped up while the request runs, settled once. Acts.

Between estimating and forwarding in the chain `Admission` -> `Estimating` -> `Holding` -> `exchange.Exchange`. Whatever happens
to a request ends in `_finish`: it is the only place that settles, and it does so once.

A request that comes to cost more than is held has its hold topped up, by a step if there is room for one, else by what it
needs. Where no level has room for that, it is cut.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import hiredis

from gateway.contract.money import Microcredits
from gateway.contract.usage_event import Outcome
from gateway.estimating import Estimating
from gateway.http1.head import RequestHead
from gateway.http1.upstream import UpstreamConnection
from gateway.metering import AnswerReading
from gateway.pricing import Rates
from gateway.recording import access_line, amount_of, grown, usage_event
from gateway.redis_pipe import PipeLost, Reply
from gateway.refusals import Reason, Refusal, cut_for_budget, cut_for_cap, read_admission

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

TUNNEL_EXTENDED_EVERY_S: Final = 3.0
"""A tunnel asks this often whether its key and account are still in force: it is cut within 5 s of their end."""

UNCOVERED_MAX_S: Final = 1.0
"""How long an answer may go on that costs more than is held, while Redis cannot be asked for more."""

COMPANY_IN_FLIGHT: Final = 16
"""So many requests in flight make it worth a settlement's while to wait for company."""

_EVERYTHING: Final = float("inf")
_NOTHING: Final[Mapping[str, int]] = {}
_EXPIRED: Final = "The request's hold expired."
_NOT_IN_FORCE: Final = "The request's key or account is no longer in force."


class Holding(Estimating):
    """See the module's docstring."""

    __slots__ = (
        "_asked_for", "_bytes_in", "_bytes_out", "_connection", "_covered_bytes", "_estimate", "_extend_due", "_extending",
        "_headed_at", "_is_tunnel", "_other_hold", "_outgrown_at", "_reading", "_sent_at", "_status",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        super().__init__(proxy, client, head, target, lane)
        self._extend_due = 0.0
        self._extending = False
        self._estimate = 0
        """Microcredits that were held at the beginning."""
        self._asked_for = 0
        """Microcredits that the extension under way adds."""
        self._other_hold: bytes | None = None
        """What the hold is instead, if an extension went well of which no answer came (yet)."""
        self._outgrown_at = 0.0
        """Since when more was used than is held; 0.0: it is not."""
        self._covered_bytes = 0.0
        """Bytes of the answer that may pass before what it costs is to be looked at."""
        self._connection: UpstreamConnection | None = None
        self._reading: AnswerReading | None = None
        self._is_tunnel = False
        self._sent_at = 0.0
        self._headed_at = 0.0
        self._status = 0
        self._bytes_in = 0
        self._bytes_out = 0

    @abstractmethod
    def _begin_forwarding(self, now: float) -> None:
        """The request is admitted and its client still there."""

    @abstractmethod
    def _break_off(self, refusal: Refusal) -> None:
        """Finish in the middle of the answer, and tell the client that it ends here and why, where that can be told."""

    def _on_admitted(self) -> None:
        proxy = self._proxy
        proxy.in_flight += 1
        now = proxy.loop.time()
        proxy.metrics.admission.observe(now - self._started)
        self._extend_due = now + proxy.hold_ttl_s / 2
        self._estimate = self._held
        self._covered_bytes = _EVERYTHING if self._lane.is_fixed else 0.0
        if self._is_over:  # the client went while Redis was asked
            self._is_over = False
            self._finish("client_gone", charged=False)
            return
        self._begin_forwarding(now)

    def cut(self, detail: str) -> None:
        """End a running request, for a reason of the gateway's."""
        self._cut(Refusal(Reason.NOT_READY, detail=detail))

    def _cut(self, refusal: Refusal) -> None:
        """End a running request: its credits ran out, its key or account is no longer in force, or the gateway stops."""
        if self._is_over:
            return
        if self._hold is None or not self._headed_at:
            self._fail(refusal, outcome="cut")
        else:
            self._break_off(refusal)

    # -- what it costs, and whether that is held

    def _total(self, now: float) -> int:
        """What it has come to so far, in microcredits; the cap is not looked at."""
        reading = self._reading
        counts = reading.counts if reading is not None else _NOTHING
        return self._lane.route.price.total(
            self._bytes_in, self._bytes_out, round((now - self._started) * 1000), counts, self._rates_now()
        )

    def _rates_now(self) -> Rates:
        """The rates of the units: by what the answer says, if they depend on that."""
        table = self._lane.route.price.table
        if table is None or not table.answer:
            return self._rates
        return table.rates(self._reading.field if self._reading is not None else None) or self._rates

    def _look_at_cost(self, now: float) -> None:
        """Is what was used still held? If not, more is asked for, once at a time."""
        price = self._lane.route.price
        total = self._total(now)
        cost = min(total, price.cap)
        self._covered_bytes = self._bytes_out + price.bytes_out_within(self._held, cost)
        if self._reading is not None and self._reading.reports_early:
            self._covered_bytes = self._bytes_out
        if cost > self._held:
            self._outgrown_at = self._outgrown_at or now
            if self._connection is not None:
                self._connection.pause_reading()  # until it is held
            if not self._extending:
                step = min(self._lane.route.hold_step, price.cap - self._held)
                self._extend(now, max(cost - self._held, step))
        else:
            self._cover()
            if total > price.cap:
                refusal = cut_for_cap(self._lane.route.name, price.cap)
                self._cut(replace(refusal, status=self._lane.route.quota_status))
        if self._outgrown_at and now - self._outgrown_at > UNCOVERED_MAX_S:
            self.cut("The answer costs more than could be held for it.")

    def _cover(self) -> None:
        """What was used is held: the answer may go on."""
        if self._outgrown_at:
            self._outgrown_at = 0.0
            if self._connection is not None and not self.client.is_write_paused:
                self._connection.resume_reading()

    def _extend(self, now: float, added: int = 0) -> None:
        """Push the hold's deadline, and top it up. A grown hold is another one: until Redis has answered it may be either."""
        caller, hold = self._caller, self._hold
        assert caller is not None
        assert hold is not None
        if self._other_hold is not None:
            added = 0  # first it has to be known which of the two it is
        elif added:
            self._other_hold = grown(hold, added)
        self._asked_for = added
        self._extending = self._proxy.ledger.extend(caller, hold, added, self._on_extension)
        every_s = self._proxy.hold_ttl_s / 4
        self._extend_due = now + (min(every_s, TUNNEL_EXTENDED_EVERY_S) if self._is_tunnel else every_s)

    def _on_extension(self, reply: Reply) -> None:
        self._extending = False
        if self._is_over or isinstance(reply, PipeLost):
            return
        if isinstance(reply, bytes):
            self._other_hold = None
            self._take_hold(reply)
        elif isinstance(reply, list):
            other, self._other_hold = self._other_hold, None
            if reply[0] == b"gone" and other is not None:
                self._take_hold(other)
                if not self._extending:
                    self._extend(self._proxy.loop.time())
            else:
                self._on_not_extended(reply)
        elif isinstance(reply, hiredis.ReplyError):
            self._proxy.ledger.note_error(reply)

    def _take_hold(self, hold: bytes) -> None:
        self._hold = hold
        held = amount_of(hold)
        if held > self._held:
            self._proxy.metrics.events["hold_topped_up"] += 1
            self._held = held
            self._look_at_cost(self._proxy.loop.time())

    def _on_not_extended(self, reply: list[Any]) -> None:
        now = self._proxy.loop.time()
        events = self._proxy.metrics.events
        if reply[0] != b"budget":
            events["cut_at_extension"] += 1
            refusal = read_admission(reply, self._entities(), self._held, self._lane.route.quota_status)
            if refusal is not None:  # key or account is off by now: a new request would be told the same
                self._cut(refusal)
            else:
                self.cut(_EXPIRED if reply[0] == b"gone" else _NOT_IN_FORCE)
            return
        needed = max(min(self._total(now), self._lane.route.price.cap) - self._held, 1)
        if needed < self._asked_for:  # no room for a step: for what it takes, perhaps
            self._extend(now, needed)
            return
        events["cut_for_budget"] += 1
        level, counters = reply[1].decode(), (int(reply[2]), int(reply[3]), int(reply[4]), int(reply[5]))
        refusal = cut_for_budget(level, self._entities()[level], counters)
        self._cut(replace(refusal, status=self._lane.route.quota_status))

    # -- the end

    def _fail(self, refusal: Refusal, outcome: Outcome = "upstream_failed") -> None:
        """End a request badly: say so if the head is not sent yet, else break the answer off."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        if self._hold is None:
            self._refuse(refusal)  # an admission under way is settled when its answer comes
            return
        if self._headed_at:
            self._finish(outcome)
            self.client.break_off()
            return
        self._status = refusal.public_status
        self._proxy.metrics.refusals[(self._lane.route.name, refusal.reason.value)] += 1
        charged = outcome != "upstream_failed" or self._lane.route.price.charges_failures
        errors = self._lane.route.errors

        def tell() -> None:
            self.client.answer_refusal(refusal, errors, self.public_id)

        charged = charged and self._sent_at > 0
        if outcome == "client_gone":  # what still comes of its body is to be dealt with at once
            self._finish(outcome, charged=charged)
            tell()
        else:
            self._finish(outcome, charged=charged, then=tell)

    def _charge(self, outcome: Outcome, now: float) -> tuple[Microcredits, bool]:
        """What is charged, and whether that is estimated: where nobody said what was used, or not so that it can be read, or an
        answer that ended early said only a part of it, it is the larger of what was measured and what was held at the
        beginning."""
        reading = self._reading
        if reading is not None and outcome != "completed":
            reading.break_off()
        cost = min(self._total(now), self._lane.route.price.cap)
        is_metered = self._lane.meters is not None and (not self._headed_at or _is_served(self._status))
        if is_metered:
            is_partial = outcome != "completed"
            if (
                reading is None
                or not reading.counts
                or reading.unreadable
                or (is_partial and reading.missing)
            ):
                return Microcredits(max(cost, self._estimate_by_now())), True
        return Microcredits(cost), False

    def _estimate_by_now(self) -> int:
        """What was held at the beginning, and would have been for those bytes of the body that nobody foresaw."""
        estimate, price = self._lane.route.estimate, self._lane.route.price
        if estimate is None or self._bytes_in <= self._foreseen:
            return self._estimate
        unforeseen = estimate.of_bytes(self._bytes_in) - estimate.of_bytes(self._foreseen)
        return min(self._estimate + unforeseen, price.cap)

    def _finish(
        self, outcome: Outcome, *, charged: bool = True, then: Callable[[], None] | None = None
    ) -> None:
        """Settle, count, log: once. `then` tells the client that it is over: at once, or, if the request had one of a bounded
        number of places, when that is free again, so that a client which waits for the end may come at once."""
        if self._is_over:
            return
        self._is_over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        proxy, caller, hold, route = self._proxy, self._caller, self._hold, self._lane.route
        assert caller is not None
        assert hold is not None
        proxy.in_flight -= 1
        if connection is None and not self._headed_at:
            self._lane.targets.stop_waiting(self)
        now = proxy.loop.time()
        cost, is_estimated = self._charge(outcome, now) if charged else (Microcredits(0), False)
        event = self._event(hold, outcome, now, cost, is_estimated)
        other = self._other_hold
        frees = (
            cost != self._held or self._is_placed or other is not None or proxy.in_flight < COMPANY_IN_FLIGHT
        )
        proxy.ledger.settle(
            caller, hold, cost, event, frees=frees,
            otherwise=(other, self._event(other, outcome, now, cost, is_estimated)) if other is not None else None,
            then=then if self._is_placed else None,
        )  # fmt: skip
        metrics = proxy.metrics
        metrics.requests[(route.name, outcome, self._status // 100)] += 1
        metrics.whole.observe(now - self._started)
        metrics.bytes_in += self._bytes_in
        metrics.bytes_out += self._bytes_out
        metrics.cost += cost
        if cost > self._held:
            metrics.overshoot += cost - self._held
        if is_estimated:
            metrics.events["usage_not_reported"] += 1
        if proxy.access_log.wants_line():
            proxy.access_log.write(access_line(self.client.address_of(self.head), event))
        if then is not None and not self._is_placed:
            then()

    def _event(self, hold: bytes, outcome: Outcome, now: float, cost: int, is_estimated: bool) -> bytes:
        caller, reading = self._caller, self._reading
        assert caller is not None
        return usage_event(
            self.request_id, hold, caller.event_fields, self._lane.name, self.head, self._target.path, outcome,
            (
                self._status, self._bytes_in, self._bytes_out,
                round((self._headed_at - self._sent_at) * 1000) if self._headed_at else 0,
                round((now - self._started) * 1000), cost,
            ),
            reading.counts if reading is not None else _NOTHING, is_estimated=is_estimated,
        )  # fmt: skip


def _is_served(status: int) -> bool:
    """Whether an answer with this status used what the route meters; an error answer costs what was measured of it."""
    return 200 <= status < 300 or status == 101
