"""Conversations that are written down beforehand, step by step, and what is found of them: what arrived, and what came back.

A client sends exactly the bytes it is told, and an upstream reads whatever comes and answers exactly the bytes it is told, when
it is told: see `director`, which plays both. Messages are read with plain splits and no grammar of the gateway's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

TOKEN, CASE = b"@TOKEN", b"@CASE"
"""Stand in what is sent for the key's token, and for the conversation's name."""

PROBE = b"GET /probe HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer @TOKEN\r\nX-Case: probe\r\n\r\n"
"""What is asked behind a conversation, to see whether the connection can still be used."""

Framing = tuple[str, int]
"""How a body is framed: ("length", bytes), ("chunked", 0), ("until close", 0) or ("none", 0)."""


def name_of(line: bytes) -> str:
    """The name of a field line, in lower case."""
    return line.partition(b":")[0].decode("latin-1").lower()


def value_of(line: bytes) -> bytes:
    return line.partition(b":")[2].strip(b" \t")


@dataclass(slots=True, eq=False)
class Message:
    """A request or an answer as it was on the wire: lines without their line ends, the body without its framing."""

    start: bytes
    lines: list[bytes]
    framing: Framing = ("none", 0)
    body: bytearray = field(default_factory=bytearray)
    trailers: list[bytes] = field(default_factory=list)
    extensions: list[bytes] = field(default_factory=list)
    """Of its chunks, those that are not empty."""
    is_whole: bool = False
    has_ended: bool = False
    """True once nothing more can come of it, whole or not."""

    def all(self, name: str) -> list[bytes]:
        return [value_of(line) for line in self.lines if name_of(line) == name]

    @property
    def options(self) -> set[bytes]:
        """What Connection lists, in lower case."""
        return {
            option.strip(b" \t").lower() for value in self.all("connection") for option in value.split(b",")
        }

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start.split(b" ")[1])

    def read_framing(self, without: str) -> None:
        """`without` is how a message without framing fields is framed."""
        lengths = self.all("content-length")
        if self.all("transfer-encoding"):
            self.framing = ("chunked", 0)
        else:
            self.framing = ("length", int(lengths[0])) if lengths else (without, 0)


@dataclass(slots=True, eq=False)
class Arrival(Message):
    """A request that has reached the upstream."""

    writer: asyncio.StreamWriter | None = None
    is_over: bool = False

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]


# -- what a conversation consists of; `number` counts its requests


@dataclass(frozen=True, slots=True)
class Sends:
    """The client sends this, in pieces that end at `cuts`."""

    data: bytes
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrives:
    """A request arrives: whole, or its head and so many bytes of its body."""

    number: int = 0
    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """The upstream answers this, in pieces that end at `cuts`."""

    data: bytes
    number: int = 0
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Streams:
    """The upstream answers this head (without framing) and body in the way that the request's version can read: in chunks, or
    up to the connection's end."""

    head: bytes
    pieces: tuple[bytes, ...]
    number: int = 0


@dataclass(frozen=True, slots=True)
class HangsUp:
    """The upstream ends its connection, in order or with a reset."""

    number: int = 0
    reset: bool = False


@dataclass(frozen=True, slots=True)
class Hears:
    """The client has received these bytes somewhere in what has come."""

    data: bytes


@dataclass(frozen=True, slots=True)
class HearsAll:
    """The client has a whole answer."""

    number: int = 0


@dataclass(frozen=True, slots=True)
class SaysNoMore:
    """The client ends its direction of the connection."""


Step = Sends | Arrives | Answers | Streams | HangsUp | Hears | HearsAll | SaysNoMore


@dataclass(frozen=True, slots=True)
class Conversation:
    """Requests on one connection, by their methods, and everything that happens to them in order."""

    name: str
    methods: tuple[bytes, ...]
    steps: tuple[Step, ...]

    @property
    def says_no_more(self) -> bool:
        return any(isinstance(step, SaysNoMore) for step in self.steps)


@dataclass(slots=True, eq=False)
class Heard:
    """What became of a conversation."""

    arrived: list[Arrival] = field(default_factory=list)
    came: list[list[Message]] = field(default_factory=list)
    """For each request its answers: interim ones, then the final one."""
    failure: str = ""
    """Why it could not be played to its end."""
    is_closed: bool = False
    """True if the other side ended the client's connection; else it is usable: a request more was answered on it."""
