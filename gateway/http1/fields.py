"""Field lines of a head: which are well-formed, and what becomes of each. Pure, but for what it remembers.

A workload sends the same lines with every request, and an upstream nearly so with every answer. So a line is matched against
the grammar once and looked up from then on: 0.07 µs a line instead of 0.4. What is remembered is bounded, is forgotten whole
when it is full, and holds no line that carries a credential by its name, or a token of ours anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Final

from gateway.contract.token import holds_token

TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_FIELD_LINE: Final = re.compile(rb"(" + TOKEN + rb"):[ \t]*+([\t\x20-\x7e\x80-\xff]*+)\r\n")
_HOST: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|[0-9A-Za-z._~-]{1,255})(?::([0-9]{0,5}))?")
"""Names as they are resolved, not all that RFC 3986 lets a name be: a comma or a percent sign in Host is somebody's trick."""

_CONTENT_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

REMEMBERED_LINES_MAX: Final = 4096
REMEMBERED_LENGTH_MAX: Final = 256


class Kind(IntEnum):
    """What becomes of a header field. Everything not named here is passed on as it came."""

    PASS = 0  # falsy: most fields are
    SESSION = 1
    COMPUTER = 2
    TRACE = 3
    VIA = 4
    HOST = -1  # below zero: not passed on as it came
    AUTHORIZATION = -2
    API_KEY = -3
    CONTENT_LENGTH = -4
    TRANSFER_ENCODING = -5
    CONNECTION = -6
    EXPECT = -7
    DROP = -8
    FORWARDED = -9
    REQUEST_ID = -10
    TE = -11
    UPGRADE = -12


_REQUEST_KINDS: Final[dict[bytes, Kind]] = {
    b"host": Kind.HOST,
    b"authorization": Kind.AUTHORIZATION,
    b"x-api-key": Kind.API_KEY,
    b"content-length": Kind.CONTENT_LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"connection": Kind.CONNECTION,
    b"expect": Kind.EXPECT,
    b"x-session-id": Kind.SESSION,
    b"x-computer-id": Kind.COMPUTER,
    b"traceparent": Kind.TRACE,
    # written anew at each hop: which way the request has come
    b"via": Kind.VIA,
    b"forwarded": Kind.FORWARDED,
    b"x-forwarded-for": Kind.FORWARDED,
    b"x-forwarded-proto": Kind.FORWARDED,
    b"x-forwarded-host": Kind.FORWARDED,
    b"x-request-id": Kind.REQUEST_ID,
    # hop-by-hop, RFC 9110 §7.6.1
    b"te": Kind.TE,
    b"upgrade": Kind.UPGRADE,
    b"keep-alive": Kind.DROP,
    b"proxy-connection": Kind.DROP,
    b"proxy-authorization": Kind.DROP,
    b"http2-settings": Kind.DROP,
    # who is calling: said by the gateway alone
    b"x-principal": Kind.DROP,
    b"x-principal-id": Kind.DROP,
    b"x-principal-organization": Kind.DROP,
    b"x-principal-key-id": Kind.DROP,
}
_RESPONSE_KINDS: Final[dict[bytes, Kind]] = {
    b"content-length": Kind.CONTENT_LENGTH,
    b"transfer-encoding": Kind.TRANSFER_ENCODING,
    b"connection": Kind.CONNECTION,
    b"upgrade": Kind.UPGRADE,
    b"keep-alive": Kind.DROP,
    b"proxy-connection": Kind.DROP,
    b"x-request-id": Kind.DROP,
}

Field = tuple[Kind, bytes, bytes]
"""What a line says: kind, name in lower case, value without the white space around it."""

_SECRET_NAMES: Final = frozenset((b"cookie", b"set-cookie", b"api-key", b"x-auth-token"))
_NEVER_REMEMBERED: Final = frozenset(
    (Kind.AUTHORIZATION, Kind.API_KEY, Kind.TRACE, Kind.DROP, Kind.FORWARDED, Kind.REQUEST_ID)
)
TRAILER_COUNT_MAX: Final = 64


def _is_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    if match is None or int(match[2] or 0) > 65_535:
        return False
    try:
        return match[1] is None or bool(IPv6Address(match[1].decode()))
    except ValueError:
        return False


def _is_length(value: bytes) -> bool:
    return _CONTENT_LENGTH.fullmatch(value) is not None


_VALUES: Final[dict[Kind, tuple[Callable[[bytes], bool], str]]] = {
    Kind.HOST: (_is_host, "Host is malformed."),
    Kind.CONTENT_LENGTH: (_is_length, "Content-Length is malformed."),
}


_FOLDED: Final = bytes(byte if chr(byte).isalnum() else ord("-") for byte in range(128)) + b"-" * 128


class FieldError(Exception):
    """A line that is not a field line of RFC 9112 §5 (`reason` is empty), or has a value that its field may not have."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class FieldLines(dict[bytes, Field]):
    """Field line, with its CRLF -> what it says. A line not seen before is read on the way."""

    __slots__ = ("_guarded", "_kinds")

    def __init__(self, kinds: dict[bytes, Kind]) -> None:
        super().__init__()
        self._kinds = kinds
        self._guarded = frozenset(name for name, kind in kinds.items() if kind < Kind.PASS)

    def __missing__(self, line: bytes) -> Field:
        """Read a new line. Raises FieldError.

        A name that only folds to one that is not passed on is dropped: upstreams behind CGI or WSGI read `X_Principal` as the
        hyphenated name, and some of them `X.Principal` and `X!Principal` too.
        """
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise FieldError("")
        name = match[1].lower()
        kind = self._kinds.get(name)
        if kind is None:
            folded = name.translate(_FOLDED)
            is_taken_for = folded != name and folded in self._guarded
            is_about_principal = folded.startswith(b"x-principal-") and b"x-principal" in self._guarded
            kind = Kind.DROP if is_taken_for or is_about_principal else Kind.PASS
        value = match[2].rstrip(b" \t")
        if kind in _VALUES:
            is_good, reason = _VALUES[kind]
            if not is_good(value):
                raise FieldError(reason)
        field = (kind, name, value)
        if kind not in _NEVER_REMEMBERED and name not in _SECRET_NAMES and len(line) <= REMEMBERED_LENGTH_MAX:
            if holds_token(line):
                return field
            if len(self) >= REMEMBERED_LINES_MAX:
                self.clear()
            self[line] = field
        return field

    def trailers(self, block: bytes) -> bytes:
        """The lines of a trailer section that may be passed on: none that frames, routes, authenticates or says who is
        calling (RFC 9110 §6.5.1), and none with a token of ours. Raises FieldError.
        """
        lines = block.splitlines(keepends=True)
        if len(lines) > TRAILER_COUNT_MAX:
            raise FieldError("There are too many trailers.")
        return b"".join(line for line in lines if self[line][0] >= Kind.PASS and not holds_token(line))


request_lines: Final = FieldLines(_REQUEST_KINDS)
answer_lines: Final = FieldLines(_RESPONSE_KINDS)


_EVENT_STREAM: Final = re.compile(rb"\r\ncontent-type:[ \t]*text/event-stream[ \t]*[;\r]", re.IGNORECASE)
_CODED: Final = re.compile(rb"\r\ncontent-encoding:", re.IGNORECASE)


def is_plain_event_stream(lines: bytes) -> bool:
    """Whether an answer with these lines is Server-Sent Events that are not compressed: text to which more can be added."""
    block = b"\r\n" + lines
    return _EVENT_STREAM.search(block) is not None and _CODED.search(block) is None
