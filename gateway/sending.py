"""An admitted request on its way to the upstream: connection, head, body. Acts.

Between `Holding` and `exchange.Exchange`, which brings the answer back.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from gateway.holding import Holding
from gateway.http1.chunked import Data, encode_chunk, last_chunk
from gateway.http1.head import CHUNKED, RequestHead
from gateway.http1.upgrade import wanted_upgrade
from gateway.http1.upstream import Answering, ConnectionFailed, UpstreamConnection
from gateway.refusals import Refusal, connection_refusal

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

CONTINUE_AFTER_S: Final = 1.0
"""How long a client that expects 100 waits for the upstream's word; then it is given ours: many upstreams never say it."""

_REPLAYABLE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))


class Sending(Holding, Answering):
    """See the module's docstring."""

    __slots__ = ("_answer_done", "_continue_due", "_replayed", "_tried", "_upgrade")

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        super().__init__(proxy, client, head, target, lane)
        self._replayed = False
        self._tried: frozenset[int] = frozenset()
        self._continue_due = 0.0
        self._upgrade = wanted_upgrade(head) if head.hop is not None and lane.route.upgrade else b""
        self._answer_done = False

    @abstractmethod
    def _end(self, connection: UpstreamConnection) -> None:
        """Both directions are whole, or the rest of one is not wanted."""

    def _begin_forwarding(self, now: float) -> None:
        self._touched = now
        connection = self._lane.targets.borrow(self)
        if connection is not None:
            self.on_connection(connection)

    # -- a connection to the upstream

    def on_connection(self, connection: UpstreamConnection) -> None:
        if self._is_over:
            connection.release()
            return
        self._connection = connection
        now = self._proxy.loop.time()
        self._sent_at = self._touched = now
        head = self.head
        self.client.resume_reading()  # first: what is written now may fill the upstream, and pause the client again
        early = self._early
        if early:
            self._early, self._early_size = [], 0
            if head.length == CHUNKED:
                early = [encode_chunk(data) for data in early]
        elif self._expects_continue:
            self._continue_due = now + CONTINUE_AFTER_S
        if self._body_done and head.length == CHUNKED:
            early.append(last_chunk(self.client.trailers))
        request = self._upstream_head(connection)
        connection.begin(self, request, early, is_head_request=head.method == b"HEAD")

    def on_no_connection(self, error: ConnectionFailed) -> None:
        if self._is_over:
            return
        self._proxy.metrics.events[f"upstream_{error.kind}"] += 1
        targets = self._lane.targets
        if error.position is not None:
            self._tried |= {error.position}
            if targets.has_others(self._tried):
                self._proxy.metrics.events["connect_retried"] += 1
                connection = targets.borrow(self, tried=self._tried)
                if connection is not None:
                    self.on_connection(connection)
                return
        self._fail(connection_refusal(error.kind, self._lane.route.name, error.position))

    def _upstream_head(self, connection: UpstreamConnection) -> bytes:
        head, lane, caller, pool = self.head, self._lane, self._caller, connection.pool
        assert caller is not None
        if head.length == CHUNKED:
            framing = b"Transfer-Encoding: chunked\r\n"
        elif head.is_framed:
            framing = b"Content-Length: %d\r\n" % head.length
        else:
            framing = b""
        if self._expects_continue and head.length:
            framing += b"Expect: 100-continue\r\n"
        if head.hop is not None:
            if self._upgrade:
                framing += b"Connection: Upgrade\r\nUpgrade: %b\r\n" % self._upgrade
            if head.hop.wants_trailers:
                framing += b"Connection: TE\r\nTE: trailers\r\n"
        return b"".join(
            (
                head.method, b" ", lane.route.upstream_target(self._target, pool.upstream), b" HTTP/1.1\r\nHost: ",
                pool.authority, b"\r\n", *head.fields, framing, self.client.way(head), caller.principal_fields,
                b"X-Request-Id: ", self.public_id, b"\r\n\r\n",
            )
        )  # fmt: skip

    # -- from the client

    def on_request_body(self, data: Data) -> None:
        """Bytes of the client's body, without framing; or of a tunnel."""
        self._bytes_in += len(data)
        if self._is_over:
            return
        connection = self._connection
        if self._scan is not None:
            self._watch_body(data)
            if self.is_over:
                return
        if connection is None:
            self._keep_early(data)
            return
        self._touched = self._proxy.loop.time()
        connection.write(encode_chunk(data) if self.head.length == CHUNKED else data)

    def on_request_end(self) -> None:
        """The client's body is whole; or a tunnel's client sends no more."""
        self._body_done = True
        connection = self._connection
        if connection is None or self._is_over:
            if self._is_reading_ahead and not self._is_over:
                self._end_reading_ahead()
            return
        self._touched = self._proxy.loop.time()
        if self._is_tunnel:
            if not connection.write_eof():
                self._answer_done = True  # over TLS that is said by closing: the tunnel ends as a whole
        elif self.head.length == CHUNKED:
            connection.write(last_chunk(self.client.trailers))
        if self._answer_done:
            self._end(connection)

    def on_bad_body(self, refusal: Refusal) -> None:
        """The client's body is malformed, too large or too slow: nothing that follows it can be trusted."""
        if not self._is_over:
            self._fail(refusal, outcome="client_gone")

    def _may_replay(self, connection: UpstreamConnection) -> bool:
        """Only what cannot run twice to harm: no body, an idempotent method, and a kept connection that went stale."""
        return (
            not self._replayed
            and connection.requests > 1
            and not connection.has_spoken
            and self.head.length == 0
            and self.head.method in _REPLAYABLE
            and not self._upgrade
        )
