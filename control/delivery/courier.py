"""The courier: takes one message to one destination, whatever its kind, within a bound. Made for one round of deliveries.

Never raises, whatever a receiver does, or a message has in it: an outcome says it, so that nobody's trouble is another's.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import aiohttp
import structlog

from control.delivery import mail, slack, webhook
from control.delivery.mail import MailServer
from control.delivery.message import Message
from control.delivery.outcome import Outcome
from control.delivery.posting import open_session
from control.delivery.resolver import Resolver
from control.domain.destinations import Destination
from control.sealing import SealBroken, Sealing

TIMEOUT_S: Final = 10.0

_SEAL_BROKEN: Final = {
    "webhook": "its signing secret cannot be read, because the pepper was changed: rotate the secret",
    "slack": "its URL cannot be read, because the pepper was changed: delete it and add it again",
}

_log = structlog.get_logger(__name__)


class Courier(AbstractAsyncContextManager["Courier"]):
    """`async with Courier(…) as courier`: then `deliver`, as often and as much at once as you like."""

    def __init__(
        self,
        sealing: Sealing,
        server: MailServer | None,
        resolver: Resolver,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._sealing = sealing
        self._server = server
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def deliver(self, destination: Destination, message: Message) -> Outcome:
        """One attempt, of at most the courier's time-out."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                outcome = await self._send(destination, message)
        except TimeoutError:
            outcome = Outcome(f"no answer within {self._timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - logged; one delivery must not take the others along
            kind = type(error).__name__  # its words may quote an address, and with it a secret
            _log.error("alert_not_sendable", destination=destination.id, message=message.id, error=kind)
            outcome = Outcome(f"it could not be sent, which is a defect of Tollkeeper ({kind})")
        return replace(outcome, milliseconds=round((time.monotonic() - began) * 1000))

    async def _send(self, destination: Destination, message: Message) -> Outcome:
        if destination.kind == "email":
            if self._server is None:
                return Outcome(mail.NOT_CONFIGURED)
            return await mail.send(
                self._server, self._resolver, destination.addresses, message, destination.id, self._timeout_s
            )
        try:
            secret = self._sealing.open(destination.sealed or b"", destination.row)
        except SealBroken:
            return Outcome(_SEAL_BROKEN[destination.kind])
        if self._session is None:
            self._session = open_session(self._resolver)
        if destination.kind == "slack":
            return await slack.send(self._session, secret, message, self._timeout_s)
        return await webhook.send(self._session, destination.url or "", secret, message, self._timeout_s)
