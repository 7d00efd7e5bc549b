"""A connection to an upstream. Acts; knows nothing of keys, credits or clients.

It reads one answer at a time and gives it to an `Answering`, which is told exactly one end: `on_answer_end` or
`on_upstream_lost`. `http1.pool` opens and lends connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from gateway.http1.chunked import ChunkedReader, ChunkError, Data
from gateway.http1.connection_end import ConnectionEnd, behind
from gateway.http1.fields import FieldError, answer_lines
from gateway.http1.head import (
    CHUNKED,
    CLOSE_DELIMITED,
    HeadError,
    ResponseHead,
    find_head_end,
    parse_response,
)

if TYPE_CHECKING:
    from gateway.http1.pool import UpstreamPool

HEAD_BYTES_MAX: Final = 65_536
FIELD_COUNT_MAX: Final = 200

INTERIM_ANSWERS_MAX: Final = 10_000
"""Interim answers to one request. Each is a sign of life, so an endless stream of them would keep a request for ever."""

_AWAIT_HEAD, _BY_LENGTH, _BY_CHUNKS, _UNTIL_CLOSE, _TUNNEL, _IDLE = range(6)
_NO_BODY: Final = frozenset((204, 304))


class Answering(Protocol):
    """Who is given an answer. Calls come in this order: interim*, head, body*, then one of end and lost."""

    __slots__ = ()

    def on_connection(self, connection: UpstreamConnection) -> None:
        """A connection is lent: write the request to it."""

    def on_no_connection(self, error: ConnectionFailed) -> None:
        """There will be none."""

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx answer; the final one is still to come."""

    def on_answer_head(self, head: ResponseHead, has_body: bool, first: Data) -> None:
        """The final head, with what came of the body in the same read (b"" for chunked bodies)."""

    def on_answer_body(self, data: Data) -> None:
        """Bytes of the body, without framing."""

    def on_switched(self, head: ResponseHead, first: bytes) -> bool:
        """A 101: whether it is one that was asked for. If so, all that follows is the tunnel's, `first` included."""

    def on_answer_end(self, trailers: bytes) -> None:
        """The answer is whole, or the tunnel's upstream sends no more. The borrower now releases or closes the connection.
        `trailers` are the lines to pass on, each with its CRLF."""

    def on_upstream_lost(self) -> None:
        """The connection ended, or said something that is not HTTP, before the answer was whole."""

    def on_upstream_full(self) -> None:
        """The upstream does not keep up with what is written to it: write no more."""

    def on_upstream_drained(self) -> None:
        """Writing may go on."""


