"""E-mail: one message to all addresses of a destination, by SMTP.

TLS from the start with smtps://, by STARTTLS where the server offers it with smtp://. A password is sent over TLS only, unless
the URL says `?starttls=never`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import Final, Literal, cast
from urllib.parse import parse_qs, unquote, urlsplit

import aiosmtplib
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)

from control.delivery.message import Message
from control.delivery.outcome import Outcome
from control.delivery.resolver import NotResolvedInTime, Resolver
from control.settings import ControlSettings

NOT_CONFIGURED: Final = (
    "This installation sends no e-mail: set TOLLKEEPER_SMTP_URL and TOLLKEEPER_SMTP_FROM for control and jobs, and "
    "start them anew."
)
_PORTS: Final = {"smtp": 587, "smtps": 465}
_DEFAULT_REPLY: Final = -1


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where e-mail is handed in, and as whom."""

    host: str
    port: int
    sender: str
    uses_tls: bool
    starttls: Literal["auto", "required", "never"]
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: ControlSettings) -> MailServer | None:
        """None where no mail server is configured. The URL was checked when the settings were read."""
        if settings.smtp_url is None or settings.smtp_from is None:
            return None
        parts = urlsplit(settings.smtp_url.get_secret_value())
        starttls = parse_qs(parts.query).get("starttls", ["auto"])[0]
        return cls(
            host=parts.hostname or "",
            port=parts.port or _PORTS[parts.scheme],
            sender=settings.smtp_from,
            uses_tls=parts.scheme == "smtps",
            starttls=cast("Literal['auto', 'required', 'never']", starttls),
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


def compose(
    message: Message, sender: str, addresses: Sequence[str], destination: str, at: datetime
) -> EmailMessage:
    """The message as e-mail, sent at `at`; its Message-ID is the same at every attempt."""
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = ", ".join(addresses)
    mail["Subject"] = message.subject
    mail["Date"] = format_datetime(at)
    domain = parseaddr(sender)[1].rpartition("@")[2]
    mail["Message-ID"] = f"<{message.id}.{destination}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.text + "\n")
    return mail


async def send(
    server: MailServer,
    resolver: Resolver,
    addresses: Sequence[str],
    message: Message,
    destination: str,
    timeout_s: float,
) -> Outcome:
    """One attempt. Taken if the server accepts it for one of the addresses; those that it refused are a note."""
    mail = compose(message, server.sender, addresses, destination, datetime.now(UTC))
    try:
        sock = await resolver.connect(server.host, server.port)
    except OSError as error:
        return Outcome(_why(error, timeout_s))
    # Without a name of its own the library would ask the name server for one.
    client = SMTP(
        hostname=server.host,
        sock=sock,
        local_hostname=own_name(sock),
        timeout=timeout_s,
        use_tls=server.uses_tls,
        start_tls=False if server.uses_tls else _STARTTLS[server.starttls],
    )
    try:
        await client.connect()
        if server.user is not None:
            if client.get_transport_info("sslcontext") is None and server.starttls != "never":
                return Outcome(
                    "the mail server offers no TLS, and a password is not sent without: use smtps://, or ?starttls=never "
                    "in TOLLKEEPER_SMTP_URL if the way there is safe"
                )
            await client.login(server.user, server.password or "")
        refused, _ = await client.send_message(mail)
        note = f"refused for {', '.join(sorted(refused))}" if refused else None
        return Outcome(status=250, note=note)
    except SMTPException as error:
        return _failed(error, timeout_s)
    except (TimeoutError, OSError) as error:
        return Outcome(_why(error, timeout_s))
    finally:
        client.close()


def own_name(sock: socket.socket) -> str:
    """How we greet a mail server: this machine's full name, or, where it has none, the address that we come from."""
    name = socket.gethostname()
    if "." in name.strip("."):
        return name
    address = str(sock.getsockname()[0]).partition("%")[0]
    return f"[IPv6:{address}]" if sock.family == socket.AF_INET6 else f"[{address}]"


_STARTTLS: Final[dict[str, bool | None]] = {"auto": None, "required": True, "never": False}


def _failed(error: SMTPException, timeout_s: float) -> Outcome:
    """Reply codes are said, replies are not: servers repeat in them what they were told."""
    if isinstance(error, SMTPRecipientsRefused):
        codes = sorted({refusal.code for refusal in error.recipients})
        return Outcome(
            f"the mail server refused every address ({', '.join(map(str, codes))})",
            codes[0] if codes else None,
        )
    if isinstance(error, SMTPAuthenticationError):
        return Outcome(f"the mail server did not accept user and password ({error.code})", error.code)
    if isinstance(error, SMTPResponseException) and error.code != _DEFAULT_REPLY:
        return Outcome(f"the mail server answered {error.code}", error.code)
    return Outcome(_why(error, timeout_s))


def _why(error: BaseException, timeout_s: float) -> str:
    if isinstance(error, NotResolvedInTime):
        return "the mail server's name was not resolved in time"
    causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "TLS with the mail server failed, or its certificate was not accepted"
    if isinstance(error, (SMTPTimeoutError, TimeoutError)):
        return f"no answer from the mail server within {timeout_s:g} s"
    if isinstance(error, SMTPServerDisconnected):
        return "the mail server closed the connection"
    if isinstance(error, (aiosmtplib.SMTPConnectError, OSError)):
        return "the mail server could not be connected to"
    return f"the mail server did not take it ({type(error).__name__})"
