"""The PROXY protocol's header (HAProxy's proxy-protocol.txt §2), versions 1 and 2, read strictly. Pure.

A proxy that passes a connection on as it is says with this header, ahead of any other byte, whose connection it is. What
follows (a TLS ClientHello, a request) is for another reader: no byte is asked for that could lie behind the header, so the
rest stays in the kernel. Bytes that can no longer become a header are refused at once, whatever else might come.

As the specification has it, LOCAL, UNKNOWN and whatever is of an unspecified family or transport leave the connection's own
peer standing, and what they carry is skipped unread. Other TLVs must be well-formed; their contents (a checksum among them)
are not looked at. Whether the peer may send a header at all is for the caller to know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, TypeAlias

_Family: TypeAlias = type[IPv4Address] | type[IPv6Address]

LINE_LENGTH_MAX: Final = 107
BLOCK_LENGTH_MAX: Final = 2048
"""Of what follows version 2's fixed part: addresses and TLVs."""

_SHORTEST_LENGTH: Final = 15
_UNKNOWN: Final = b"PROXY UNKNOWN"
_FAMILIES: Final[dict[bytes, _Family]] = {b"PROXY TCP4 ": IPv4Address, b"PROXY TCP6 ": IPv6Address}
_FIELDS_START: Final = 11
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_ENDINGS: Final = ("", "0", ":", "::", ".0", "0.0", ".0.0", "0.0.0", ".0.0.0", "1.1.1.1")
"""A beginning of an address (or a port) is what one of these makes whole; the first that does is the shortest there is."""
_FOLLOWING_LENGTHS: Final = tuple(len(text) for text in (" :: 0 0\r\n", " 0 0\r\n", " 0\r\n", "\r\n"))
"""How long the line at least goes on behind the source, the destination, and the port of either."""

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED_LENGTH: Final = 16
_TLV_HEAD_LENGTH: Final = 3
_LOCAL, _PROXY = 0x20, 0x21
_ADDRESSES_LENGTHS: Final = {0x00: 0, 0x01: 0, 0x10: 12, 0x11: 12, 0x20: 36, 0x21: 36, 0x30: 216, 0x31: 216}
"""Family and transport, and how long their addresses are. Datagrams are missing: they are no connection."""
_UNSPECIFIED: Final = (0x00, 0x01, 0x10, 0x20, 0x30)
_TCP: Final[dict[int, tuple[_Family, Struct]]] = {
    0x11: (IPv4Address, Struct("!4s4sHH")),
    0x21: (IPv6Address, Struct("!16s16sHH")),
}


class ProxyHeaderError(Exception):
    """What came first on the connection is not a PROXY protocol header."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Whose connection it is: address and port of both ends. An IPv4-mapped IPv6 address is given as IPv4."""

    source: tuple[str, int] | None
    """The real client; None where the header names none: the connection's own peer stands."""
    destination: tuple[str, int] | None


_NO_ADDRESSES: Final = ProxyHeader(None, None)


class ProxyHeaderReader:
    """Takes bytes in any split, never one too many, and gives the header."""

    __slots__ = ("_binary", "_is_whole", "_kept", "_line")

    def __init__(self) -> None:
        self._kept = b""
        self._line = _Line()
        self._binary = _Binary()
        self._is_whole = False

    @property
    def wanted(self) -> int:
        """How many bytes may be taken from the connection next, without taking one that follows the header; 0 once it is
        whole.
        """
        if self._is_whole:
            return 0
        if self._is_binary():
            return self._binary.end - len(self._kept)
        return max(_SHORTEST_LENGTH - len(self._kept), _line_end_missing(self._kept))

    def feed(self, data: bytes) -> ProxyHeader | None:
        """Take up to `wanted` bytes; the header once it is whole. Raises ProxyHeaderError, and is not to be called again
        after that.
        """
        assert len(data) <= self.wanted, "a byte was taken that may be for another reader"
        self._kept += data
        header = self._binary.read(self._kept) if self._is_binary() else self._line.read(self._kept)
        self._is_whole = header is not None
        return header

    def _is_binary(self) -> bool:
        return self._kept.startswith(_SIGNATURE[:1])


