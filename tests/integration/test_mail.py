"""E-mail against a real mail server: TLS, passwords, and what is said when it does not work."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from control.delivery import mail
from control.delivery.mail import MailServer
from control.delivery.message import of_test
from control.delivery.outcome import Outcome
from control.delivery.resolver import Resolver
from gateway.contract.ids import OrganizationTag
from tests.certificates import make_authority, server_context, write_file, write_pair
from tests.integration.receivers import Mailbox, mailing

MESSAGE = of_test("test_1", OrganizationTag("abcdef"), "acme", datetime(2031, 1, 31, tzinfo=UTC))
PASSWORD = "right / password"
SENDER = "alerts@example.com"


def _server(mailbox: Mailbox, **other: object) -> MailServer:
    plain = MailServer("localhost", mailbox.port, SENDER, uses_tls=False, starttls="auto")
    return replace(plain, **other)  # type: ignore[arg-type]


async def _send(server: MailServer, timeout_s: float = 10.0) -> Outcome:
    return await mail.send(server, Resolver(), ["oncall@example.com"], MESSAGE, "ad_1", timeout_s)


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a mail server that this process trusts."""
    authority = make_authority("a test's")
    pair = write_pair(tmp_path, "mail", authority)
    trusted = tmp_path / "authority.pem"
    write_file(trusted, authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    return server_context(pair)


async def test_a_password_goes_over_tls_where_the_server_offers_it(certificate: ssl.SSLContext) -> None:
    async with mailing(certificate) as mailbox:
        assert (await _send(_server(mailbox, user="us", password=PASSWORD))).is_delivered
        wrong = await _send(_server(mailbox, user="us", password="sekret"))

    assert set(mailbox.logins) == {("us", PASSWORD, True), ("us", "sekret", True)}
    assert len(mailbox.taken) == 1
    assert wrong.error == "the mail server did not accept user and password (535)"


async def test_a_password_is_not_sent_in_the_clear_unless_the_url_says_so() -> None:
    async with mailing() as mailbox:
        kept = await _send(_server(mailbox, user="us", password=PASSWORD))
        assert "offers no TLS" in (kept.error or "")
        assert mailbox.logins == []
        assert (await _send(_server(mailbox, user="us", password=PASSWORD, starttls="never"))).is_delivered
        assert mailbox.logins == [("us", PASSWORD, False)]


async def test_without_a_password_mail_goes_to_a_server_without_tls_unless_it_is_required() -> None:
    async with mailing() as mailbox:
        assert (await _send(_server(mailbox))).is_delivered
        required = await _send(_server(mailbox, starttls="required"))

    assert not required.is_delivered
    assert len(mailbox.taken) == 1


async def test_a_server_whose_certificate_is_not_trusted_gets_nothing(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    async with mailing(certificate) as mailbox:
        refused = await _send(_server(mailbox, user="us", password=PASSWORD))

    assert refused.error == "TLS with the mail server failed, or its certificate was not accepted"
    assert (mailbox.logins, mailbox.taken) == ([], [])


async def test_a_server_that_is_silent_or_away_is_said_to_be() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    server = MailServer("127.0.0.1", port, SENDER, uses_tls=False, starttls="auto")
    assert (await _send(server, 0.3)).error == "no answer from the mail server within 0.3 s"
    silent.close()
    await silent.wait_closed()
    assert (await _send(server)).error == "the mail server could not be connected to"
