"""Our end of a connection, as clients' and upstreams' have it in common: writing, and pauses of reading. Acts."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from typing import Final, cast

from gateway.http1.chunked import Data

WRITE_BUFFER_HIGH: Final = 65_536
"""Bytes that may wait for the other end before whoever writes is told to stop."""

COPIED_MAX: Final = 16_384
"""Bytes of a body that are copied off or onto a head, rather than carried as a view and written beside it, in one call."""


def behind(data: bytes, end: int) -> Data:
    """What follows a head in one read."""
    return data[end:] if len(data) - end < COPIED_MAX else memoryview(data)[end:]


class ConnectionEnd(asyncio.Protocol):
    """After the connection is lost, everything here does nothing."""

    __slots__ = ("_transport", "is_read_paused")

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.is_read_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not derive from asyncio's
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH)

    @property
    def unsent_bytes(self) -> int:
        """Bytes written here that the other end has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def write(self, data: Data) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def write_with(self, head: bytes, body: Sequence[Data]) -> None:
        """Write a head and what there is of its body, in one call of the system; large bodies are not copied for it."""
        if self._transport is None:
            return
        if sum(map(len, body)) < COPIED_MAX:
            self._transport.write(b"".join((head, *body)))
        else:
            self._transport.writelines((head, *body))

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    @property
    def can_half_close(self) -> bool:
        """False over TLS, where saying that nothing more comes closes the connection."""
        return self._transport is not None and self._transport.can_write_eof()

    def write_eof(self) -> bool:
        """Say that nothing more comes, behind what is unsent; False if that can only be said by closing."""
        if self._transport is None or not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def pause_reading(self) -> None:
        if not self.is_read_paused and self._transport is not None:
            self.is_read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_read_paused and self._transport is not None:
            self.is_read_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """End the connection once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """End the connection now, and so that the other end takes it for no end in order."""
        if self._transport is not None:
            connection = self._transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()