class _Line:
    """Version 1. Fields that are whole are checked once, the one that is coming as often as some of it comes."""

    __slots__ = ("_fields", "_position")

    def __init__(self) -> None:
        self._fields: list[str] = []
        self._position = _FIELDS_START

    def read(self, line: bytes) -> ProxyHeader | None:
        """The header, if `line` is a whole one; None if it is a beginning of one."""
        if not any(_agrees(line, start) for start in (_UNKNOWN, *_FAMILIES)):
            raise ProxyHeaderError("the connection begins with something else")
        if line.startswith(_UNKNOWN):
            if line.endswith(b"\r\n"):
                return _NO_ADDRESSES
            _check_line_length(len(line) + _line_end_missing(line))
            return None
        family = _FAMILIES.get(line[:_FIELDS_START])
        if family is None:
            return None
        return self._read_fields(line.decode("latin-1"), family)

    def _read_fields(self, line: str, family: _Family) -> ProxyHeader | None:
        *whole, last = line[self._position :].split(" ")
        for field in whole:
            self._check_field(field, family)
            self._fields.append(field)
            self._position += len(field) + 1
        last, cr, after = last.partition("\r")
        if not cr:
            self._check_unfinished_field(last, len(line), family)
            return None
        self._check_field(last, family)
        if len(self._fields) != 3 or after not in ("", "\n"):
            raise ProxyHeaderError("the line ends too early, or not in CRLF")
        _check_line_length(len(line) if after else len(line) + 1)
        if not after:
            return None
        source, destination, source_port = self._fields
        return ProxyHeader(
            (_shown(family(source)), int(source_port)),
            (_shown(family(destination)), int(last)),
        )

    def _check_field(self, text: str, family: _Family) -> None:
        if not self._is_next_field(text, family):
            raise ProxyHeaderError("the line's addresses or ports are malformed")

    def _check_unfinished_field(self, text: str, line_length: int, family: _Family) -> None:
        for ending in _ENDINGS:
            if self._is_next_field(text + ending, family):
                _check_line_length(line_length + len(ending) + _FOLLOWING_LENGTHS[len(self._fields)])
                return
        raise ProxyHeaderError("the line's addresses or ports are malformed")

    def _is_next_field(self, text: str, family: _Family) -> bool:
        if len(self._fields) < 2:
            return _is_address(text, family)
        return len(self._fields) < 4 and _PORT.fullmatch(text) is not None and int(text) <= 65_535


class _Binary:
    """Version 2."""

    __slots__ = ("_tlv_start", "end")

    def __init__(self) -> None:
        self.end = _FIXED_LENGTH
        """Where the header ends, as far as is known."""
        self._tlv_start = 0
        """Where the next TLV begins, `end` if none is left to check; 0 while the fixed part is not whole."""

    def read(self, data: bytes) -> ProxyHeader | None:
        """The header, if `data` is a whole one; None if it is a beginning of one."""
        if not self._tlv_start:
            _check_fixed_part(data)
            if len(data) < _FIXED_LENGTH:
                return None
            self._take_lengths(data)
        self._check_tlvs(data)
        return _read_addresses(data) if len(data) == self.end else None

    def _take_lengths(self, data: bytes) -> None:
        self.end = _FIXED_LENGTH + int.from_bytes(data[14:], "big")
        if data[12] == _LOCAL:
            self._tlv_start = self.end
            return
        addresses_end = _FIXED_LENGTH + _ADDRESSES_LENGTHS[data[13]]
        if addresses_end > self.end:
            raise ProxyHeaderError("the announced length is too short for the addresses")
        self._tlv_start = self.end if data[13] in _UNSPECIFIED else addresses_end

    def _check_tlvs(self, data: bytes) -> None:
        """What has not come of a TLV's head counts as the shortest it can be."""
        while self._tlv_start < self.end:
            head = data[self._tlv_start : self._tlv_start + _TLV_HEAD_LENGTH]
            length_min = int.from_bytes(head[1:].ljust(2, b"\x00"), "big")
            following = self._tlv_start + _TLV_HEAD_LENGTH + length_min
            if following > self.end:
                raise ProxyHeaderError("the header ends within a TLV")
            if len(head) < _TLV_HEAD_LENGTH:
                return
            self._tlv_start = following


def _agrees(data: bytes, start: bytes) -> bool:
    """Whether `data` begins with `start`, or is a beginning of it."""
    return data.startswith(start[: len(data)])


def _line_end_missing(line: bytes) -> int:
    """How many bytes a line that has not ended is at least short of its end."""
    return 1 if line.endswith(b"\r") else 2


def _check_line_length(length: int) -> None:
    if length > LINE_LENGTH_MAX:
        raise ProxyHeaderError("the line is too long")


def _check_fixed_part(data: bytes) -> None:
    """As far as it has come."""
    if not _agrees(data, _SIGNATURE):
        raise ProxyHeaderError("the connection begins with something else")
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise ProxyHeaderError("the version or the command is unknown")
    if len(data) > 13 and data[12] == _PROXY and data[13] not in _ADDRESSES_LENGTHS:
        raise ProxyHeaderError("the address family or the transport is not one of a connection")
    if int.from_bytes(data[14:].ljust(2, b"\x00"), "big") > BLOCK_LENGTH_MAX:
        raise ProxyHeaderError("the header is too long")


def _read_addresses(data: bytes) -> ProxyHeader:
    if data[12] == _LOCAL or data[13] not in _TCP:
        return _NO_ADDRESSES
    family, layout = _TCP[data[13]]
    source, destination, source_port, destination_port = layout.unpack_from(data, _FIXED_LENGTH)
    return ProxyHeader(
        (_shown(family(source)), source_port),
        (_shown(family(destination)), destination_port),
    )


def _is_address(text: str, family: _Family) -> bool:
    """In text. A zone (`%eth0`) means nothing on another host."""
    try:
        family(text)
    except ValueError:
        return False
    return "%" not in text


def _shown(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
