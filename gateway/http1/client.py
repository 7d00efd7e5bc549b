"""A workload's connection: bytes to requests, answers to bytes. Acts; decides nothing about tokens or credits.

One request is served at a time; what a client pipelines behind it waits in a bounded buffer. The connection reads strictly:
after anything malformed it answers once and closes, because what follows could be read in two ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.caller import Caller
from gateway.exchange import Exchange
from gateway.http1.body import TunnelReader, body_reader
from gateway.http1.chunked import ChunkError, Data
from gateway.http1.client_end import DISCARD_BYTES_MAX, ClientEnd
from gateway.http1.connection_end import behind
from gateway.http1.fields import FieldError, request_lines
from gateway.http1.forwarding import has_come_round
from gateway.http1.head import HeadError, RequestHead, find_head_end, reject_early
from gateway.http1.reading import read_request
from gateway.http1.target import Target
from gateway.own_endpoints import KEY_PATH, KeyQuestion
from gateway.proxy import REPEATED_HEAD_MAX, LastHead
from gateway.refusals import Reason, Refusal
from gateway.routing import Route

if TYPE_CHECKING:
    from gateway.proxy import Proxy

PIPELINED_BYTES_MAX: Final = 65_536

_HEAD_EVENTS: Final = {414: "target_too_long", 431: "head_too_large"}


class ClientConnection(ClientEnd):
    """See the module's docstring."""

    __slots__ = ("_last", "_own_prefix", "_served")

    def __init__(self, proxy: Proxy, peer: str | None = None) -> None:
        super().__init__(proxy, peer)
        self._last: LastHead | None = None
        self._own_prefix = proxy.settings.own_prefix.encode()
        self._served = 0

    # -- asyncio.Protocol

    def eof_received(self) -> bool:
        """The client will send no more. It may still be reading: what is under way gets a moment to be answered."""
        exchange = self._exchange
        if exchange is None:
            if not self._kept or self._scanned or self._is_lingering:
                return False
            self._eof_at = self._proxy.loop.time()  # whole requests wait to be looked at
        elif exchange.is_tunnel:
            if self._body is not None:
                self._body = None
                exchange.on_request_end()
        elif self._body is not None:
            return False
        else:
            self._eof_at = self._proxy.loop.time()
        return self.can_half_close

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
            self._discard()
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

    def begin_tunnel(self) -> None:
        """The upgrade is granted: what the client has sent behind its request, and sends from here on, is the tunnel's."""
        exchange, early = self._exchange, self._kept
        assert exchange is not None
        self._body, self._kept = TunnelReader(), b""
        self.resume_reading()
        if early:
            exchange.on_request_body(early)
        if self._eof_at:
            exchange.on_request_end()

    @property
    def _is_ahead(self) -> bool:
        if self._is_lingering:
            return False
        # What was scanned already is one unfinished head, which has a bound of its own.
        is_full = len(self._kept) > PIPELINED_BYTES_MAX and not self._scanned
        return is_full or (self.is_write_paused and self._exchange is None)

    # -- reading

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
        raw, rest = data[start:end], behind(data, end)
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
            route = self._route(head, target)
        except HeadError as error:
            self._refuse_head(error)
            return
        if not head.keep_alive:
            self._closes = True
        if route is None:
            if target.path == self._own_prefix + KEY_PATH:
                self._begin_own(KeyQuestion(self._proxy, self, head), rest)
            else:
                self._refuse_unrouted(head, rest)
            return
        why = self._why_not(head, route)
        if why is not None:
            self._answer_and_close(why, route.errors, head)
            return
        lane = self._proxy.lanes[route.name]
        exchange = Exchange(self._proxy, self, head, target, lane)
        self._begin(exchange, rest, None, b"")
        if exchange.digest and len(raw) <= REPEATED_HEAD_MAX:
            self._last = LastHead(raw, head, target, lane, exchange.digest)

    def _route(self, head: RequestHead, target: Target) -> Route | None:
        """The route for a request, which decides in what form its path is carried; None under the gateway's own prefix, too.
        Raises HeadError."""
        route = self._proxy.routes.match(head.method, head.host, target.path)
        if target.objection is not None and (route is None or not route.raw_path):
            raise HeadError(400, target.objection)
        if route is None or target.path.startswith(self._own_prefix):
            return None
        if target.raw and route.raw_path:
            target.take_raw(route.path.rstrip(b"/"))
            read_otherwise = target.decoded()
            if self._proxy.routes.match(head.method, head.host, read_otherwise) is not route:
                raise HeadError(400, "The path can be read as another route's.")
            if read_otherwise.startswith(self._own_prefix):
                raise HeadError(400, "The path can be read as one of the gateway's own.")
        return route

    def _why_not(self, head: RequestHead, route: Route) -> Refusal | None:
        """What is wrong with a well-formed request before it is asked who sends it."""
        if head.length > self._proxy.settings.body_bytes_max:
            return Refusal(Reason.BODY_TOO_LARGE)
        if head.hop is not None and head.hop.via and has_come_round(head.hop.via, self._proxy.pseudonym):
            return Refusal(Reason.LOOP_DETECTED)
        if route.client_certificate and not self.has_certificate:
            return Refusal(Reason.CERTIFICATE_REQUIRED)
        return None

    def _begin(self, exchange: Exchange, rest: Data, caller: Caller | None, digest: bytes) -> None:
        self._take_up(exchange, rest)
        if caller is None:
            exchange.begin()
        else:
            exchange.begin_as(caller, digest)
        if rest and self._body is not None:
            self._read_body(rest)

    def _begin_own(self, question: KeyQuestion, rest: Data) -> None:
        self._take_up(question, rest)
        question.begin()
        if rest and self._body is not None:
            self._read_body(rest)

    def _take_up(self, exchange: Exchange | KeyQuestion, rest: Data) -> None:
        self._exchange = exchange
        self._served += 1
        head = exchange.head
        if self._served >= self._proxy.settings.connection_requests_max:
            self._closes = True
        elif head.hop is not None and head.hop.upgrade:
            self._closes = True  # what a client sends early for a tunnel that is not granted is no request
        if head.length == 0:
            self._kept = bytes(rest)
        else:
            self._body, self._discarded, self.trailers = body_reader(head.length), 0, b""

    def _refuse_head(self, error: HeadError) -> None:
        self._proxy.metrics.events[_HEAD_EVENTS.get(error.status, "bad_head")] += 1
        self._answer_and_close(Refusal(Reason.BAD_REQUEST, detail=error.reason, status=error.status))

    def _on_unfinished_head(self, data: bytes, start: int) -> None:
        settings = self._proxy.settings
        line_end = data.find(b"\r\n", start)
        try:
            reject_early(data[: settings.head_bytes_max], start, self._scanned)
            if len(data) > settings.head_bytes_max:
                if line_end < 0 or line_end > settings.target_bytes_max + 64:
                    raise HeadError(
                        414, f"The request target is longer than {settings.target_bytes_max} bytes."
                    )
                raise HeadError(431, f"The head is longer than {settings.head_bytes_max} bytes.")
        except HeadError as error:
            self._refuse_head(error)
            return
        if self._eof_at:  # its end will not come
            self.close()
            return
        if not self._scanned:
            self._deadline = self._proxy.loop.time() + settings.head_timeout_s
        self._kept, self._scanned = data, max(len(data) - 3, 1)

    def _refuse_unrouted(self, head: RequestHead, rest: Data) -> None:
        self._proxy.metrics.refusals[("", Reason.NO_SUCH_ROUTE.value)] += 1
        if head.length:
            self._answer_and_close(Refusal(Reason.NO_SUCH_ROUTE), "problem", head)
            return
        self._kept = bytes(rest)
        self._write_refusal(Refusal(Reason.NO_SUCH_ROUTE), "problem", self._request_id(head), head)
        self.on_exchange_end()

    def _read_body(self, data: Data) -> None:
        body, exchange = self._body, self._exchange
        assert body is not None
        try:
            pieces = body.feed(data)
            if body.done and body.trailers:
                self.trailers = request_lines.trailers(body.trailers)
        except (ChunkError, FieldError) as error:
            self._proxy.metrics.events["bad_body"] += 1
            self._closes = True
            if exchange is not None:
                words = str(error) or "a trailer is malformed"
                exchange.on_bad_body(Refusal(Reason.BAD_REQUEST, detail=f"The body is malformed: {words}."))
            else:
                self.abort()
            self._body = None  # only now: while it is there, an answer is known to come before the body's end
            return
        if pieces:
            self._take_body(exchange, pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if body.done and self._body is body:
            self._end_body(body.rest)

    def _take_body(self, exchange: Exchange | KeyQuestion | None, data: Data) -> None:
        self._discarded += len(data)
        if exchange is None:
            if self._discarded > DISCARD_BYTES_MAX:
                self.abort()
        elif self._discarded > self._proxy.settings.body_bytes_max and not exchange.is_tunnel:
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
