"""A workload's connection: bytes to requests, answers to bytes. Acts; decides nothing about tokens or credits.

One request is served at a time; what a client pipelines behind it waits in a bounded buffer. The connection reads strictly:
after anything malformed it answers once and closes, because what follows could be read in two ways.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.exchange import Exchange
from gateway.http1.body import BodyReader, body_reader
from gateway.http1.chunked import ChunkError
from gateway.http1.connection_end import ConnectionEnd
from gateway.http1.head import HeadError, RequestHead, find_head_end, reject_early
from gateway.http1.own_answer import refusal_answer
from gateway.http1.reading import read_request
from gateway.ledger import Caller
from gateway.proxy import REPEATED_HEAD_MAX, LastHead
from gateway.refusals import Reason, Refusal
from gateway.routing import Dialect

if TYPE_CHECKING:
    from gateway.proxy import Proxy

PIPELINED_BYTES_MAX: Final = 65_536
DISCARD_BYTES_MAX: Final = 262_144
"""Unread body of a refused request that is read and thrown away to keep the connection; a larger one closes it."""

LINGER_S: Final = 2.0
HALF_CLOSED_GRACE_S: Final = 1.0
_BODY_IS_LOST: Final = frozenset((Reason.BAD_REQUEST, Reason.REQUEST_TIMEOUT))
"""After these the rest of a body is not waited for, however small it is."""

OWN_PREFIX: Final = b"/-/"
"""The gateway's own paths: never forwarded."""


