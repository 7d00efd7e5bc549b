"""A request's body as it is framed: read in any split, up to exactly its end. Pure."""

from __future__ import annotations

from typing import Final

from gateway.http1.chunked import ChunkedReader, Data
from gateway.http1.head import CHUNKED


class LengthReader:
    """A body of `length` bytes (more than 0), with the interface of ChunkedReader."""

    __slots__ = ("_remaining", "done", "rest")

    trailers: Final = b""

    def __init__(self, length: int) -> None:
        self._remaining = length
        self.done = False
        self.rest = b""
        """Once `done`: the bytes after the body's end."""

    def feed(self, data: Data) -> list[Data]:
        """The part of `data` that is body. Not to be called once done."""
        remaining = self._remaining - len(data)
        if remaining > 0:
            self._remaining = remaining
            return [data]
        self.done = True
        if remaining < 0:
            data, self.rest = data[:remaining], bytes(data[remaining:])
        return [data]


class TunnelReader:
    """What comes behind an upgrade: no body, and no end but the connection's."""

    __slots__ = ()

    trailers: Final = b""
    done: Final = False
    rest: Final = b""

    def feed(self, data: Data) -> list[Data]:
        return [data]


BodyReader = LengthReader | ChunkedReader | TunnelReader


def body_reader(length: int) -> BodyReader:
    """A reader for a body with this Content-Length, or CHUNKED."""
    return ChunkedReader() if length == CHUNKED else LengthReader(length)
