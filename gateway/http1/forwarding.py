"""Which way a request has come: Via, Forwarded and X-Forwarded-…, as they are written for the upstream. Pure.

Anybody can write these fields, so what a client says of them counts only if it is a proxy that the operator trusts; from
anybody else they are replaced by what the gateway sees itself. Via (RFC 9110 §7.6.3) is added to in any case: it is how a
request that comes round in a circle is known again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from gateway.http1.fields import TOKEN, Field
from gateway.networks import Networks

_TOKEN: Final = re.compile(TOKEN)
_SCHEME: Final = re.compile(rb"[A-Za-z][0-9A-Za-z+.-]{0,31}")
_PORT: Final = re.compile(r"(\[[^\]]*\]|[^:]*):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Hop:
    """The connection that a request came on: the peer's address, whether the operator trusts it, and the scheme spoken."""

    peer: str
    is_trusted: bool
    scheme: bytes


def forwarded_fields(hop: Hop, pseudonym: bytes, minor: int, host: bytes, given: Sequence[Field]) -> bytes:
    """The lines for the upstream, each with its CRLF. `given` are the client's own fields of these names."""
    peer = hop.peer.encode()
    addresses, proto, named, elements = [peer], hop.scheme, host, [_element(hop, host)]
    if hop.is_trusted and given:
        addresses = [*_values(given, b"x-forwarded-for"), peer]
        protos, hosts = _values(given, b"x-forwarded-proto"), _values(given, b"x-forwarded-host")
        proto = protos[-1] if protos and _SCHEME.fullmatch(protos[-1]) else proto
        named = hosts[-1] if hosts else named
        elements = [*_values(given, b"forwarded"), *elements]
    lines = [
        b"Via: 1.%d %b\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\n"
        % (minor, pseudonym, b", ".join(addresses), proto)
    ]
    if named:
        lines.append(b"X-Forwarded-Host: %b\r\n" % named)
    lines.append(b"Forwarded: %b\r\n" % b", ".join(elements))
    return b"".join(lines)


def has_come_round(via: Sequence[bytes], pseudonym: bytes) -> bool:
    """Whether one of the hops in Via is this installation."""
    return any(
        words[1].lower() == pseudonym
        for value in via
        for entry in value.split(b",")
        if len(words := entry.split(None, 2)) > 1
    )


def client_address(hop: Hop, given: Sequence[Field], trusted: Networks) -> str:
    """The nearest address that the operator does not vouch for: who the client is, as far as can be known."""
    if not hop.is_trusted:
        return hop.peer
    address = hop.peer
    values = b",".join(_values(given, b"x-forwarded-for")).decode("latin-1")
    for entry in reversed(values.split(",")):
        candidate = _bare(entry.strip())
        if candidate is None:
            break
        address = candidate
        if not trusted.holds(candidate):
            break
    return address


def _bare(text: str) -> str | None:
    """An address without port and brackets, or None if it is none (or has a zone, which may be any text)."""
    with_port = _PORT.fullmatch(text)
    if (with_port is not None and text.count(":") == 1) or text.startswith("["):
        text = (with_port[1] if with_port else text).strip("[]")
    try:
        return None if "%" in text else str(ip_address(text))
    except ValueError:
        return None


def _values(given: Sequence[Field], name: bytes) -> list[bytes]:
    return [value for _, field_name, value in given if field_name == name and value]


def _element(hop: Hop, host: bytes) -> bytes:
    """Our own element of Forwarded (RFC 7239 §4): addresses of version 6 in brackets, and quoted like all that is no token."""
    peer = hop.peer.encode()
    node = b'"[%b]"' % peer if b":" in peer else peer if peer != b"-" else b"unknown"
    parts = [b"for=%b" % node]
    if host:
        parts.append(b"host=%b" % (host if _TOKEN.fullmatch(host) else b'"%b"' % host))
    return b";".join((*parts, b"proto=%b" % hop.scheme))