class ClientConnection(ConnectionEnd):
    """See the module's docstring."""

    __slots__ = (
        "_body", "_closes", "_deadline", "_discarded", "_eof_at", "_exchange", "_is_lingering", "_kept", "_last",
        "_proxy", "_scanned", "_unsent", "address", "is_write_paused",
    )  # fmt: skip

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self._proxy = proxy
        self._exchange: Exchange | None = None
        self._kept = b""
        self._scanned = 0
        self._last: LastHead | None = None
        self._body: BodyReader | None = None
        self._discarded = 0
        self._closes = False
        self._is_lingering = False
        self._deadline = 0.0
        self._unsent = 0
        self._eof_at = 0.0
        self.address = b"-"
        self.is_write_paused = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        proxy = self._proxy
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.address = str(peer[0]).encode("ascii", "replace")
        self._deadline = proxy.loop.time() + proxy.settings.head_timeout_s
        proxy.clients.add(self)
        if len(proxy.clients) > proxy.settings.connections_max:
            proxy.metrics.events["connections_refused"] += 1
            self._answer_and_close(Refusal(Reason.OVERLOADED, detail="Too many connections are open."))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._proxy.clients.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_lost()

    def eof_received(self) -> bool:
        """The client will send no more. It may still be reading: what is under way gets a moment to be answered."""
        if self._exchange is None or self._body is not None:
            return False
        self._eof_at = self._proxy.loop.time()
        return True

    def pause_writing(self) -> None:
        self.is_write_paused = True
        if self._exchange is not None:
            self._exchange.on_client_full()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        if self._exchange is not None:
            self._exchange.on_client_drained()
            return
        self.resume_reading()
        if self._kept:
            self._proxy.loop.call_soon(self._read_kept)

    def data_received(self, data: bytes) -> None:
        if self._body is not None:
            self._read_body(data)
        elif self._is_lingering:
            self._discard(data)
        elif self._exchange is None:
            self._read_head(self._kept + data if self._kept else data)
        else:
            self._kept += data
            if len(self._kept) > PIPELINED_BYTES_MAX:
                self.pause_reading()

    # -- what an exchange uses

    def resume_reading(self) -> None:
        """Read on, unless the client is too far ahead."""
        if self.is_read_paused and not self._is_ahead:
            super().resume_reading()

    @property
    def _is_ahead(self) -> bool:
        """Whether requests pile up here, or answers that the client does not take: it is to be read no further."""
        if self._is_lingering:
            return False
        # What was scanned already is one unfinished head, which has a bound of its own.
        is_full = len(self._kept) > PIPELINED_BYTES_MAX and not self._scanned
        return is_full or (self.is_write_paused and self._exchange is None)

    def close_after_answer(self) -> None:
        """The answer now being written is the last one on this connection."""
        self._closes = True

    def connection_field(self) -> bytes:
        """The Connection line that goes with the answer now being written, or nothing."""
        exchange = self._exchange
        if self._closes or self._proxy.is_draining:
            self._closes = True
            return b"Connection: close\r\n"
        if exchange is not None and exchange.head.minor == 0:
            return b"Connection: keep-alive\r\n"
        return b""

    def on_exchange_end(self) -> None:
        """The answer is whole: the next request may be read, or the connection ends."""
        self._exchange = None
        transport = self._transport
        if transport is None:
            return
        if self._closes or (self._eof_at and not self._kept):
            if self._body is not None or self._kept:
                self._linger()
            else:
                self._unsent, self._deadline = 0, 0.0
                transport.close()
            return
        now = self._proxy.loop.time()
        self._deadline = now + self._proxy.settings.idle_timeout_s
        if self._eof_at:
            self._eof_at = now
        self.resume_reading()
        if self._is_ahead:
            self.pause_reading()
        if self._kept:
            self._proxy.loop.call_soon(self._read_kept)

    def answer_refusal(self, refusal: Refusal, dialect: Dialect, request_id: bytes) -> None:
        """Write a refusal in place of an answer, and end the exchange."""
        exchange = self._exchange
        if self._body is not None and exchange is not None:
            head = exchange.head
            is_small = 0 <= head.length <= DISCARD_BYTES_MAX
            if head.expects_continue or not is_small or refusal.reason in _BODY_IS_LOST:
                self._closes = True
        self._write_refusal(refusal, dialect, request_id)
        self.on_exchange_end()

    def break_off(self) -> None:
        """End an answer in the middle: what was written is still sent, and the missing end says that it is broken."""
        self._exchange = None
        self._closes = True
        if self._transport is not None:
            self._deadline = self._proxy.loop.time() + LINGER_S
            self._transport.close()

    # -- time

    def on_tick(self, now: float) -> None:
        """A few times a second: has anything waited for too long?"""
        exchange = self._exchange
        if exchange is not None:
            if self._eof_at and now - self._eof_at > HALF_CLOSED_GRACE_S and not exchange.is_over:
                self.abort()
            else:
                exchange.on_tick(now)
            return
        if now < self._deadline:
            return
        unsent = self.unsent_bytes
        if unsent and unsent != self._unsent:  # the client still takes what was written for it
            self._unsent, self._deadline = unsent, now + self._proxy.settings.body_timeout_s
        elif (
            self._transport is None
            or self._transport.is_closing()
            or self._is_lingering
            or self._body is not None
            or unsent
        ):
            self.abort()
        elif self._kept:
            self._proxy.metrics.events["head_timeout"] += 1
            self._answer_and_close(Refusal(Reason.REQUEST_TIMEOUT, detail="The head did not arrive in time."))
        else:
            self._transport.close()

    def stop(self) -> None:
        """The gateway drains: an idle connection ends now, a busy one after its answer."""
        self._closes = True
        if self._exchange is None and self._transport is not None and not self._kept:
            self._transport.close()

    def cut(self, detail: str) -> None:
        """The gateway stops and will wait no longer: say so to whoever still waits for an answer."""
        self._closes = True
        if self._exchange is not None and not self._exchange.is_over:
            self._exchange.cut(detail)
        else:
            self.abort()

    # -- reading requests

    def _read_kept(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self.is_write_paused:
            return
        if self._exchange is None and self._kept:
            self._read_head(self._kept)
            if self._body is None:  # else its exchange says when to read on
                self.resume_reading()

    def _read_head(self, data: bytes) -> None:
        start = (
            2 if data.startswith(b"\r\n") else 0
        )  # RFC 9112 §2.2: one empty line before a request is ignored
        settings = self._proxy.settings
        end = find_head_end(data, max(start, self._scanned))
        if end < 0 or end > settings.head_bytes_max:
            self._on_unfinished_head(data, start)
            return
        raw, rest = data[start:end], data[end:]
        self._kept, self._scanned = b"", 0
        last = self._last
        if last is not None and last.raw == raw and last.lane.routes is self._proxy.routes:
            caller = self._proxy.directory.known(last.digest)
            if caller is not None:
                self._begin(
                    Exchange(self._proxy, self, last.head, last.target, last.lane), rest, caller, last.digest
                )
                return
        try:
            head, target = read_request(
                raw, field_count_max=settings.field_count_max, target_length_max=settings.target_bytes_max
            )
        except HeadError as error:
            self._proxy.metrics.events["bad_head"] += 1
            self._answer_and_close(Refusal(Reason.BAD_REQUEST, detail=error.reason, status=error.status))
            return
        if not head.keep_alive:
            self._closes = True
        route = self._proxy.routes.match(head.method, head.host, target.path)
        if route is None or target.path.startswith(OWN_PREFIX):
            self._refuse_unrouted(head, rest)
            return
        if head.length > settings.body_bytes_max:
            self._answer_and_close(Refusal(Reason.BODY_TOO_LARGE))
            return
        lane = self._proxy.lanes[route.name]
        exchange = Exchange(self._proxy, self, head, target, lane)
        self._begin(exchange, rest, None, b"")
        if exchange.digest and len(raw) <= REPEATED_HEAD_MAX:
            self._last = LastHead(raw, head, target, lane, exchange.digest)

    def _begin(self, exchange: Exchange, rest: bytes, caller: Caller | None, digest: bytes) -> None:
        self._exchange = exchange
        if exchange.head.length == 0:
            self._kept = rest
        else:
            self._body, self._discarded = body_reader(exchange.head.length), 0
        if caller is None:
            exchange.begin()
        else:
            exchange.begin_as(caller, digest)
        if rest and self._body is not None:
            self._read_body(rest)

    def _on_unfinished_head(self, data: bytes, start: int) -> None:
        settings = self._proxy.settings
        line_end = data.find(b"\r\n", start)
        try:
            if len(data) > settings.head_bytes_max:
                if line_end < 0 or line_end > settings.target_bytes_max + 64:
                    raise HeadError(
                        414, f"The request target is longer than {settings.target_bytes_max} bytes."
                    )
                raise HeadError(431, f"The head is longer than {settings.head_bytes_max} bytes.")
            reject_early(data, start, self._scanned)
        except HeadError as error:
            self._proxy.metrics.events["bad_head"] += 1
            self._answer_and_close(Refusal(Reason.BAD_REQUEST, detail=error.reason, status=error.status))
            return
        if not self._scanned:
            self._deadline = self._proxy.loop.time() + settings.head_timeout_s
        self._kept, self._scanned = data, max(len(data) - 3, 1)

    def _refuse_unrouted(self, head: RequestHead, rest: bytes) -> None:
        self._proxy.metrics.refusals[("", Reason.NO_SUCH_ROUTE.value)] += 1
        if head.length:
            self._answer_and_close(Refusal(Reason.NO_SUCH_ROUTE))
            return
        self._kept = rest
        self._write_refusal(Refusal(Reason.NO_SUCH_ROUTE), "problem", self._proxy.next_request_id(), head)
        self.on_exchange_end()

    def _read_body(self, data: bytes) -> None:
        body, exchange = self._body, self._exchange
        assert body is not None
        try:
            pieces = body.feed(data)
        except ChunkError as error:
            self._proxy.metrics.events["bad_body"] += 1
            self._closes = True
            if exchange is not None:
                exchange.on_bad_body(Refusal(Reason.BAD_REQUEST, detail=f"The body is malformed: {error}."))
            else:
                self.abort()
            self._body = None  # only now: while it is there, an answer is known to come before the body's end
            return
        if pieces:
            self._take_body(exchange, pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if body.done and self._body is body:
            self._end_body(body.rest)

    def _take_body(self, exchange: Exchange | None, data: bytes) -> None:
        self._discarded += len(data)
        if exchange is None:
            if self._discarded > DISCARD_BYTES_MAX:
                self.abort()
        elif self._discarded > self._proxy.settings.body_bytes_max:
            self._closes = True
            exchange.on_bad_body(Refusal(Reason.BODY_TOO_LARGE))
        else:
            exchange.on_request_body(data)

    def _end_body(self, rest: bytes) -> None:
        self._body = None
        if self._exchange is not None:
            self._kept += rest
            self._exchange.on_request_end()
        elif rest:
            self._kept = rest
            self._proxy.loop.call_soon(self._read_kept)  # not at once: a read may hold many that are refused

    # -- answers of the gateway's own

    def _write_refusal(
        self, refusal: Refusal, dialect: Dialect, request_id: bytes, head: RequestHead | None = None
    ) -> None:
        asked = head or (self._exchange.head if self._exchange is not None else None)
        has_body = asked is None or asked.method != b"HEAD"
        self.write(refusal_answer(refusal, dialect, request_id, self.connection_field(), has_body=has_body))

    def _answer_and_close(self, refusal: Refusal) -> None:
        """Answer what cannot be read any further, and close once the client has had a chance to read that."""
        self._proxy.metrics.refusals[("", refusal.reason.value)] += 1
        self._kept = b""
        self._closes = True
        self._write_refusal(refusal, "problem", self._proxy.next_request_id())
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, and read what still arrives for a moment: closing at once with unread bytes would
        reset the connection, and the client might never see the answer."""
        self._is_lingering = True
        self._body, self._kept, self._scanned = None, b"", 0
        self._deadline = self._proxy.loop.time() + LINGER_S
        if self._transport is not None:
            self.resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > DISCARD_BYTES_MAX * 16:
            self.abort()
