"""Whoever is told of alerts, for tests: an HTTP server on loopback that does what it is told to, and a mail server."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from typing import Any, Literal

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

BOUND_S = 30.0


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something; fails the test if it does not come."""
    give_up_at = time.monotonic() + BOUND_S
    while not is_so():
        assert time.monotonic() < give_up_at, "did not happen in time"
        await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass(slots=True)
class Receiver:
    """Takes what it is sent, in its time, unless it is told to answer otherwise: a status, "hang" or "drop"."""

    url: str = ""
    answer: int | Literal["hang", "drop"] = 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    one_at_a_time: int | None = None
    """What is answered to whoever comes while another is being answered."""
    takes_s: float = 0.0
    """Up to four times that, differently each time."""
    refused: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    most_at_once: int = 0
    inside: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def all(self) -> list[Received]:
        return self.refused + self.taken

    async def handle(self, request: web.Request) -> web.Response:
        received = Received(
            {name.lower(): value for name, value in request.headers.items()}, await request.read()
        )
        self.inside += 1
        self.most_at_once = max(self.most_at_once, self.inside)
        try:
            return await self._answered(request, received)
        finally:
            self.inside -= 1

    async def _answered(self, request: web.Request, received: Received) -> web.Response:
        if self.one_at_a_time is not None and self.inside > 1:
            self.refused.append(received)
            return web.Response(status=self.one_at_a_time, headers=self.headers)
        if isinstance(self.answer, int) and self.answer < 300:
            self.taken.append(received)
            await asyncio.sleep(self.takes_s * (len(self.taken) % 5))
            return web.Response(status=self.answer)
        self.refused.append(received)
        if self.answer == "hang":
            await self.released.wait()
        if self.answer == "drop" and request.transport is not None:
            request.transport.abort()
        status = self.answer if isinstance(self.answer, int) else 503
        return web.Response(status=status, headers=self.headers, text=self.text)


@asynccontextmanager
async def receiving(path: str = "/alerts") -> AsyncIterator[Receiver]:
    """An HTTP receiver on a port of its own; every other path than `path` is counted too, so a redirect would be seen."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        receiver.url = f"http://{host}:{port}{path}"
        yield receiver
    finally:
        receiver.released.set()
        await runner.cleanup()


@dataclass
class Mailbox:
    """A mail server: what it took, and whom it refuses."""

    port: int = 0
    taken: list[tuple[list[str], EmailMessage]] = field(default_factory=list)
    refuses: set[str] = field(default_factory=set)
    temporarily_full: bool = False
    logins: list[tuple[str, str, bool]] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - the name is aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refuses:
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.temporarily_full:
            return "452 no room now"
        content = envelope.content
        assert isinstance(content, bytes)
        mail = message_from_bytes(content, policy=policy.default)
        self.taken.append((list(envelope.rcpt_tos), mail))
        return "250 OK"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        login, password = data.login.decode(), data.password.decode()
        self.logins.append((login, password, session.ssl is not None))
        return AuthResult(success=password == "right / password", handled=False)


@asynccontextmanager
async def mailing(
    tls: ssl.SSLContext | None = None, *, asks_for_login: bool = False
) -> AsyncIterator[Mailbox]:
    """A mail server on a port of its own, that offers STARTTLS if it is given a certificate."""
    mailbox = Mailbox()
    make = partial(
        SMTP,
        mailbox,
        hostname="mail.test",
        tls_context=tls,
        auth_require_tls=False,
        auth_required=asks_for_login,
        authenticator=mailbox.authenticate,
        enable_SMTPUTF8=False,
        loop=asyncio.get_running_loop(),
    )
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    mailbox.port = server.sockets[0].getsockname()[1]
    try:
        yield mailbox
    finally:
        server.close()
