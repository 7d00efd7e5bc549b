"""Addresses of the servers: whether what was given is one. Pure.

Asked where settings and options are read, because the libraries' own words about an address that they cannot read repeat
what they stumbled over, and that is usually a part of the password.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_PORT: Final = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::\d*)?")
_ESCAPE: Final = "signs such as / ? # @ : in a password are written %2F %3F %23 %40 %3A"


def check_postgres_dsn(dsn: str) -> None:
    """Raises ValueError, in words that repeat nothing of it, if this is no postgresql:// DSN; it may name several hosts."""
    _check("a Postgres DSN", dsn, ("postgresql", "postgres"))


def check_redis_url(url: str) -> None:
    """Raises ValueError, in words that repeat nothing of it, if this is no redis://, rediss:// or unix:// URL."""
    _check("a Redis URL", url, ("redis", "rediss", "unix"))


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
