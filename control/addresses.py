"""Addresses of the servers: whether what was given is one. Pure.

Asked where settings and options are read, because the libraries' own words about an address that they cannot read repeat
what they stumbled over, and that is usually a part of the password.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_PORT: Final = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")
_MAIL: Final = re.compile(
    r"[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+(?:\.[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?\.)*[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?",
    re.ASCII,
)
_MAIL_LENGTH_MAX: Final = 254
_WEB_URL_LENGTH_MAX: Final = 2048
_WEB_SIGNS: Final = re.compile(r"[!-~]+", re.ASCII)
_ESCAPE: Final = "signs such as / ? # @ : in a password are written %2F %3F %23 %40 %3A"


def check_postgres_dsn(dsn: str) -> None:
    """Raises ValueError, in words that repeat nothing of it, if this is no postgresql:// DSN; it may name several hosts."""
    _check("a Postgres DSN", dsn, ("postgresql", "postgres"))


def check_redis_url(url: str) -> None:
    """Raises ValueError, in words that repeat nothing of it, if this is no redis://, rediss:// or unix:// URL."""
    _check("a Redis URL", url, ("redis", "rediss", "unix"))


def check_smtp_url(url: str) -> None:
    """Raises ValueError, in words that repeat nothing of it, if this is no smtp:// or smtps:// URL of a mail server."""
    _check("a mail server's URL", url, ("smtp", "smtps"))
    try:
        parts = urlsplit(url)
        is_one = bool(parts.hostname) and parts.path in ("", "/") and parts.port != 0
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        is_one, options = False, {}
    if not is_one:
        raise ValueError(f"this is not a mail server's URL: smtp://user:password@host:port; {_ESCAPE}")
    if options.pop("starttls", "auto") not in ("auto", "required", "never") or options:
        raise ValueError("the one option of a mail server's URL is ?starttls=auto, required or never")


def is_mail_address(text: str) -> bool:
    """Whether this is name@host in plain ASCII (RFC 5321's dot-string), at most 254 characters."""
    return len(text) <= _MAIL_LENGTH_MAX and _MAIL.fullmatch(text) is not None


def check_web_url(url: str) -> None:
    """Raises ValueError, in words that repeat nothing of it, unless this is an http:// or https:// URL without user and
    password and without a fragment, at most 2048 characters.
    """
    if len(url) > _WEB_URL_LENGTH_MAX:
        raise ValueError(f"has {len(url)} characters; at most {_WEB_URL_LENGTH_MAX} are kept")
    if _WEB_SIGNS.fullmatch(url) is None:
        raise ValueError("has spaces or signs outside ASCII: percent-encode them")
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        has_host, parts = False, urlsplit("")
    if parts.scheme not in ("http", "https") or not has_host:
        raise ValueError("must be a URL such as https://alerts.example.com/tollkeeper")
    if "@" in parts.netloc:
        raise ValueError("must have no user and password in it: the signature tells who is calling")
    if parts.fragment:
        raise ValueError("must have no fragment (#…): it would never be sent")


def _check(noun: str, address: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(address)
        parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ValueError(f"this is not {noun}; {_ESCAPE}") from None
    if parts.scheme not in schemes:
        raise ValueError(f"{noun} begins with {', '.join(f'{scheme}://' for scheme in schemes)}")
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if parts.fragment or not all(_PORT.fullmatch(host) for host in hosts):
        raise ValueError(f"this is not {noun}; {_ESCAPE}")
