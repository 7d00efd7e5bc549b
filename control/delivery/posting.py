"""A POST to a receiver: no redirect is followed, no proxy is asked, and of the answer little is read. Says what went wrong
in words of its own. Called by `webhook` and `slack`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import aiohttp
from yarl import URL

from control.delivery.outcome import Outcome
from control.delivery.resolver import NotResolvedInTime, Resolver

ANSWER_BYTES_MAX: Final = 1024
_READING_S: Final = 1.0
_GONE: Final = 410
_ASKED_MAX_S: Final = 3600


def open_session(resolver: Resolver) -> aiohttp.ClientSession:
    """For one round of deliveries. Connections are not kept: the next round may be an hour away."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0, resolver=resolver),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        headers={"User-Agent": "Tollkeeper", "Accept": "*/*"},
        skip_auto_headers=("Accept-Encoding",),
    )


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
) -> tuple[Outcome, bytes]:
    """What came of it, and the first bytes of an answer that is not 2xx. No time but the caller's is measured."""
    try:
        async with session.post(
            URL(url, encoded=True),
            data=body,
            headers={"Content-Type": "application/json", **headers},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as response:
            if 200 <= response.status < 300:
                return Outcome(status=response.status), b""
            return _refused(response), await _beginning(response)
    except TimeoutError:
        return Outcome(f"no answer within {timeout_s:g} s"), b""
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return Outcome(_why(error)), b""


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """What the answer says first; nothing if that takes long. The status is known already."""
    try:
        async with asyncio.timeout(_READING_S):
            return await response.content.read(ANSWER_BYTES_MAX)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return b""


def _refused(response: aiohttp.ClientResponse) -> Outcome:
    status = response.status
    if 300 <= status < 400:
        words = f"it answered {status}, a redirect, which is not followed: give the address that it leads to"
    else:
        words = f"it answered {status}"
    asked = response.headers.get("Retry-After", "")
    return Outcome(
        words,
        status,
        is_gone=status == _GONE,
        retry_after_s=float(min(int(asked), _ASKED_MAX_S)) if asked.isascii() and asked.isdigit() else None,
    )


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        is_late = isinstance(error.os_error, NotResolvedInTime)
        return "its host's name was not resolved in time" if is_late else "its host has no address"
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError)):
        return "its TLS certificate was not accepted, or TLS failed"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it could not be connected to ({error.os_error.strerror or 'no reason given'})"
    if isinstance(error, (aiohttp.ServerDisconnectedError, ConnectionError)):
        return "it closed the connection without an answer"
    return f"it did not answer in HTTP ({type(error).__name__})"
