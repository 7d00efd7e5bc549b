"""A workload's connection as far as it is written to, timed and ended; `http1.client` reads it. Acts."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from gateway.http1.body import BodyReader, TunnelReader
from gateway.http1.connection_end import ConnectionEnd
from gateway.http1.forwarding import Hop, client_address, forwarded_fields
from gateway.http1.head import RequestHead
from gateway.http1.own_answer import own_answer, refusal_answer
from gateway.refusals import Reason, Refusal
from gateway.routing import Dialect

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.own_endpoints import KeyQuestion
    from gateway.proxy import Proxy

DISCARD_BYTES_MAX: Final = 262_144
"""Unread body of a refused request that is read and thrown away to keep the connection; a larger one closes it."""

LINGER_S: Final = 2.0
"""How long a client that is sent its last answer may be silent before the connection is closed."""
LINGER_MAX_S: Final = 30.0
"""And how long it may go on sending what nobody reads: an upload that was refused, by a client that reads answers last."""

QUIET_S: Final = 2.0
"""How long a connection without a request is kept when the gateway drains."""

_BODY_IS_LOST: Final = frozenset((Reason.BAD_REQUEST, Reason.REQUEST_TIMEOUT))
"""After these the rest of a body is not waited for, however small it is."""


class ClientEnd(ConnectionEnd):
    """See the module's docstring."""

    __slots__ = (
        "_body", "_closes", "_deadline", "_discarded", "_eof_at", "_exchange", "_is_lingering", "_kept", "_linger_until",
        "_proxy", "_scanned", "_unsent", "_way", "_way_of", "has_certificate", "hop", "is_write_paused", "trailers",
    )  # fmt: skip

    def __init__(self, proxy: Proxy, peer: str | None = None) -> None:
        super().__init__()
        self._proxy = proxy
        self._exchange: Exchange | KeyQuestion | None = None
        self._body: BodyReader | None = None
        self._kept = b""
        self._scanned = 0
        self._discarded = 0
        self._closes = False
        self._is_lingering = False
        self._linger_until = 0.0
        self._deadline = 0.0
        self._unsent = 0
        self._eof_at = 0.0
        self._way, self._way_of = b"", b""
        self.hop = Hop(peer or "-", False, b"http")
        self.has_certificate = False
        self.is_write_paused = False
        self.trailers = b""
        """The trailer lines of the body that was read last, as they are passed on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        proxy = self._proxy
        peer = self.hop.peer
        address = transport.get_extra_info("peername")
        if peer == "-" and isinstance(address, tuple):
            peer = str(address[0])
        is_tls = transport.get_extra_info("sslcontext") is not None
        self.hop = Hop(peer, proxy.trusted.holds(peer), b"https" if is_tls else b"http")
        self.has_certificate = is_tls and bool(transport.get_extra_info("peercert"))
        self._deadline = proxy.loop.time() + proxy.settings.head_timeout_s
        refusal = proxy.take_in(self)
        if refusal is not None:
            self._answer_and_close(refusal)
        elif proxy.is_draining:
            self.stop(proxy.loop.time())

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._proxy.let_go(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_lost()

    # -- what an exchange uses

    def way(self, head: RequestHead) -> bytes:
        """Which way the request has come: the lines for the upstream. Made once a connection, but for a trusted peer's."""
        given = head.hop.forwarded if head.hop is not None and self.hop.is_trusted else ()
        if not given and self._way and head.host == self._way_of and head.minor == 1:
            return self._way
        way = forwarded_fields(self.hop, self._proxy.pseudonym, head.minor, head.host, given)
        if not given and head.minor == 1:
            self._way, self._way_of = way, head.host
        return way

    def address_of(self, head: RequestHead) -> bytes:
        """Who the client is, for the log: behind proxies that the operator trusts, the one they name."""
        if self.hop.is_trusted and head.hop is not None and head.hop.forwarded:
            return client_address(self.hop, head.hop.forwarded, self._proxy.trusted).encode()
        return self.hop.peer.encode()

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
        if isinstance(self._body, TunnelReader):
            self._body, self._kept = None, b""
        if self._closes or (self._eof_at and not self._kept):
            if self._body is not None or self._kept:
                self._linger()
            else:
                self._close_in_order(0.0)
            return
        now = self._proxy.ticked_at
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
        self._leave_body(is_lost=refusal.reason in _BODY_IS_LOST)
        self._write_refusal(refusal, dialect, request_id)
        self.on_exchange_end()

    def answer_own(self, content: bytes, request_id: bytes) -> None:
        """Write what was asked of the gateway itself, JSON, as the answer, and end the exchange."""
        exchange = self._exchange
        assert exchange is not None
        self._leave_body(is_lost=False)
        has_body = exchange.head.method != b"HEAD"
        self.write(own_answer(content, request_id, self.connection_field(), has_body=has_body))
        self.on_exchange_end()

    def _leave_body(self, *, is_lost: bool) -> None:
        """An answer comes before the request's body is whole: a small rest is thrown away, else the connection ends."""
        exchange = self._exchange
        if self._body is not None and exchange is not None:
            head = exchange.head
            is_small = 0 <= head.length <= DISCARD_BYTES_MAX
            if head.expects_continue or not is_small or is_lost:
                self._closes = True

    def break_off(self) -> None:
        """End an answer in the middle: what was written is still sent, and the missing end says that it is broken. Where the
        end of the connection would be a good end of the answer, a reset says so."""
        exchange, self._exchange = self._exchange, None
        self._closes = True
        if exchange is not None and exchange.head.minor == 0:
            self.reset()
        elif self._transport is not None:
            self._close_in_order(LINGER_S)

    def end_tunnel(self) -> None:
        """End a tunnel whose last word is written: what still comes from the client is read and thrown away for a moment."""
        self._exchange, self._closes = None, True
        if self._transport is not None:
            self._linger()

    def _close_in_order(self, patience_s: float) -> None:
        """Close once everything is sent. Over TLS nobody can see how much is not, below TLS: there it gets the time of a reader
        who stands still."""
        if self._transport is not None:
            patience_s = patience_s if self.can_half_close else self._proxy.settings.body_timeout_s
            self._unsent, self._deadline = 0, self._proxy.loop.time() + patience_s
            self._transport.close()

    @property
    @abstractmethod
    def _is_ahead(self) -> bool:
        """Whether requests pile up here, or answers that the client does not take: it is to be read no further."""

    @abstractmethod
    def _read_kept(self) -> None:
        """Read the head that begins what is kept."""

    # -- time

    def on_tick(self, now: float) -> None:
        """A few times a second: has anything waited for too long?"""
        exchange = self._exchange
        if exchange is not None:
            if self._eof_at and not exchange.is_over and now - self._eof_at > exchange.half_closed_s:
                self.abort()  # it has probably gone
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
            self._close_in_order(0.0)

    def stop(self, now: float) -> None:
        """The gateway drains: a busy connection ends after its answer, one without a request in a moment: a request may be on
        its way on it, and is answered yet."""
        self._closes = True
        if self._exchange is None and not self._kept:
            self._deadline = min(self._deadline, now + QUIET_S)

    def cut(self, detail: str) -> None:
        """The gateway stops and will wait no longer: say so to whoever still waits for an answer."""
        self._closes = True
        if self._exchange is not None and not self._exchange.is_over:
            self._exchange.cut(detail)
        elif self._exchange is None:
            self.close()

    # -- answers of the gateway's own

    def _write_refusal(
        self, refusal: Refusal, dialect: Dialect, request_id: bytes, head: RequestHead | None = None
    ) -> None:
        asked = head or (self._exchange.head if self._exchange is not None else None)
        has_body = asked is None or asked.method != b"HEAD"
        self.write(refusal_answer(refusal, dialect, request_id, self.connection_field(), has_body=has_body))

    def _request_id(self, head: RequestHead | None) -> bytes:
        """What a request is answered under that never becomes an exchange."""
        return (head.request_id if head is not None else None) or self._proxy.next_request_id()

    def _answer_and_close(
        self, refusal: Refusal, dialect: Dialect = "problem", head: RequestHead | None = None
    ) -> None:
        """Answer what cannot be read any further, and close once the client has had a chance to read that."""
        self._proxy.metrics.refusals[("", refusal.reason.value)] += 1
        self._kept = b""
        self._closes = True
        self._write_refusal(refusal, dialect, self._request_id(head), head)
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, and read what still arrives for a moment: closing at once with unread bytes would
        reset the connection, and the client might never see the answer."""
        self._is_lingering = True
        self._body, self._kept, self._scanned = None, b"", 0
        now = self._proxy.loop.time()
        self._deadline, self._linger_until = now + LINGER_S, now + LINGER_MAX_S
        self.resume_reading()
        self.write_eof()

    def _discard(self) -> None:
        """Something came behind the last answer."""
        now = self._proxy.loop.time()
        if now > self._linger_until:
            self.abort()
        else:
            self._deadline = now + LINGER_S
