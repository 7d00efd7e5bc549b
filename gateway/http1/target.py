"""Request targets: one normal form, which is both routed on and sent on. Pure.

The scheme (RFC 3986 §6.2.2): percent-encodings of unreserved characters are decoded and the others upper-cased, dot
segments are removed, runs of slashes become one. Encodings that change how a path is split or read (`%2F`, `%5C`, `%00`)
and over-long or broken UTF-8 are an objection, which only a route with `raw_path` overrules: it is sent the path as it came,
once that is found to be read as that route's in every way. Backslashes, fragments and dot segments with parameters (`..;x`)
are always refused. The query is carried as it came.
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
_SEPARATORS: Final = re.compile(rb"[/\\]")
_DOTS: Final = (b".", b"..")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[^?#]*)?(\?[^#]*)?", re.IGNORECASE)


@dataclass(slots=True)
class Target:
    """A normalised target: `path` begins with a slash (or is `*`); `query` has its question mark or is empty."""

    path: bytes
    query: bytes
    raw: bytes = b""
    """The path as it came, where that is another form, or one to object to."""
    objection: str | None = None
    """Why only a route with `raw_path` may be asked for it."""

    def take_raw(self, base: bytes) -> None:
        """Make the path as it came the path that is routed and sent, for the route whose prefix is `base` (without a slash at
        its end). Raises HeadError where it could be read as lying elsewhere.
        """
        raw = self.raw
        if not raw:
            return
        segments = _SEPARATORS.split(_decoded(raw))
        if any(segment.partition(b";")[0] in _DOTS for segment in segments):
            raise HeadError(400, "The path holds dot segments, which this route would pass on as they are.")
        if not raw.startswith(base + b"/") and raw != base:
            raise HeadError(400, "The path is encoded where the route is chosen by it.")
        self.path = raw

    def decoded(self) -> bytes:
        """The path as an upstream may read it that decodes everything first."""
        return b"/" + b"/".join(filter(None, _SEPARATORS.split(_decoded(self.raw))))


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
    raw, mark, query = target.partition(b"?")
    path, objection = _normalise_path(raw)
    if mark and _QUERY_BYTES.fullmatch(query) is None:
        raise HeadError(400, "The query holds a character that a target may not hold.")
    return Target(path, mark + query, raw if raw != path or objection is not None else b"", objection)


def _origin_form(target: bytes, host: bytes) -> bytes:
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HeadError(400, "The request target is neither a path nor an absolute URL.")
    authority, path, query = match.groups()
    if authority.lower() != host.lower():
        raise HeadError(400, "The target's authority and Host disagree.")
    return (path or b"/") + (query or b"")


def _normalise_path(path: bytes) -> tuple[bytes, str | None]:
    if _PATH_BYTES.fullmatch(path) is None:
        raise HeadError(400, "The path holds a character that a target may not hold.")
    objection = None
    if b"%" in path:
        objection = _objection(path)
        path = _PERCENT.sub(_normalise_percent, path)
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment.replace(b"%3B", b";").startswith((b".;", b"..;")):
            raise HeadError(
                400, "The path holds a dot segment with parameters, which can be read in more than one way."
            )
        elif segment not in (b"", b"."):
            kept.append(segment)
    ends_open = segments[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(kept) + (b"/" if ends_open and kept else b""), objection


def _normalise_percent(match: re.Match[bytes]) -> bytes:
    byte = int(match[1], 16)
    return bytes((byte,)) if byte in _UNRESERVED else b"%" + match[1].upper()


def _decoded(path: bytes) -> bytes:
    return _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), path)


def _objection(path: bytes) -> str | None:
    """What is ambiguous about a path with percent-encodings, if anything. Raises HeadError for what is none."""
    for match in _PERCENT.finditer(path):
        if match[1] is None:
            raise HeadError(400, "A percent sign in the path is not followed by two hex digits.")
        byte = int(match[1], 16)
        if byte in _FORBIDDEN or byte < 0x20 or byte == 0x7F:
            return f"The path holds %{match[1].decode().upper()}, which can be read in more than one way."
    try:
        _decoded(path).decode("utf-8")
    except UnicodeDecodeError:
        return "The path's percent-encodings are not UTF-8."
    return None
