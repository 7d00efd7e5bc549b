"""One request from its head to its settlement. Acts: it joins a client's connection, the ledger and an upstream's.

    admitted -> borrow a connection -> forward both ways -> finish: settle once, tell once

Everything here is a callback; nothing waits. A request that is not admitted ends in `Admission._refuse`, one that is in
`Holding._finish`. An upgraded connection is an exchange too, whose body has no end in either direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway.estimating import CONTINUE
from gateway.http1.chunked import Data, encode_chunk, last_chunk
from gateway.http1.event_borders import EventBorders
from gateway.http1.fields import is_plain_event_stream
from gateway.http1.head import CHUNKED, RequestHead, ResponseHead
from gateway.http1.own_answer import event_of
from gateway.http1.upgrade import is_granted, is_websocket
from gateway.http1.upstream import UpstreamConnection
from gateway.http1.websocket import GOING_AWAY, POLICY_VIOLATION, FrameReader, close_frame
from gateway.patience import Overdue, overdue
from gateway.refusals import Reason, Refusal, connection_refusal, upstream_refusal
from gateway.sending import Sending

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

FRAME_END_S: Final = 0.5
"""How long a WebSocket or a stream of events that is cut may take to come to the end of a frame or an event, behind which its
client can be told why."""

_WITHOUT_BODY: Final = frozenset((204, 304))


class Exchange(Sending):
    """See the module's docstring. Made by a client's connection for each request it has read the head of."""

    __slots__ = (
        "_answer_chunked", "_answer_head", "_cut_by", "_cut_due", "_frames", "_last_words", "_unsent",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        super().__init__(proxy, client, head, target, lane)
        self._unsent = 0
        self._answer_chunked = False
        self._answer_head: ResponseHead | None = None
        self._frames: FrameReader | EventBorders | None = None
        """What comes of a WebSocket or of a stream of events, looked at for where a frame or an event ends."""
        self._cut_by: Refusal | None = None
        """Why it is to end, once the frame or event that is under way has."""
        self._last_words: list[Data] = []
        """What the client knows the answer's end by, while the place that it frees is not free yet."""
        self._cut_due = 0.0

    @property
    def is_tunnel(self) -> bool:
        """True once upgraded."""
        return self._is_tunnel

    @property
    def half_closed_s(self) -> float:
        """How long it goes on for a client that sends no more."""
        return self._lane.route.timeouts.half_closed_s

    # -- the client

    def on_client_full(self) -> None:
        """The client does not keep up: the upstream is not read until it does."""
        if self._connection is not None:
            self._connection.pause_reading()

    def on_client_drained(self) -> None:
        if self._connection is not None and not self._outgrown_at:
            self._connection.resume_reading()
            self._touched = self._proxy.loop.time()

    def on_client_lost(self) -> None:
        """The client's connection is gone."""
        if self._is_over:
            return
        if self._hold is None:
            self._is_over = True  # what is under way for it is settled when it arrives
            return
        # A tunnel that ends with its connection is whole, and so is an answer that was there before.
        is_whole = self._answer_done or (self._is_tunnel and self._body_done)
        if self._is_tunnel and self._connection is not None:
            self._connection.close()
            self._connection = None
        self._finish("completed" if is_whole else "client_gone", charged=self._sent_at > 0)

    # -- from the upstream

    def on_interim(self, head: ResponseHead) -> None:
        self._touched = self._proxy.loop.time()
        if head.status == 100:
            if self._continue_due < 0:
                return  # we have said it
            self._continue_due = 0.0
        if self.head.minor == 1:
            fields = head.fields_without_length() if head.length >= 0 else head.fields
            self.client.write(b"HTTP/1.1 %b\r\n%b\r\n" % (head.status_text, fields))

    def on_answer_head(self, head: ResponseHead, has_body: bool, first: Data) -> None:
        now = self._proxy.loop.time()
        self._headed_at = self._touched = now
        self._proxy.metrics.upstream.observe(now - self._sent_at)
        self._status = head.status
        self._answer_head = head
        if self._lane.meters is not None and 200 <= head.status < 300:
            self._reading = self._lane.meters.begin(head.fields)
        client = self.client
        length, fields = head.length, head.fields
        framing = b""
        if length >= 0:
            if head.status == 204:
                fields = head.fields_without_length()
        elif has_body:
            if self.head.minor == 1:
                self._answer_chunked = True
                framing = b"Transfer-Encoding: chunked\r\n"
            else:
                client.close_after_answer()
        elif length == CHUNKED and head.status not in _WITHOUT_BODY and self.head.minor == 1:
            framing = b"Transfer-Encoding: chunked\r\n"
        if not self._body_done and not self._reads_on:
            client.close_after_answer()
        if head.status == 426 and head.upgrade:
            framing += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade
        if client.is_write_paused:  # by an answer before this one, so nobody will tell us
            self.on_client_full()
        pieces = [
            b"HTTP/1.1 ", head.status_text, b"\r\n", fields, framing, client.connection_field(),
            b"X-Request-Id: ", self.public_id, b"\r\n\r\n",
        ]  # fmt: skip
        if has_body and length < 0 and is_plain_event_stream(fields):
            self._frames = EventBorders()
            self._frames.feed(first)
        if first:
            self._count_answer(first)
        if self._is_placed and (not has_body or self._bytes_out == length):
            self._last_words = [*pieces, first]
        elif not first:
            client.write(b"".join(pieces))
        else:
            client.write_with(b"".join(pieces), (encode_chunk(first) if self._answer_chunked else first,))

    def _count_answer(self, data: Data) -> None:
        """Bytes of the answer, which may be what it costs, or say so."""
        self._bytes_out += len(data)
        if self._reading is not None:
            self._reading.feed(data)

    @property
    def _reads_on(self) -> bool:
        """Whether a body that was answered early goes on: the upstream says so, and the client was asked for it."""
        return self._connection is not None and self._connection.keep_alive and self._continue_due <= 0

    def on_answer_body(self, data: Data) -> None:
        self._touched = now = self._proxy.loop.time()
        if self._frames is not None:
            if self._cut_by is not None:
                data = data[: self._frames.end_of_frame(data)]
            else:
                self._frames.feed(data)
        self._count_answer(data)
        head = self._answer_head
        if self._is_placed and head is not None and self._bytes_out == head.length:
            self._last_words = [data]
        else:
            self.client.write(encode_chunk(data) if self._answer_chunked else data)
        if self._cut_by is not None:
            self._break_off(self._cut_by)
        elif self._bytes_out > self._covered_bytes:
            self._look_at_cost(now)

    def on_switched(self, head: ResponseHead, first: bytes) -> bool:
        if not self._upgrade or not is_granted(self.head, self._upgrade, head):
            return False
        client = self.client
        self._headed_at = self._touched = now = self._proxy.loop.time()
        self._proxy.metrics.upstream.observe(now - self._sent_at)
        self._status = 101
        self._is_tunnel = True
        self._extend_due = now
        self._body_done = False
        self._bytes_out += len(first)
        if is_websocket(head.upgrade):
            self._frames = FrameReader()
            self._frames.feed(first)
        client.close_after_answer()
        client.write(
            b"HTTP/1.1 %b\r\n%bConnection: Upgrade\r\nUpgrade: %b\r\nX-Request-Id: %b\r\n\r\n%b"
            % (head.status_text, head.fields, head.upgrade, self.public_id, first)
        )
        client.begin_tunnel()
        return True

    def on_answer_end(self, trailers: bytes) -> None:
        connection = self._connection
        if self._is_over or connection is None:
            return
        if self._answer_chunked:
            self._last_words = [last_chunk(trailers if self.head.minor == 1 else b"")]
        if self._reading is not None:
            self._reading.end()
        self._answer_done = True
        if not (self._is_placed and self._body_done):
            self._say_last_words()
        if self._is_tunnel:
            self._touched = self._proxy.loop.time()
            if not self._body_done and connection.is_open and self.client.write_eof():
                return
        elif not self._body_done and self._reads_on:
            return
        self._end(connection)

    def _end(self, connection: UpstreamConnection) -> None:
        """Both directions are whole, or the rest of one is not wanted."""
        self._connection = None
        if self._is_tunnel:
            connection.close()
        elif self._body_done:
            connection.release()
        else:
            connection.abort()
        self._finish("completed", then=self._say_the_end)

    def _say_last_words(self) -> None:
        """Write what the client knows the answer's end by."""
        words, self._last_words = self._last_words, []
        if words:
            self.client.write_with(b"", words) if len(words) > 1 else self.client.write(words[0])

    def _say_the_end(self) -> None:
        self._say_last_words()
        self.client.on_exchange_end()

    def _break_off(self, refusal: Refusal) -> None:
        client, frames, now = self.client, self._frames, self._proxy.loop.time()
        if frames is not None and not frames.is_between_frames and not self._cut_by:
            self._cut_by, self._cut_due = refusal, now if self._proxy.is_draining else now + FRAME_END_S
            if self._connection is not None and not client.is_write_paused:
                self._connection.resume_reading()  # up to the frame's end
        is_between = frames is not None and frames.is_between_frames
        if frames is not None and not is_between and now < self._cut_due:
            return
        self._finish("cut")
        if self._answer_done or not is_between:
            client.break_off()
        elif self._is_tunnel:
            code = GOING_AWAY if self._proxy.is_draining else POLICY_VIOLATION
            client.write(close_frame(code, refusal.public_detail))
            client.end_tunnel()
        else:
            event = event_of(refusal, self._lane.route.errors, self.public_id.decode())
            client.write(encode_chunk(event) + last_chunk(b"") if self._answer_chunked else event)
            if not self._body_done:
                client.close_after_answer()
            client.on_exchange_end()

    def on_upstream_lost(self) -> None:
        connection, self._connection = self._connection, None
        if self._is_over:
            return
        if self._answer_done and connection is not None:  # it did not read the body to its end
            self.client.close_after_answer()
            self._end(connection)
            return
        self._proxy.metrics.events["upstream_lost"] += 1
        if not self._headed_at and connection is not None and self._may_replay(connection):
            self._replayed = True
            replacement = self._lane.targets.borrow(self, fresh=True)
            if replacement is not None:
                self.on_connection(replacement)
            return
        at = connection.pool.position if connection is not None else None
        self._fail(upstream_refusal(Reason.UPSTREAM_FAILED, "answer", self._lane.route.name, at))

    def on_upstream_full(self) -> None:
        """The upstream does not keep up: the client is not read until it does."""
        self.client.pause_reading()

    def on_upstream_drained(self) -> None:
        self.client.resume_reading()
        self._touched = self._proxy.loop.time()

    # -- time

    def on_tick(self, now: float) -> None:
        """A few times a second: is anybody standing still, is the hold about to run out?"""
        if self._is_reading_ahead and now - self._touched > self._proxy.settings.body_timeout_s:
            self._proxy.metrics.events["body_timeout"] += 1
            self._is_reading_ahead = False
            self.on_bad_body(Refusal(Reason.REQUEST_TIMEOUT))
        if self._hold is None or self._is_over:
            return
        if now >= self._extend_due and not self._extending:
            self._extend(now)
        if self._cut_by is not None:
            self._break_off(self._cut_by)
        elif self._sent_at and not self._lane.is_fixed:
            self._look_at_cost(now)
        if self.is_over:
            return
        connection = self._connection
        timeouts = self._lane.route.timeouts
        if connection is None:
            if now - self._touched > timeouts.connect_s + timeouts.first_byte_s:
                self._fail(connection_refusal("late", self._lane.route.name))
            return
        # Bytes leaving a full buffer are progress too, though no callback tells of them.
        unsent = self.client.unsent_bytes + connection.unsent_bytes
        if unsent != self._unsent:
            self._unsent, self._touched = unsent, now
        if 0.0 < self._continue_due <= now and not (self._headed_at or self._bytes_in):
            self._continue_due = -1.0
            self.client.write(CONTINUE)
        still_s = now - self._touched
        if still_s < self._lane.patience_s:
            return
        waited_for = overdue(
            still_s, timeouts, self._proxy.settings.body_timeout_s,
            is_tunnel=self._is_tunnel, client_is_full=self.client.is_write_paused,
            upstream_is_full=self.client.is_read_paused, body_done=self._body_done,
            answer_begun=self._headed_at > 0, answer_done=self._answer_done,
        )  # fmt: skip
        if waited_for is not None:
            self._give_up(waited_for, connection)

    def _give_up(self, waited_for: Overdue, connection: UpstreamConnection) -> None:
        events = self._proxy.metrics.events
        if waited_for is Overdue.READER:
            events["client_stalled"] += 1
            self._finish("client_gone")
            self.client.abort()
        elif waited_for is Overdue.TUNNEL:
            events["tunnel_idle"] += 1
            connection.abort()  # what is unsent by now will not be taken
            self._end(connection)
        elif waited_for is Overdue.REST_OF_BODY:
            self.client.close_after_answer()
            self._end(connection)
        elif waited_for is Overdue.BODY:
            events["body_timeout"] += 1
            self._fail(Refusal(Reason.REQUEST_TIMEOUT), outcome="client_gone")
        else:
            phase, pool = waited_for.name.lower(), connection.pool
            pool.note_failure(phase)
            self._fail(upstream_refusal(Reason.UPSTREAM_TIMEOUT, phase, self._lane.route.name, pool.position))
