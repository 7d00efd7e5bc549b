"""Upgrades (RFC 9110 §7.8, RFC 6455 §4): which request may ask for one, and which 101 grants it. Pure.

A tunnel is two streams that nobody reads as HTTP any more, so it must begin where both sides agree that it does: after a
request that has no body and a handshake of one reading, and an answer that fits it. Everything else is an ordinary request
whose Upgrade is taken off (RFC 9110 lets a server ignore it). What would make HTTP of another version or TLS of the
tunnel is never passed on: requests inside it would pass without a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Final

from gateway.http1.fields import TOKEN
from gateway.http1.head import CLOSE_DELIMITED, RequestHead, ResponseHead

_PROTOCOL: Final = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?")
_NEVER: Final = (b"h2", b"h3", b"http", b"tls", b"ssl", b"spdy")
_WEBSOCKET: Final = b"websocket"
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_WEBSOCKET_VERSION: Final = b"13"


def wanted_upgrade(head: RequestHead) -> bytes:
    """The protocols that a request may switch to, as they are passed on in Upgrade; b"" if it is an ordinary request."""
    hop = head.hop
    if hop is None or not hop.upgrade:
        return b""
    if head.method != b"GET" or head.minor == 0 or head.is_framed or head.expects_continue:
        return b""
    offered = [protocol.strip(b" \t") for protocol in hop.upgrade.split(b",")]
    if any(_PROTOCOL.fullmatch(protocol) is None for protocol in offered):
        return b""
    kept = [protocol for protocol in offered if not protocol.lower().startswith(_NEVER)]
    if any(is_websocket(protocol) for protocol in kept) and _websocket_key(head.fields) is None:
        return b""
    return b", ".join(kept)


def is_granted(head: RequestHead, offered: bytes, answer: ResponseHead) -> bool:
    """Whether a 101 switches to one of the protocols that were `offered`, and says so as the protocol asks."""
    protocol = answer.upgrade.lower()
    if not answer.switches or answer.length != CLOSE_DELIMITED:
        return False
    if not protocol or protocol not in offered.lower().split(b", "):
        return False
    if not is_websocket(protocol):
        return True
    key = _websocket_key(head.fields)
    accepts = _values(answer.fields.splitlines(keepends=True), b"sec-websocket-accept")
    return key is not None and accepts == [websocket_accept(key)]


def websocket_accept(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID, usedforsecurity=False).digest())


def is_websocket(protocol: bytes) -> bool:
    """Whether a protocol in Upgrade is WebSocket, of any version."""
    return protocol.partition(b"/")[0].lower() == _WEBSOCKET


def _websocket_key(lines: Sequence[bytes]) -> bytes | None:
    """The key of a sane handshake: given once, 16 bytes in base64, beside version 13."""
    keys, versions = _values(lines, b"sec-websocket-key"), _values(lines, b"sec-websocket-version")
    if len(keys) != 1 or versions != [_WEBSOCKET_VERSION]:
        return None
    try:
        return keys[0] if len(base64.b64decode(keys[0], validate=True)) == 16 else None
    except binascii.Error:
        return None


def _values(lines: Sequence[bytes], name: bytes) -> list[bytes]:
    return [
        line.partition(b":")[2].strip(b" \t\r\n")
        for line in lines
        if line[: len(name) + 1].lower() == name + b":"
    ]
