"""Requests to the gateway itself: `GET /-/key`, where a key asks about itself. Acts.

`/-/` is the gateway's own prefix (a setting), and nothing under it is ever forwarded. A question places no hold and writes no
row. It is answered for a right secret whether or not the key is in force: saying why not is what it is for. It stands in an
exchange's place at the client's connection, so that bodies, pipelining and lost clients are dealt with alike.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import hiredis
import orjson
import structlog

from gateway.contract.records import Identity
from gateway.contract.token import TOKEN_LENGTH, key_id_of
from gateway.credentials import token_in
from gateway.directory import INVALID, NOT_READY, OVERLOADED
from gateway.http1.chunked import Data
from gateway.http1.head import RequestHead
from gateway.key_report import RECORD_FIELDS, Standing, key_report, read_standing
from gateway.redis_pipe import PipeLost
from gateway.refusals import Reason, Refusal

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.proxy import Proxy

KEY_PATH: Final = b"key"
"""What is behind the prefix."""

ANSWERED_WITHIN_S: Final = 15.0
"""The longest that a question may take: more than any wait for Redis, and the verification of a token that Redis has no digest
of waits its turn."""

_METHODS: Final = (b"GET", b"HEAD")
_Chain = tuple[Standing | None, Standing | None, Standing | None]

log = structlog.get_logger("gateway.own_endpoints")


class KeyQuestion:
    """One request for `/-/key`, from its head to its answer. Made by a client's connection."""

    __slots__ = ("_client", "_due", "_proxy", "_public_id", "_task", "head", "is_over")

    is_tunnel: Final = False
    half_closed_s: Final = 1.0
    """How long it goes on for a client that sends no more."""

    def __init__(self, proxy: Proxy, client: ClientConnection, head: RequestHead) -> None:
        self._proxy = proxy
        self._client = client
        self.head = head
        self._public_id = head.request_id or proxy.next_request_id()
        self._due = proxy.loop.time() + ANSWERED_WITHIN_S
        self._task: asyncio.Task[dict[str, Any] | Refusal] | None = None
        self.is_over = False

    def begin(self) -> None:
        """Judge the method and the shape of the token; then ask."""
        proxy, head = self._proxy, self.head
        proxy.metrics.events["own_key"] += 1
        token = token_in(head.scheme, head.token)
        head.token = None
        if head.method not in _METHODS:
            self._refuse(Refusal(Reason.METHOD_NOT_ALLOWED))
        elif token is None:
            self._refuse(Refusal(Reason.MISSING_TOKEN))
        elif len(token) != TOKEN_LENGTH or key_id_of(token) is None:
            self._refuse(INVALID)
        elif not proxy.ledger.is_ready:
            self._refuse(NOT_READY)
        elif proxy.ledger.pipe.depth >= proxy.settings.redis_depth_max:
            self._refuse(OVERLOADED)
        else:
            self._task = proxy.loop.create_task(self._find_out(token), name="own key")
            self._task.add_done_callback(self._on_found_out)

    async def _find_out(self, token: bytes) -> dict[str, Any] | Refusal:
        directory, ledger = self._proxy.directory, self._proxy.ledger
        digest = directory.digest(token)
        caller = await directory.recognise(token, digest)
        if isinstance(caller, Refusal):
            return caller
        identity = caller.identity
        try:
            now_ms, chain = await self._read(identity)
            if chain[0] is None or chain[0].digest != digest:
                # Known from before, but Redis has lost the record or its digest since, or has another one: look again.
                directory.forget(digest)
                readopted = await directory.readopt(caller, digest)
                if isinstance(readopted, Refusal):
                    return readopted
                now_ms, chain = await self._read(identity)
        except PipeLost:
            return NOT_READY
        except hiredis.ReplyError as error:
            ledger.note_error(error)
            return NOT_READY
        except ValueError:
            log.error("unreadable_key_record", key=identity.key_id)
            return NOT_READY
        key, account, organization = chain
        if key is None or account is None or organization is None:
            return NOT_READY  # it was there a moment ago: Redis is being emptied, or loaded
        return key_report(identity, (key, account, organization), now_ms)

    async def _read(self, identity: Identity) -> tuple[int, _Chain]:
        """Redis's time, and the three levels as they stand. Raises PipeLost, hiredis.ReplyError, ValueError."""
        pipe, names = self._proxy.ledger.pipe, self._proxy.ledger.names
        (seconds, micros), key, account, organization = await asyncio.gather(
            pipe.call("TIME"),
            pipe.call("HMGET", names.key(identity.key_id), *RECORD_FIELDS),
            pipe.call("HMGET", names.account(identity.account_id), *RECORD_FIELDS),
            pipe.call("HMGET", names.organization(identity.organization_tag), *RECORD_FIELDS),
        )
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        return now_ms, (
            read_standing(key, now_ms),
            read_standing(account, now_ms),
            read_standing(organization, now_ms),
        )

    def _on_found_out(self, task: asyncio.Task[dict[str, Any] | Refusal]) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure is not None:  # one that nobody foresaw: the client is answered, not left waiting
            log.error("own_endpoint_failed", exc_info=failure)
        if self.is_over:
            return
        found = NOT_READY if failure is not None else task.result()
        if isinstance(found, Refusal):
            self._refuse(found)
            return
        self.is_over = True
        self._client.answer_own(orjson.dumps(found), self._public_id)

    def _refuse(self, refusal: Refusal) -> None:
        self._end()
        self._proxy.metrics.refusals[("", refusal.reason.value)] += 1
        self._client.answer_refusal(refusal, "problem", self._public_id)

    def _end(self) -> None:
        self.is_over = True
        if self._task is not None:
            self._task.cancel()

    # -- what a client's connection tells an exchange

    def on_request_body(self, data: Data) -> None:
        """Read and thrown away."""

    def on_request_end(self) -> None:
        """Nothing waits for it."""

    def on_client_full(self) -> None:
        """What is written is one small answer."""

    def on_client_drained(self) -> None:
        """See above."""

    def on_client_lost(self) -> None:
        self._end()

    def on_bad_body(self, refusal: Refusal) -> None:
        if not self.is_over:
            self._refuse(refusal)

    def on_tick(self, now: float) -> None:
        if now >= self._due and not self.is_over:
            self._refuse(NOT_READY)

    def cut(self, detail: str) -> None:
        """The gateway stops."""
        if not self.is_over:
            self._refuse(Refusal(Reason.NOT_READY, detail=detail))
