"""One request from its head to its settlement. Acts: it joins a client's connection, the ledger and an upstream's.

    begin -> recognise the token -> admit -> borrow a connection -> forward both ways -> finish: settle once, tell once

Everything here is a callback; nothing waits, and only the cold path (a token seen for the first time) makes a task. Whatever
happens, `_finish` runs once for an admitted request: it is the only place that settles. A request that is not admitted ends
in `_refuse`, and leaves no hold.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import hiredis
import orjson

from gateway.contract.money import Microcredits
from gateway.contract.token import TOKEN_LENGTH, Digest, key_id_of
from gateway.contract.usage_event import PATH_LENGTH_MAX, Outcome
from gateway.credentials import token_in
from gateway.directory import INVALID, NOT_READY, OVERLOADED
from gateway.http1.chunked import LAST_CHUNK, encode_chunk
from gateway.http1.head import CHUNKED, RequestHead, ResponseHead
from gateway.http1.upstream import ConnectionFailed, UpstreamConnection
from gateway.ledger import Caller
from gateway.redis_pipe import PipeLost, Reply
from gateway.refusals import Reason, Refusal, read_admission

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

EARLY_BYTES_MAX: Final = 65_536
"""Body bytes kept while the request waits to be admitted or connected; beyond, the client is not read."""

ATTRIBUTION_LENGTH_MAX: Final = 128
_REPLAYABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
_WITHOUT_BODY: Final = frozenset((204, 304))
_MISSING: Final = Refusal(Reason.MISSING_TOKEN)
_CONNECTION_REFUSALS: Final = {
    "unreachable": Refusal(Reason.UPSTREAM_UNREACHABLE),
    "timeout": Refusal(
        Reason.UPSTREAM_TIMEOUT, detail="The gateway could not connect to the service in time."
    ),
    "full": OVERLOADED,
}


class Exchange:
    """See the module's docstring. Made by a client's connection for each request it has read the head of."""

    __slots__ = (
        "_answer_chunked", "_body_done", "_bytes_in", "_bytes_out", "_caller", "_cold", "_connection", "_digest", "_early",
        "_early_size", "_extend_due", "_extending", "_headed_at", "_hold", "_is_over", "_lane", "_looked_again", "_proxy",
        "_replayed", "_request_id", "_sent_at", "_started", "_status", "_target", "_touched", "_unsent", "client", "head",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        self._proxy = proxy
        self.client = client
        self.head = head
        self._target = target
        self._lane = lane
        self._request_id = proxy.next_request_id()
        self._started = self._touched = proxy.loop.time()
        self._caller: Caller | None = None
        self._digest = Digest(b"")
        self._cold: asyncio.Task[None] | None = None
        self._looked_again = False
        self._hold: bytes | None = None
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
        self._is_over = False

    @property
    def request_id(self) -> bytes:
        return self._request_id

    @property
    def is_over(self) -> bool:
        """True once settled or refused: nothing that still arrives for it matters."""
        return self._is_over

    # -- who is calling

    def begin(self) -> None:
        """Recognise the token and ask for admission."""
        head = self.head
        token = token_in(head.scheme, head.token)
        head.token = None
        if token is None:
            self._refuse(_MISSING)
            return
        if len(token) != TOKEN_LENGTH:
            self._refuse(INVALID)
            return
        directory = self._proxy.directory
        self._digest = directory.digest(token)
        caller = directory.known(self._digest)
        if caller is not None:
            self._caller = caller
            self._admit()
        elif key_id_of(token) is None:
            self._refuse(INVALID)
        elif not self._proxy.ledger.is_ready:
            self._refuse(NOT_READY)
        else:
            self._cold = self._proxy.loop.create_task(self._recognise(token), name="recognise")

    async def _recognise(self, token: bytes) -> None:
        found = await self._proxy.directory.recognise(token, self._digest)
        if self._is_over:
            return
        if isinstance(found, Refusal):
            self._refuse(found)
        else:
            self._caller = found
            self._admit()

    # -- whether it may

    def _admit(self) -> None:
        ledger = self._proxy.ledger
        caller = self._caller
        assert caller is not None
        if not ledger.is_ready:
            self._refuse(NOT_READY)
        elif ledger.pipe.is_full:
            self._refuse(OVERLOADED)
        elif not ledger.admit(
            caller, self._lane.admit_arguments, self._request_id, self._lane.name, self._on_admission
        ):
            self._refuse(NOT_READY)

    def _on_admission(self, reply: Reply) -> None:
        if type(reply) is bytes:
            proxy = self._proxy
            self._hold = reply
            proxy.in_flight += 1
            now = proxy.loop.time()
            proxy.metrics.admission.observe(now - self._started)
            self._touched = now
            self._extend_due = now + proxy.settings.hold_ttl_s / 2
            if self._is_over:
                self._is_over = False
                self._finish("client_gone", charged=False)
                return
            connection = self._lane.pool.borrow(self)
            if connection is not None:
                self.on_connection(connection)
            return
        if not self._is_over:
            self._on_not_admitted(reply)

    def _on_not_admitted(self, reply: Reply) -> None:
        caller = self._caller
        assert caller is not None
        if isinstance(reply, list):
            identity = caller.identity
            entities = {
                "key": identity.key_id, "account": identity.account_name, "organization": identity.organization_name,
            }  # fmt: skip
            route = self._lane.route
            refusal = read_admission(reply, entities, route.hold, route.quota_status)
            if refusal is not None:
                self._refuse(refusal)
            elif reply[0] == b"digest":
                self._look_again()
            else:
                self._proxy.ledger.confirm_loaded(self._on_missing_record)
            return
        if isinstance(reply, hiredis.ReplyError):
            if (
                self._proxy.ledger.note_error(reply)
                and str(reply).startswith("NOSCRIPT")
                and not self._looked_again
            ):
                self._looked_again = True
                self._admit()
                return
        elif not isinstance(reply, PipeLost):
            self._proxy.metrics.events["unexpected_reply"] += 1
        self._refuse(NOT_READY)

    def _look_again(self) -> None:
        """The record has another digest, or none since Redis was rebuilt: the cold path decides, once."""
        caller, self._caller = self._caller, None
        self._proxy.directory.forget(self._digest)
        if self._looked_again or caller is None:
            self._refuse(INVALID)
            return
        self._looked_again = True
        self._cold = self._proxy.loop.create_task(self._verify_again(caller), name="verify again")

    async def _verify_again(self, caller: Caller) -> None:
        found = await self._proxy.directory.readopt(caller, self._digest)
        if self._is_over:
            return
        if isinstance(found, Refusal):
            self._refuse(found)
        else:
            self._caller = found
            self._admit()

    def _on_missing_record(self, is_loaded: bool) -> None:
        if self._is_over:
            return
        self._proxy.directory.forget(self._digest)
        self._refuse(INVALID if is_loaded else NOT_READY)

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
        connection.begin(self, request, is_head_request=self.head.method == b"HEAD")
        self.client.resume_reading()

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
                b"\r\n", *head.fields, framing, caller.principal_fields, b"X-Request-Id: ", self._request_id, b"\r\n\r\n",
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
            self.client.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, head.fields))
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
            if head.status not in _WITHOUT_BODY or (length and head.status == 304):
                framing = b"Content-Length: %d\r\n" % length
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
        if first:
            self._bytes_out += len(first)
            if self._answer_chunked:
                first = encode_chunk(first)
        client.write(
            b"".join(
                (
                    b"HTTP/1.1 %d " % head.status, head.reason, b"\r\n", head.fields, framing,
                    client.connection_field(), b"X-Request-Id: ", self._request_id, b"\r\n\r\n", first,
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
        connection = self._connection
        if connection is None:
            return
        self._note_progress(now, connection)
        settings, timeouts = self._proxy.settings, self._lane.route.timeouts
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
        self._extend_due = now + self._proxy.settings.hold_ttl_s / 4

    def _on_extension(self, reply: Reply) -> None:
        self._extending = False
        if self._is_over:
            return
        if isinstance(reply, bytes):
            self._hold = reply
        elif isinstance(reply, list):
            self._proxy.metrics.events["cut_at_extension"] += 1
            self.cut("The key or account of this request is no longer in force.")
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
        self.client.answer_refusal(
            refusal, self._lane.route.errors, self._request_id, body_done=self._body_done
        )

    def _refuse(self, refusal: Refusal) -> None:
        """End a request that was not admitted."""
        self._is_over = True
        proxy, route = self._proxy, self._lane.route
        proxy.count_refusal(self._caller, route.name, refusal.reason)
        if proxy.access_log.wants_line():
            proxy.access_log.write(self._refusal_line(refusal))
        self.client.answer_refusal(refusal, route.errors, self._request_id, body_done=self._body_done)

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
        if not self._sent_at:
            self._lane.pool.stop_waiting(self)
        whole_s = proxy.loop.time() - self._started
        elapsed_ms = round(whole_s * 1000)
        cost = route.price.cost(self._bytes_in, self._bytes_out, elapsed_ms) if charged else Microcredits(0)
        event = self._event(outcome, hold, cost, elapsed_ms)
        proxy.ledger.settle(caller, hold, cost, event)
        metrics = proxy.metrics
        metrics.requests[(route.name, outcome, self._status // 100)] += 1
        metrics.whole.observe(whole_s)
        metrics.bytes_in += self._bytes_in
        metrics.bytes_out += self._bytes_out
        metrics.cost += cost
        if cost > route.hold:
            metrics.overshoot += cost - route.hold
        if proxy.access_log.wants_line():
            proxy.access_log.write(b'{"log":"access","client":"%b",' % self.client.address + event[1:])

    def _event(self, outcome: Outcome, hold: bytes, cost: int, elapsed_ms: int) -> bytes:
        """The usage event (contract.usage_event.UsageEvent), formatted straight from what is at hand."""
        caller, head = self._caller, self.head
        assert caller is not None
        identity = caller.identity
        _, amount, admitted_text, key_window, account_window, organization_window = hold.rsplit(b"|", 5)
        admitted_at_ms = int(admitted_text)
        upstream_ms = round((self._headed_at - self._sent_at) * 1000) if self._headed_at else 0
        return orjson.dumps(
            {
                "request_id": self._request_id.decode(),
                "admitted_at_ms": admitted_at_ms,
                "ended_at_ms": admitted_at_ms + elapsed_ms,
                "organization": identity.organization_tag,
                "account": identity.account_id,
                "account_name": identity.account_name,
                "account_kind": identity.account_kind,
                "key": identity.key_id,
                "route": self._lane.route.name,
                "method": head.method[:32].decode("ascii"),
                "path": self._target.path[:PATH_LENGTH_MAX].decode("ascii"),
                "status": self._status,
                "outcome": outcome,
                "bytes_in": self._bytes_in,
                "bytes_out": self._bytes_out,
                "upstream_ms": upstream_ms,
                "total_ms": elapsed_ms,
                "held": int(amount),
                "cost": cost,
                "windows": (int(key_window), int(account_window), int(organization_window)),
                "session": _attribution(head.session),
                "computer": _attribution(head.computer),
                "trace": _attribution(head.trace),
            }
        )

    def _refusal_line(self, refusal: Refusal) -> bytes:
        caller = self._caller
        return orjson.dumps(
            {
                "log": "access",
                "client": self.client.address.decode(),
                "request_id": self._request_id.decode(),
                "key": caller.identity.key_id if caller else None,
                "route": self._lane.route.name,
                "method": self.head.method[:32].decode("ascii"),
                "path": self._target.path[:PATH_LENGTH_MAX].decode("ascii"),
                "status": refusal.public_status,
                "outcome": "refused",
                "reason": refusal.reason.value,
                "code": refusal.public_code,
            }
        )


def _attribution(value: bytes | None) -> str | None:
    """A header of the workload's, for the ledger: printable ASCII, bounded, or nothing."""
    if value is None or len(value) > ATTRIBUTION_LENGTH_MAX or not value.isascii():
        return None
    return value.decode("ascii") or None
