"""Finds values at JSON pointers in a document that comes in pieces, and keeps none of it. Pure.

Most of a document is not on the way to any pointer. That is skipped by compiled regular expressions, a run of members or a
nested value at a time; what is on the way is stepped through, a member at a time. What is
kept between two pieces is the beginning of one token, at most TOKEN_MAX.

Syntax is checked where it decides where a value begins and ends: strings and their escapes, numbers, what stands between
values on the way. Inside of what is skipped, no character passes that is none of JSON's (so no comment and no other quote,
which could make a lenient reader see other strings than we do), but commas and kinds of bracket are not matched up.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, cast

import orjson

from gateway.json_grammar import (
    CUT_ESCAPE,
    CUT_SCALAR,
    CUT_STRING,
    NAME,
    SCALAR,
    SKIP,
    SKIP_CHARS,
    SKIP_NESTED,
    SPACE,
)  # fmt: skip
from gateway.pointer_tree import Node, PointerTree, folded

TOKEN_MAX: Final = 4096
"""Bytes of a token that is looked at: a longer number is refused, a longer name is on no pointer's way, a longer text is
NOT_PLAIN."""

DEPTH_MAX: Final = 1024
"""Brackets that may be open at once: as many as the readers of JSON that we know allow, or more."""

_BOM: Final = b"\xef\xbb\xbf"
_QUOTE, _COLON, _COMMA, _BRACE, _BRACE_END, _BRACKET_END = b'":,{}]'
_OPENING, _CLOSING = b"[{", b"]}"


class Absence(Enum):
    """Why there is no plain value at a pointer."""

    MISSING = "the document is whole and has no such value"
    UNKNOWN = "it has not come yet"
    AMBIGUOUS = "the way there can be read in two ways"
    NOT_PLAIN = "it is an object, an array, or longer than it may be"
    NOT_JSON = "the document is not JSON"


Plain = str | int | float | bool | None
Found = Plain | Absence


class _NotJson(Exception):
    """The document is not JSON, or none that is followed here."""


class _Frame:
    """An object or array on the way, that is open."""

    __slots__ = ("is_object", "node", "place", "seen")

    def __init__(self, node: Node, is_object: bool) -> None:
        self.node = node
        self.is_object = is_object
        self.place = 0
        self.seen: list[Node] = []


class JsonScan:
    """One document, fed in any split. Never raises.

    `values` has what is at each pointer: a plain value, or an Absence; UNKNOWN while it may still come. A name that is there
    twice: the last one counts, as most readers have it; where `is_wary`, the value is AMBIGUOUS from then on, and so it is
    if there is a name that a reader might take for one on the pointer's way ("Model").
    """

    __slots__ = ("_child", "_depth", "_frames", "_is_wary", "_kept", "_step", "_then", "values")

    def __init__(self, tree: PointerTree, *, is_wary: bool = False) -> None:
        self.values: list[Found] = [Absence.UNKNOWN] * tree.count
        self._is_wary = is_wary
        self._kept = b""
        self._frames: list[_Frame] = []
        self._child: Node | None = tree.root
        """What the value that comes next is on the way to."""
        self._depth = 0
        """How many brackets are open in the value that is being skipped."""
        self._step: _Step | None = JsonScan._start
        self._then: _Step = JsonScan._after
        """What comes after the string that is being skipped."""

    @property
    def is_json(self) -> bool:
        """False once it is known that the document is not JSON."""
        return self._step is not None

    def feed(self, data: bytes) -> None:
        """The next bytes of the document."""
        if self._step is None:
            return
        buffer = self._kept + data if self._kept else data
        self._kept = b""
        at: int | None = 0
        try:
            while at is not None:
                at = self._step(self, buffer, at)
        except _NotJson:
            self._step = None
            self.values = [Absence.NOT_JSON] * len(self.values)

    def end(self) -> None:
        """The document is whole: what has not come is MISSING."""
        self.feed(b" ")  # a number at the top ends here
        if self._step is not JsonScan._rest:
            self._step = None
            self.values = [Absence.NOT_JSON] * len(self.values)
        self.values = [Absence.MISSING if value is Absence.UNKNOWN else value for value in self.values]

    # Each step takes what it finds at `at` and says where it stopped; None: it needs more, and has kept what it needs again.

    def _start(self, buffer: bytes, at: int) -> int | None:
        if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
            self._kept = buffer
            return None
        self._step = JsonScan._value
        return len(_BOM) if buffer.startswith(_BOM) else at

    def _value(self, buffer: bytes, at: int) -> int | None:
        at = _end_of_space(buffer, at)
        if at == len(buffer):
            return None
        child = self._child
        self._step = JsonScan._after
        if buffer[at] in _OPENING:
            if child is not None:
                self._record(child, Absence.NOT_PLAIN)
                if child.named:
                    self._frames.append(_Frame(child, buffer[at] == _BRACE))
                    self._step = JsonScan._first
                    return at + 1
            if nested := SKIP_NESTED.match(buffer, at):
                return nested.end()
            self._depth = 1
            self._step = JsonScan._skip
            return at + 1
        if scalar := SCALAR.match(buffer, at):
            if child is not None and child.at is not None:
                self._record(child, _read(scalar[0]))
            return scalar.end()
        return self._cut_scalar(buffer, at)

    def _cut_scalar(self, buffer: bytes, at: int) -> int | None:
        is_string, is_long = buffer[at] == _QUOTE, len(buffer) - at > TOKEN_MAX
        is_wanted = self._child is not None and self._child.at is not None
        if is_string and (is_long or not is_wanted):
            if self._child is not None:
                self._record(self._child, Absence.NOT_PLAIN)
            self._step, self._then = JsonScan._string, JsonScan._after
            return at + 1
        if is_long or not CUT_SCALAR.fullmatch(buffer, at):
            raise _NotJson
        self._step = JsonScan._value
        self._kept = buffer[at:]
        return None

    def _record(self, node: Node, found: Found) -> None:
        if node.at is not None and self.values[node.at] is not Absence.AMBIGUOUS:
            self.values[node.at] = found

    def _first(self, buffer: bytes, at: int) -> int | None:
        at = _end_of_space(buffer, at)
        if at == len(buffer):
            return None
        if buffer[at] in _CLOSING:
            self._step = JsonScan._after
        else:
            self._step = JsonScan._member if self._frames[-1].is_object else JsonScan._element
        return at

    def _member(self, buffer: bytes, at: int) -> int | None:
        frame = self._frames[-1]
        at = _end_of_space(buffer, frame.node.run.match(buffer, at).end())  # type: ignore[union-attr]  # it may be empty
        if name := NAME.match(buffer, at):
            self._child = None
            if name.end(1) - at <= TOKEN_MAX:
                self._child = self._child_named(frame, cast(str, _read(name[1])))
            self._step = JsonScan._colon if name[2] is None else JsonScan._value
            return name.end()
        if at < len(buffer) and not CUT_STRING.fullmatch(buffer, at):
            raise _NotJson
        if len(buffer) - at > TOKEN_MAX:
            self._child = None
            self._step, self._then = JsonScan._string, JsonScan._colon
            return at + 1
        self._kept = buffer[at:]
        return None

    def _child_named(self, frame: _Frame, name: str) -> Node | None:
        child = frame.node.named.get(name)
        if self._is_wary:
            self._be_wary(frame, name, child)
        elif child is not None and child in frame.seen:
            for index in child.below:
                self.values[index] = Absence.UNKNOWN
        if child is not None and child not in frame.seen:
            frame.seen.append(child)
        return child

    def _be_wary(self, frame: _Frame, name: str, child: Node | None) -> None:
        for node in frame.node.by_folded.get(folded(name), ()):
            if node is not child or node in frame.seen:
                for index in node.below:
                    self.values[index] = Absence.AMBIGUOUS

    def _colon(self, buffer: bytes, at: int) -> int | None:
        at = _end_of_space(buffer, at)
        if at == len(buffer):
            return None
        if buffer[at] != _COLON:
            raise _NotJson
        self._step = JsonScan._value
        return at + 1

    def _element(self, _buffer: bytes, at: int) -> int | None:
        frame = self._frames[-1]
        if frame.place > frame.node.last:
            self._frames.pop()
            self._depth = 1
            self._step = JsonScan._skip
        else:
            self._child = frame.node.places.get(frame.place)
            self._step = JsonScan._value
        return at

    def _after(self, buffer: bytes, at: int) -> int | None:
        if not self._frames:
            self._step = JsonScan._rest
            return at
        at = _end_of_space(buffer, at)
        if at == len(buffer):
            return None
        frame = self._frames[-1]
        if buffer[at] == _COMMA:
            frame.place += 1
            self._step = JsonScan._member if frame.is_object else JsonScan._element
        elif buffer[at] == (_BRACE_END if frame.is_object else _BRACKET_END):
            self._frames.pop()
        else:
            raise _NotJson
        return at + 1

    def _skip(self, buffer: bytes, at: int) -> int | None:
        while True:
            at = SKIP.match(buffer, at).end()  # type: ignore[union-attr]  # it may be empty
            if at == len(buffer):
                return None
            if buffer[at] in _OPENING:
                self._depth += 1
                if self._depth > DEPTH_MAX:
                    raise _NotJson
            elif buffer[at] in _CLOSING:
                self._depth -= 1
                if self._depth == 0:
                    self._step = JsonScan._after
                    return at + 1
            elif buffer[at] == _QUOTE:
                self._step, self._then = JsonScan._string, JsonScan._skip
                return at + 1
            else:
                raise _NotJson
            at += 1

    def _string(self, buffer: bytes, at: int) -> int | None:
        end = SKIP_CHARS.match(buffer, at).end()  # type: ignore[union-attr]  # it may be empty
        if end == len(buffer):
            return None
        if buffer[end] == _QUOTE:
            self._step = self._then
            return end + 1
        if not CUT_ESCAPE.fullmatch(buffer, end):
            raise _NotJson
        self._kept = buffer[end:]
        return None

    def _rest(self, buffer: bytes, at: int) -> int | None:
        if _end_of_space(buffer, at) != len(buffer):
            raise _NotJson
        return None


_Step = Callable[[JsonScan, bytes, int], int | None]


def _end_of_space(buffer: bytes, at: int) -> int:
    return SPACE.match(buffer, at).end()  # type: ignore[union-attr]  # it may be empty


def _read(token: bytes) -> Found:
    """A name or a scalar, as it is written."""
    if len(token) > TOKEN_MAX:
        return Absence.NOT_PLAIN
    try:
        return cast(Plain, orjson.loads(token))
    except orjson.JSONDecodeError as error:
        raise _NotJson from error
