"""One request from its head to its settlement. Acts: it joins a client's connection, the ledger and an upstream's.

    admitted -> borrow a connection -> forward both ways -> finish: settle once, tell once

Everything here is a callback; nothing waits. Whatever happens, `_finish` runs once for an admitted request: it is the only
place that settles. A request that is not admitted ends in `Admission._refuse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import hiredis

from gateway.admission import Admission
from gateway.contract.money import Microcredits
from gateway.contract.usage_event import Outcome
from gateway.directory import OVERLOADED
from gateway.http1.chunked import LAST_CHUNK, encode_chunk
from gateway.http1.head import CHUNKED, RequestHead, ResponseHead
from gateway.http1.upstream import ConnectionFailed, UpstreamConnection
from gateway.recording import access_line, usage_event
from gateway.redis_pipe import Reply
from gateway.refusals import Reason, Refusal

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

EARLY_BYTES_MAX: Final = 65_536
"""Body bytes kept while the request waits to be admitted or connected; beyond, the client is not read."""

_REPLAYABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_WITHOUT_BODY: Final = frozenset((204, 304))
_CONNECTION_REFUSALS: Final = {
    "unreachable": Refusal(Reason.UPSTREAM_UNREACHABLE),
    "timeout": Refusal(
        Reason.UPSTREAM_TIMEOUT, detail="The gateway could not connect to the service in time."
    ),
    "full": OVERLOADED,
}
_NO_CONNECTION_IN_TIME: Final = Refusal(
    Reason.OVERLOADED, detail="No connection to the service became free in time. Try again shortly."
)


class Exchange(Admission):
    """See the module's docstring. Made by a client's connection for each request it has read the head of."""

    __slots__ = (
        "_answer_chunked", "_body_done", "_bytes_in", "_bytes_out", "_connection", "_early", "_early_size", "_extend_due",
        "_extending", "_headed_at", "_replayed", "_sent_at", "_status", "_touched", "_unsent",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        super().__init__(proxy, client, head, target, lane)
        self._touched = self._started
        self._extend_due = 0.0
        self._extending = False
        self._connection: UpstreamConnection | None = None
        self._replayed = False
        self._early: list[bytes] = []
        self._early_size = 0
        self._body_done = head.length == 0
        self._unsent = 0
        self._sent_at = 0.0
        self._headed_at = 0.0
        self._answer_chunked = False
        self._status = 0
        self._bytes_in = 0
        self._bytes_out = 0

    def _on_admitted(self) -> None:
        proxy = self._proxy
        proxy.in_flight += 1
        now = proxy.loop.time()
        proxy.metrics.admission.observe(now - self._started)
        self._touched = now
        self._extend_due = now + proxy.hold_ttl_s / 2
        if self._is_over:  # the client went while Redis was asked
            self._is_over = False
            self._finish("client_gone", charged=False)
            return
        connection = self._lane.pool.borrow(self)
        if connection is not None:
            self.on_connection(connection)

    # -- forwarding

    def on_connection(self, connection: UpstreamConnection) -> None:
        if self._is_over:
            connection.release()
            return
        self._connection = connection
        now = self._proxy.loop.time()
        self._sent_at = self._touched = now
        request = self._upstream_head()
        if self._early:
            early, self._early, self._early_size = b"".join(self._early), [], 0
            request += encode_chunk(early) if self.head.length == CHUNKED else early
        if self._body_done and self.head.length == CHUNKED:
            request += LAST_CHUNK
        self.client.resume_reading()  # first: what is written now may fill the upstream, and pause the client again
        connection.begin(self, request, is_head_request=self.head.method == b"HEAD")

    def on_no_connection(self, error: ConnectionFailed) -> None:
        if self._is_over:
            return
        self._proxy.metrics.events[f"upstream_{error.kind}"] += 1
        self._fail(_CONNECTION_REFUSALS[error.kind])

    def _upstream_head(self) -> bytes:
        head, lane, caller = self.head, self._lane, self._caller
        assert caller is not None
        if head.length == CHUNKED:
            framing = b"Transfer-Encoding: chunked\r\n"
        elif head.is_framed:
            framing = b"Content-Length: %d\r\n" % head.length
        else:
            framing = b""
        if head.expects_continue and head.length:
            framing += b"Expect: 100-continue\r\n"
        return b"".join(
            (
                head.method, b" ", lane.route.upstream_target(self._target), b" HTTP/1.1\r\nHost: ", lane.authority,
                b"\r\n", *head.fields, framing, caller.principal_fields, b"X-Request-Id: ", self.request_id, b"\r\n\r\n",
            )
        )  # fmt: skip

    def on_request_body(self, data: bytes) -> None:
        """Bytes of the client's body, without framing."""
        self._bytes_in += len(data)
        if self._is_over:
            return
        connection = self._connection
        if connection is None:
            self._early.append(data)
            self._early_size += len(data)
            if self._early_size > EARLY_BYTES_MAX:
                self.client.pause_reading()
            return
        self._touched = self._proxy.loop.time()
        connection.write(encode_chunk(data) if self.head.length == CHUNKED else data)

    def on_request_end(self) -> None:
        """The client's body is whole."""
        self._body_done = True
        if self._connection is not None and not self._is_over:
            self._touched = self._proxy.loop.time()
            if self.head.length == CHUNKED:
                self._connection.write(LAST_CHUNK)

    def on_interim(self, head: ResponseHead) -> None:
        if self.head.minor == 1:
            if head.length >= 0:
                head.drop_length()
            self.client.write(b"HTTP/1.1 %b\r\n%b\r\n" % (head.status_text, head.fields))
        self._touched = self._proxy.loop.time()

    def on_answer_head(self, head: ResponseHead, has_body: bool, first: bytes) -> None:
        now = self._proxy.loop.time()
        self._headed_at = self._touched = now
        self._proxy.metrics.upstream.observe(now - self._sent_at)
        self._status = head.status
        client = self.client
        length = head.length
        framing = b""
        if length >= 0:
            if head.status == 204:
                head.drop_length()
        elif has_body:
            if self.head.minor == 1:
                self._answer_chunked = True
                framing = b"Transfer-Encoding: chunked\r\n"
            else:
                client.close_after_answer()
        elif length == CHUNKED and head.status not in _WITHOUT_BODY and self.head.minor == 1:
            framing = b"Transfer-Encoding: chunked\r\n"
        if not self._body_done:
            client.close_after_answer()
        if client.is_write_paused:  # by an answer before this one, so nobody will tell us
            self.on_client_full()
        if first:
            self._bytes_out += len(first)
            if self._answer_chunked:
                first = encode_chunk(first)
        client.write(
            b"".join(
                (
                    b"HTTP/1.1 ", head.status_text, b"\r\n", head.fields, framing,
                    client.connection_field(), b"X-Request-Id: ", self.request_id, b"\r\n\r\n", first,
                )
            )
        )  # fmt: skip

    def on_answer_body(self, data: bytes) -> None:
        self._bytes_out += len(data)
        self._touched = self._proxy.loop.time()
        self.client.write(encode_chunk(data) if self._answer_chunked else data)

    def on_answer_end(self) -> None:
        connection, self._connection = self._connection, None
        if self._answer_chunked:
            self.client.write(LAST_CHUNK)
        if connection is not None:
            if self._body_done:
                connection.release()
            else:
                connection.abort()
        self._finish("completed")
        self.client.on_exchange_end()

    def on_upstream_lost(self) -> None:
        connection, self._connection = self._connection, None
        if self._is_over:
            return
        self._proxy.metrics.events["upstream_lost"] += 1
        if not self._headed_at and connection is not None and self._may_replay(connection):
            self._replayed = True
            replacement = self._lane.pool.borrow(self, fresh=True)
            if replacement is not None:
                self.on_connection(replacement)
            return
        self._fail(Refusal(Reason.UPSTREAM_FAILED))

    def _may_replay(self, connection: UpstreamConnection) -> bool:
        """Only what cannot run twice to harm: no body, an idempotent method, and a kept connection that went stale."""
        return (
            not self._replayed
            and connection.requests > 1
            and self.head.length == 0
            and self.head.method in _REPLAYABLE
        )

    def on_upstream_full(self) -> None:
        self.client.pause_reading()

    def on_upstream_drained(self) -> None:
        self._touched = self._proxy.loop.time()
        self.client.resume_reading()

    def on_client_full(self) -> None:
        """The client does not keep up with its answer: stop reading it from the upstream."""
        if self._connection is not None:
            self._connection.pause_reading()

    def on_client_drained(self) -> None:
        self._touched = self._proxy.loop.time()
        if self._connection is not None:
            self._connection.resume_reading()

    # -- ends

    def on_client_lost(self) -> None:
        """The client is gone: stop the upstream, bill what was used."""
        if self._is_over:
            return
        if self._hold is None:
            self._is_over = True  # an admission under way is settled when its answer comes
            return
        self._finish("client_gone", charged=self._sent_at > 0)

    def on_bad_body(self, refusal: Refusal) -> None:
        """The client's body is malformed, too large or too slow: nothing that follows it can be trusted."""
        if self._is_over:
            return
        self._fail(refusal, outcome="client_gone")

    def cut(self, detail: str) -> None:
        """End a running request: its key or account is no longer in force, or the gateway stops."""
        if not self._is_over:
            self._fail(Refusal(Reason.NOT_READY, detail=detail), outcome="cut")

    def on_tick(self, now: float) -> None:
        """A few times a second: is anybody standing still, is the hold about to run out?"""
        if self._hold is None or self._is_over:
            return
        if now >= self._extend_due and not self._extending:
            self._extend(now)
        settings, timeouts = self._proxy.settings, self._lane.route.timeouts
        connection = self._connection
        if connection is None:
            if now - self._touched > timeouts.connect_s + timeouts.first_byte_s:
                self._fail(_NO_CONNECTION_IN_TIME)
            return
        self._note_progress(now, connection)
        still_s = now - self._touched
        if self.client.is_write_paused:
            if still_s > settings.body_timeout_s:
                self._proxy.metrics.events["client_stalled"] += 1
                self._finish("client_gone")
                self.client.abort()
        elif not self._body_done and not self._headed_at:
            if self.client.is_read_paused:
                if still_s > timeouts.between_bytes_s:
                    self._fail(
                        Refusal(Reason.UPSTREAM_TIMEOUT, detail="The service stopped reading the request.")
                    )
            elif still_s > settings.body_timeout_s:
                self._fail(Refusal(Reason.REQUEST_TIMEOUT), outcome="client_gone")
        elif not self._headed_at:
            if still_s > timeouts.first_byte_s:
                self._fail(Refusal(Reason.UPSTREAM_TIMEOUT))
        elif still_s > timeouts.between_bytes_s:
            self._fail(Refusal(Reason.UPSTREAM_TIMEOUT))

    def _note_progress(self, now: float, connection: UpstreamConnection) -> None:
        """Bytes leaving a full buffer are progress too, though no callback tells of them."""
        unsent = self.client.unsent_bytes + connection.unsent_bytes
        if unsent != self._unsent:
            self._unsent, self._touched = unsent, now

    def _extend(self, now: float) -> None:
        caller, hold = self._caller, self._hold
        assert caller is not None
        assert hold is not None
        self._extending = self._proxy.ledger.extend(
            caller, hold, 0, self._proxy.hold_ttl_ms, self._on_extension
        )
        self._extend_due = now + self._proxy.hold_ttl_s / 4

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
        self.client.answer_refusal(refusal, self._lane.route.errors, self.request_id)

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
        if self._replayed or not self._sent_at:
            self._lane.pool.stop_waiting(self)
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
            proxy.access_log.write(access_line(self.client.address, event))
