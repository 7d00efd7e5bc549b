"""The hold of an admitted request: kept alive while the request runs, settled once. Acts.

Between admission and forwarding in the chain `Admission` -> `Holding` -> `exchange.Exchange`. Whatever happens to a request
ends in `_finish`: it is the only place that settles, and it does so once.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

import hiredis

from gateway.admission import Admission
from gateway.contract.money import Microcredits
from gateway.contract.usage_event import Outcome
from gateway.http1.head import RequestHead
from gateway.http1.upstream import UpstreamConnection
from gateway.recording import access_line, usage_event
from gateway.redis_pipe import Reply
from gateway.refusals import Reason, Refusal

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

TUNNEL_EXTENDED_EVERY_S: Final = 3.0
"""A tunnel asks this often whether its key and account are still in force: it is cut within 5 s of their end."""


class Holding(Admission):
    """See the module's docstring."""

    __slots__ = (
        "_bytes_in", "_bytes_out", "_connection", "_extend_due", "_extending", "_headed_at", "_is_tunnel", "_sent_at",
        "_status",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        super().__init__(proxy, client, head, target, lane)
        self._extend_due = 0.0
        self._extending = False
        self._connection: UpstreamConnection | None = None
        self._is_tunnel = False
        self._sent_at = 0.0
        self._headed_at = 0.0
        self._status = 0
        self._bytes_in = 0
        self._bytes_out = 0

    @abstractmethod
    def _begin_forwarding(self, now: float) -> None:
        """The request is admitted and its client still there."""

    def _on_admitted(self) -> None:
        proxy = self._proxy
        proxy.in_flight += 1
        now = proxy.loop.time()
        proxy.metrics.admission.observe(now - self._started)
        self._extend_due = now + proxy.hold_ttl_s / 2
        if self._is_over:  # the client went while Redis was asked
            self._is_over = False
            self._finish("client_gone", charged=False)
            return
        self._begin_forwarding(now)

    def cut(self, detail: str) -> None:
        """End a running request: its key or account is no longer in force, or the gateway stops."""
        if not self._is_over:
            self._fail(Refusal(Reason.NOT_READY, detail=detail), outcome="cut")

    def _extend(self, now: float) -> None:
        caller, hold = self._caller, self._hold
        assert caller is not None
        assert hold is not None
        self._extending = self._proxy.ledger.extend(
            caller, hold, 0, self._proxy.hold_ttl_ms, self._on_extension
        )
        every_s = self._proxy.hold_ttl_s / 4
        self._extend_due = now + (min(every_s, TUNNEL_EXTENDED_EVERY_S) if self._is_tunnel else every_s)

    def _on_extension(self, reply: Reply) -> None:
        self._extending = False
        if self._is_over:
            return
        if isinstance(reply, bytes):
            self._hold = reply
        elif isinstance(reply, list):
            self._proxy.metrics.events["cut_at_extension"] += 1
            is_gone = reply[0] == b"gone"
            self.cut(
                "The request's hold expired."
                if is_gone
                else "The request's key or account is no longer in force."
            )
        elif isinstance(reply, hiredis.ReplyError):
            self._proxy.ledger.note_error(reply)

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
        self._finish(outcome, charged=outcome != "upstream_failed" and self._sent_at > 0)
        self.client.answer_refusal(refusal, self._lane.route.errors, self.public_id)

    def _finish(self, outcome: Outcome, *, charged: bool = True) -> None:
        """Settle, count, log: once."""
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
        whole_s = proxy.loop.time() - self._started
        elapsed_ms = round(whole_s * 1000)
        cost = route.price.cost(self._bytes_in, self._bytes_out, elapsed_ms) if charged else Microcredits(0)
        event = usage_event(
            self.request_id, hold, caller.event_fields, self._lane.name, self.head, self._target.path, outcome,
            (
                self._status, self._bytes_in, self._bytes_out,
                round((self._headed_at - self._sent_at) * 1000) if self._headed_at else 0, elapsed_ms, cost,
            ),
        )  # fmt: skip
        proxy.ledger.settle(caller, hold, cost, event, frees=cost != route.hold)
        metrics = proxy.metrics
        metrics.requests[(route.name, outcome, self._status // 100)] += 1
        metrics.whole.observe(whole_s)
        metrics.bytes_in += self._bytes_in
        metrics.bytes_out += self._bytes_out
        metrics.cost += cost
        if cost > route.hold:
            metrics.overshoot += cost - route.hold
        if proxy.access_log.wants_line():
            proxy.access_log.write(access_line(self.client.address_of(self.head), event))
