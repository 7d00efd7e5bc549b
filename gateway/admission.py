"""The first half of an exchange: who is calling, and whether they may. Acts.

    begin -> recognise the token -> admit -> `_on_admitted`, or `_refuse`

Everything is a callback; only the cold path (a token seen for the first time, or again after Redis was rebuilt) makes a task.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import hiredis
import structlog

from gateway.caller import Caller
from gateway.contract.ids import Level, organization_id
from gateway.contract.token import TOKEN_LENGTH, Digest, holds_token, key_id_of
from gateway.credentials import token_in
from gateway.directory import INVALID, NOT_READY, OVERLOADED
from gateway.http1.head import RequestHead
from gateway.recording import refused_line
from gateway.redis_pipe import PipeLost, Reply
from gateway.refusals import Entity, Reason, Refusal, read_admission
from gateway.refused import OBSERVED

if TYPE_CHECKING:
    from gateway.http1.client import ClientConnection
    from gateway.http1.target import Target
    from gateway.proxy import Lane, Proxy

log = structlog.get_logger("gateway.admission")

_ADMITTED: Final = (b"placed", b"observed")
_MISSING: Final = Refusal(Reason.MISSING_TOKEN)


class Admission:
    """A request until it is admitted or refused. `Exchange` goes on from there."""

    __slots__ = (
        "_caller", "_cold", "_digest", "_held", "_hold", "_is_over", "_is_placed", "_lane", "_looked_again", "_proxy",
        "_started", "_target", "client", "head", "public_id", "request_id",
    )  # fmt: skip

    def __init__(
        self, proxy: Proxy, client: ClientConnection, head: RequestHead, target: Target, lane: Lane
    ) -> None:
        self._proxy = proxy
        self.client = client
        self.head = head
        self._target = target
        self._lane = lane
        self.request_id = proxy.next_request_id()
        """Of the hold and of the row in the ledger: made here, for it must never come twice."""
        self.public_id = head.request_id or self.request_id
        """What the client and the upstream know the request by: the client's own id, if it gave a sane one."""
        self._started = proxy.loop.time()
        self._caller: Caller | None = None
        self._digest = b""
        self._cold: asyncio.Task[None] | None = None
        self._looked_again = False
        self._held: int = lane.route.hold
        """What is asked for, and then held, in microcredits. It may grow."""
        self._hold: bytes | None = None
        self._is_over = False
        self._is_placed = False
        """Whether its key or account may have only so many in flight: somebody may be waiting for its end."""

    @property
    def digest(self) -> bytes:
        """The digest of the token that was sent; b"" if none was, or none that could be one."""
        return self._digest

    @property
    def is_over(self) -> bool:
        """True once settled or refused: nothing that still arrives for it matters."""
        return self._is_over

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
        if b"tk_" in b"".join(head.fields):  # perhaps a token, this one or another, that would be passed on
            head.fields = [line for line in head.fields if not holds_token(line)]
        directory = self._proxy.directory
        self._digest = digest = directory.digest(token)
        caller = directory.known(digest)
        if caller is not None:
            self._caller = caller
            self._admit()
        elif key_id_of(token) is None:
            self._refuse(INVALID)
        elif not self._proxy.ledger.is_ready:
            self._refuse(NOT_READY)
        else:
            self._begin_cold(self._recognise(token))

    def begin_as(self, caller: Caller, digest: bytes) -> None:
        """Ask for admission for a caller whose token, with this digest, was recognised before in the very same head."""
        self._digest = digest
        self._caller = caller
        self._admit()

    def _begin_cold(self, path: Coroutine[Any, Any, None]) -> None:
        self._cold = self._proxy.loop.create_task(path, name="recognise")
        self._cold.add_done_callback(self._on_cold_end)

    def _on_cold_end(self, task: asyncio.Task[None]) -> None:
        """A failure nobody foresaw: the request is refused, not left waiting."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            log.error("recognition_failed", exc_info=failure)
            if not self._is_over and self._hold is None:
                self._refuse(NOT_READY)

    async def _recognise(self, token: bytes) -> None:
        self._go_on_with(await self._proxy.directory.recognise(token, Digest(self._digest)))

    def _go_on_with(self, found: Caller | Refusal) -> None:
        if self._is_over:
            return
        if isinstance(found, Refusal):
            self._refuse(found)
        else:
            self._caller = found
            self._admit()

    def _admit(self) -> None:
        ledger = self._proxy.ledger
        caller = self._caller
        assert caller is not None
        if not ledger.is_ready:
            self._refuse(NOT_READY)
        elif ledger.is_full:
            self._refuse(OVERLOADED)
        elif (amount := self._amount()) is not None and not ledger.admit(
            caller, amount, self.request_id, self._lane.name, self._on_admission
        ):
            self._refuse(NOT_READY)

    @abstractmethod
    def _amount(self) -> bytes | None:
        """What to hold, as an argument of admit; None if that is not known yet (then `_admit` is called again) or the request
        was refused."""

    def _on_admission(self, reply: Reply) -> None:
        if type(reply) is bytes:
            self._hold = reply
            self._on_admitted()
        elif type(reply) is list and reply[0] in _ADMITTED:
            self._hold, self._is_placed = reply[1], True
            self._note_observed(reply[2:])
            self._on_admitted()
        elif not self._is_over:
            self._on_not_admitted(reply)

    def _note_observed(self, seen: list[bytes]) -> None:
        """Levels that only observe would have refused: (level, what), one after another."""
        caller = self._caller
        assert caller is not None
        for level, what in zip(seen[::2], seen[1::2], strict=True):
            reason = OBSERVED[what]
            self._proxy.metrics.observed[(self._lane.route.name, reason.value)] += 1
            self._proxy.refused.add(caller, self._lane.route.name, reason, level.decode(), observed=True)

    def _on_admitted(self) -> None:
        raise NotImplementedError

    def _on_not_admitted(self, reply: Reply) -> None:
        if isinstance(reply, list):
            refusal = read_admission(
                reply, self._entities(), self._held, self._lane.route.quota_status, self._proxy.ledger.now_ms
            )
            if refusal is not None:
                self._refuse(refusal)
            elif reply[0] == b"digest":
                self._look_again()
            elif reply[0] == b"late":
                self._ask_again()
            elif reply[0] == b"broken":
                self._proxy.metrics.events["broken_record"] += 1
                self._refuse(NOT_READY)
            else:
                self._proxy.ledger.confirm_loaded(self._on_missing_record)
            return
        if isinstance(reply, hiredis.ReplyError):
            passes = self._proxy.ledger.note_error(reply)
            if passes and str(reply).startswith("NOSCRIPT") and not self._looked_again:
                self._looked_again = True
                self._admit()  # behind the scripts, which are being loaded on the same connection
                return
        elif not isinstance(reply, PipeLost):
            self._proxy.metrics.events["unexpected_reply"] += 1
        self._refuse(NOT_READY)

    def _entities(self) -> dict[Level, Entity]:
        """Whose the limits are, by level."""
        caller = self._caller
        assert caller is not None
        identity = caller.identity
        return {
            "key": Entity(identity.key_id),
            "account": Entity(identity.account_id, identity.account_name),
            "organization": Entity(organization_id(identity.organization_tag), identity.organization_name),
        }

    def _ask_again(self) -> None:
        """Redis found that nobody waits for the answer any more. If somebody does, our idea of its clock was wrong, or this
        process stood still: ask once more, when Redis has said what time it is."""
        self._proxy.metrics.events["admission_late"] += 1
        if self._looked_again:
            self._refuse(NOT_READY)
            return
        self._looked_again = True
        self._proxy.ledger.ask_clock(self._on_clock)

    def _on_clock(self) -> None:
        if not self._is_over:
            self._admit()

    def _look_again(self) -> None:
        """The record has another digest, or none since Redis was rebuilt: the cold path decides, once."""
        caller, self._caller = self._caller, None
        self._proxy.directory.forget(self._digest)
        if self._looked_again or caller is None:
            self._refuse(INVALID)
            return
        self._looked_again = True
        self._begin_cold(self._adopt_again(caller))

    async def _adopt_again(self, caller: Caller) -> None:
        self._go_on_with(await self._proxy.directory.readopt(caller, Digest(self._digest)))

    def _on_missing_record(self, is_loaded: bool) -> None:
        if self._is_over:
            return
        self._proxy.directory.forget(self._digest)
        self._refuse(INVALID if is_loaded else NOT_READY)

    def _refuse(self, refusal: Refusal) -> None:
        """End a request that was not admitted. It leaves no hold."""
        self._is_over = True
        proxy, route, client = self._proxy, self._lane.route, self.client
        caller = self._caller
        proxy.metrics.refusals[(route.name, refusal.reason.value)] += 1
        if caller is not None:
            proxy.refused.add(caller, route.name, refusal.reason, refusal.metadata.get("level", ""))
        if proxy.access_log.wants_line():
            identity = caller.identity if caller else None
            proxy.access_log.write(
                refused_line(
                    self.request_id,
                    client.address_of(self.head),
                    identity,
                    route.name,
                    self.head,
                    self._target.path,
                    refusal,
                )
            )
        client.answer_refusal(refusal, route.errors, self.public_id)