class ConnectionFailed(Exception):
    """No connection to the upstream. `kind`: "unreachable", "timeout", "full" or "unhealthy"; `position` of the target in its
    route, if it is one target's fault."""

    def __init__(self, kind: str, detail: str, position: int | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.position = position


class UpstreamConnection(ConnectionEnd):
    """One connection: writes requests, reads answers strictly."""

    __slots__ = (
        "_answering", "_chunks", "_interim", "_is_head_request", "_kept", "_left", "_state", "address", "has_spoken",
        "idle_since", "is_apart", "keep_alive", "pool", "requests",
    )  # fmt: skip

    def __init__(self, pool: UpstreamPool) -> None:
        super().__init__()
        self.pool = pool
        self.address = ""
        """What it was connected to: one of the addresses that the upstream's name had then."""
        self._answering: Answering | None = None
        self._state = _IDLE
        self._kept = b""
        self._left = 0
        self._chunks: ChunkedReader | None = None
        self._interim = 0
        self.is_apart = False
        """For health checks: how they go is said by them alone."""
        self.has_spoken = False
        """Whether something has been passed on in answer to the present request."""
        self.keep_alive = True
        """Whether the upstream lets it be used again after this answer."""
        self._is_head_request = False
        self.idle_since = 0.0
        self.requests = 0

    @property
    def is_usable(self) -> bool:
        transport = self._transport
        return transport is not None and self._state == _IDLE and not transport.is_closing()

    def begin(
        self, answering: Answering, request: bytes, body: Sequence[Data] = (), *, is_head_request: bool
    ) -> None:
        """Send a request's head, and what there is of its body; its answer goes to `answering`."""
        self._answering = answering
        self._state = _AWAIT_HEAD
        self._interim = 0
        self.has_spoken = False
        self._is_head_request = is_head_request
        self.requests += 1
        if body:
            self.write_with(request, body)
        else:
            self.write(request)

    def release(self) -> None:
        """The answer is whole and so is the request: lend the connection to somebody else, if it may be.

        Not one with bytes still unsent: its upstream answered without reading them, and they would pile up.
        """
        self._answering = None
        transport = self._transport
        if (
            self.keep_alive
            and transport is not None
            and not (transport.is_closing() or transport.get_write_buffer_size())
        ):
            self.resume_reading()
            self.pool.give_back(self)
        else:
            self.abort()

    def abort(self) -> None:
        """End the connection now; the borrower is not told."""
        self._answering = None
        super().abort()

    def close(self) -> None:
        """End the connection once everything is sent, or nobody has taken it for a while; the borrower is not told."""
        self._answering = None
        super().close()
        self.pool.abort_later(self)

    # -- asyncio.Protocol

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.pool.forget(self)
        answering, self._answering = self._answering, None
        if answering is None:
            return
        if exc is None and self._state in (_UNTIL_CLOSE, _TUNNEL):
            self._state = _IDLE
            answering.on_answer_end(b"")
        else:
            self._note_loss()
            answering.on_upstream_lost()

    def _note_loss(self) -> None:
        """A connection that ends before the head of an answer says that the target is not well; but for a kept one, which any
        server may close between two requests."""
        if self._state == _AWAIT_HEAD and (self.requests == 1 or self._kept) and not self.is_apart:
            self.pool.note_failure("lost")

    def eof_received(self) -> bool:
        """The upstream sends no more. In a tunnel it may still read."""
        if self._state != _TUNNEL or self._answering is None:
            return False
        self._answering.on_answer_end(b"")
        return True

    def pause_writing(self) -> None:
        if self._answering is not None:
            self._answering.on_upstream_full()

    def resume_writing(self) -> None:
        if self._answering is not None:
            self._answering.on_upstream_drained()

    def data_received(self, data: bytes) -> None:
        answering = self._answering
        if answering is None:
            self.abort()
            return
        state = self._state
        if state == _AWAIT_HEAD:
            self._read_head(answering, data)
        elif state == _BY_LENGTH:
            count = len(data)
            if count < self._left:
                self._left -= count
                answering.on_answer_body(data)
            else:
                if count > self._left:
                    self.keep_alive = False
                    data = data[: self._left]
                answering.on_answer_body(data)
                self._end()
        elif state == _BY_CHUNKS:
            self._read_chunks(answering, data)
        elif state in (_UNTIL_CLOSE, _TUNNEL):
            answering.on_answer_body(data)
        else:  # behind a whole answer, while the body of its request is still on the way
            self._fail()

    # -- reading an answer

    def _read_head(self, answering: Answering, data: bytes) -> None:
        if self._kept:
            data, self._kept = self._kept + data, b""
        while self._answering is answering:
            end = find_head_end(data)
            if end > HEAD_BYTES_MAX or (end < 0 and len(data) > HEAD_BYTES_MAX):
                self._fail()
                return
            if end < 0:
                self._kept = data
                return
            raw = data[:end]
            head = self.pool.known_answer(raw)
            if head is None:
                try:
                    head = parse_response(raw, field_count_max=FIELD_COUNT_MAX)
                except HeadError:
                    self._fail()
                    return
                self.pool.know_answer(raw, head)
            if head.status >= 200:
                self.keep_alive = head.keep_alive
                if not self.is_apart:
                    self.pool.note_answer()
                self._begin_body(answering, head, behind(data, end))
                return
            data = data[end:]
            if head.status == 101:
                self._switch(answering, head, data)
                return
            self._interim += 1
            if self._interim > INTERIM_ANSWERS_MAX:
                self._fail()
                return
            self.has_spoken = True
            answering.on_interim(head)

    def _switch(self, answering: Answering, head: ResponseHead, rest: bytes) -> None:
        self.keep_alive = False
        self._state = _TUNNEL
        self.pool.note_answer()
        if not answering.on_switched(head, rest):
            self._fail()

    def _begin_body(self, answering: Answering, head: ResponseHead, rest: Data) -> None:
        length = head.length
        if self._is_head_request or head.status in _NO_BODY or length == 0:
            answering.on_answer_head(head, False, b"")
            if rest:
                self.keep_alive = False
            self._end()
        elif length > 0:
            count = len(rest)
            if count < length:
                self._state, self._left = _BY_LENGTH, length - count
                answering.on_answer_head(head, True, rest)
            else:
                if count > length:
                    self.keep_alive = False
                    rest = rest[:length]
                answering.on_answer_head(head, True, rest)
                self._end()
        elif length == CHUNKED:
            self._state, self._chunks = _BY_CHUNKS, ChunkedReader()
            answering.on_answer_head(head, True, b"")
            if rest and self._answering is not None:
                self._read_chunks(answering, rest)
        else:
            assert length == CLOSE_DELIMITED
            self._state, self.keep_alive = _UNTIL_CLOSE, False
            answering.on_answer_head(head, True, rest)

    def _read_chunks(self, answering: Answering, data: Data) -> None:
        chunks = self._chunks
        assert chunks is not None
        try:
            pieces = chunks.feed(data)
        except ChunkError:
            self._fail()
            return
        if pieces:
            answering.on_answer_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if chunks.done and self._answering is not None:
            if chunks.rest:
                self.keep_alive = False
            self._chunks = None
            try:
                trailers = answer_lines.trailers(chunks.trailers) if chunks.trailers else b""
            except FieldError:
                self._fail()
            else:
                self._end(trailers)

    def _end(self, trailers: bytes = b"") -> None:
        answering = self._answering
        self._state = _IDLE
        if answering is not None:
            answering.on_answer_end(trailers)

    def _fail(self) -> None:
        """It says what is not HTTP, or what nobody asked for."""
        answering = self._answering
        if self._state == _AWAIT_HEAD and not self.is_apart:
            self.pool.note_failure("malformed")
        self.abort()
        if answering is not None:
            answering.on_upstream_lost()
