"""Request targets: one normal form, which is both routed on and sent on. Pure.

The scheme (RFC 3986 §6.2.2): percent-encodings of unreserved characters are decoded and the others upper-cased, dot
segments are removed, runs of slashes become one. Encodings that change how a path is split or read (`%2F`, `%5C`, `%00`)
and over-long or broken UTF-8 are refused, as are backslashes and fragments. The query is carried as it came.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from gateway.http1.head import HeadError

_PLAIN: Final = re.compile(
    rb"((?:/[0-9A-Za-z_~!$&'()*+,;=:@-][0-9A-Za-z._~!$&'()*+,;=:@-]*+)*+/?)(\?[\x21\x22\x24-\x7e]*+)?"
)
"""Targets whose path is its own normal form: no percent sign, no empty or dotted segment. Nearly all of them."""

_PATH_BYTES: Final = re.compile(rb"/[0-9A-Za-z._~!$&'()*+,;=:@%/-]*+")
_QUERY_BYTES: Final = re.compile(rb"[\x21\x22\x24-\x7e]*+")
_UNSUPPORTED: Final = frozenset((b"CONNECT", b"TRACE"))
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})?")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_FORBIDDEN: Final = frozenset(b"/\\\x00")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)


@dataclass(slots=True)
class Target:
    """A normalised target: `path` begins with a slash (or is `*`); `query` has its question mark or is empty."""

    path: bytes
    query: bytes


def normalise(method: bytes, target: bytes, host: bytes) -> Target:
    """The one form of a request target. Raises HeadError (400, or 501 for CONNECT)."""
    if method in _UNSUPPORTED:
        raise HeadError(501, f"{method.decode()} is not supported.")
    plain = _PLAIN.fullmatch(target)
    if plain is not None and plain[1]:
        return Target(plain[1], plain[2] or b"")
    if target == b"*":
        if method != b"OPTIONS":
            raise HeadError(400, "Only OPTIONS may ask for *.")
        return Target(b"*", b"")
    if not target.startswith(b"/"):
        target = _origin_form(target, host)
    path, mark, query = target.partition(b"?")
    path = _normalise_path(path)
    if mark and _QUERY_BYTES.fullmatch(query) is None:
        raise HeadError(400, "The query holds a character that a target may not hold.")
    return Target(path, mark + query)


def _origin_form(target: bytes, host: bytes) -> bytes:
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HeadError(400, "The request target is neither a path nor an absolute URL.")
    authority, path, query = match.groups()
    if authority.lower() != host.lower():
        raise HeadError(400, "The target's authority and Host disagree.")
    return (path or b"/") + (query or b"")


def _normalise_path(path: bytes) -> bytes:
    if _PATH_BYTES.fullmatch(path) is None:
        raise HeadError(400, "The path holds a character that a target may not hold.")
    path = _PERCENT.sub(_normalise_percent, path)
    _check_utf8(path)
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    ends_open = segments[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(kept) + (b"/" if ends_open and kept else b"")


def _normalise_percent(match: re.Match[bytes]) -> bytes:
    digits = match[1]
    if digits is None:
        raise HeadError(400, "A percent sign in the path is not followed by two hex digits.")
    byte = int(digits, 16)
    if byte in _FORBIDDEN or byte < 0x20 or byte == 0x7F:
        raise HeadError(
            400, f"The path holds %{digits.decode().upper()}, which can be read in more than one way."
        )
    if byte in _UNRESERVED:
        return bytes((byte,))
    return b"%" + digits.upper()


def _check_utf8(path: bytes) -> None:
    if b"%" not in path:
        return
    decoded = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes((int(match[1], 16),)), path)
    try:
        decoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeadError(400, "The path's percent-encodings are not UTF-8.") from error
