"""Units in an answer: what an upstream says that a request used. Pure: bytes in, counts out; the stream goes its own way.

A meter says where a unit is reported: in a header field, at JSON pointers in a JSON answer, or at JSON pointers in the events
of a stream. An answer is read as it comes, through its content codings, in any split, and at most one MiB of it is kept:
a small JSON answer until it is whole, of a large one the beginning of a token, of a stream the beginning of an event.

Nothing here raises once a plan is made. An answer that is not what it says it is (JSON, gzip, …), or grows out of proportion as
its coding is taken off, reports nothing, and a unit that is said in another way than as a count is unreadable; what that costs
is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import ClassVar, Final

import orjson

from gateway.counts import COUNT_MAX, UNREADABLE, Way, ended, first_count, first_text, scanned
from gateway.decoding import Decoding, DecodingError, codings_of
from gateway.event_stream import EventStream, Names
from gateway.json_pointer import Pointer, look_up, position
from gateway.json_scan import JsonScan
from gateway.pointer_tree import PointerTree

WHOLE_LENGTH_MAX: Final = 65_536
"""Bytes of a JSON answer that is kept until it is whole, which is the quickest; more is scanned as it comes."""

_SHAPES_MAX: Final = 256
_SHAPE_LENGTH_MAX: Final = 128
_BOM: Final = b"\xef\xbb\xbf"
_NOTHING: Final = Names(())
_NONE: Final[frozenset[str]] = frozenset()
_WHOLE_NUMBER: Final = re.compile(rb"[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Meter:
    """Where one unit is reported. The header field counts before the body; of several pointers, the first with a count."""

    unit: str
    header: bytes | None = None
    """Name of a field of the answer, in lower case."""
    json: tuple[Pointer, ...] = ()
    """In an answer of one JSON document."""
    event: tuple[Pointer, ...] = ()
    """In the data of each event of a stream."""
    each: bool = False
    """True: what the events say is added up. False: the last event that says it counts, for what is cumulative or said once."""


class _Kind(IntEnum):
    """How an answer's body is read."""

    OTHER = 0
    JSON = 1
    EVENTS = 2
    LINES = 3
    CODED = 4
    """It would be read, were it not in a coding that is not known."""


_KINDS: Final[dict[str, _Kind]] = {
    "application/json": _Kind.JSON,
    "text/json": _Kind.JSON,
    "text/event-stream": _Kind.EVENTS,
    "application/x-ndjson": _Kind.LINES,
    "application/ndjson": _Kind.LINES,
    "application/jsonl": _Kind.LINES,
    "application/x-jsonlines": _Kind.LINES,
}

_Shape = tuple[_Kind, tuple[str, ...]]
"""How a body is read, and which codings are taken off first, in this order."""


class MeterPlan:
    """The meters of one route, prepared; made once, used for every answer."""

    __slots__ = (
        "_headers",
        "_shapes",
        "event_tree",
        "event_wanted",
        "events",
        "field",
        "json",
        "names",
        "names_left",
        "tree",
        "units",
        "wanted",
    )

    def __init__(self, meters: Sequence[Meter], field: Sequence[Pointer] = ()) -> None:
        """`field`: where a text is that selects rates, in a JSON answer or in any event. Raises ValueError, for people."""
        self.units = tuple(meter.unit for meter in meters)
        for unit in self.units:
            if self.units.count(unit) > 1:
                raise ValueError(f'the unit "{unit}" has two meters: put all its places into one')
        self._headers = tuple(
            (meter.unit, b"\r\n" + meter.header.lower() + b":") for meter in meters if meter.header
        )
        self._shapes: dict[tuple[bytes, bytes], _Shape] = {}
        self.json = tuple((meter.unit, _places(meter.json)) for meter in meters if meter.json)
        self.events = tuple((meter.unit, meter.each, _places(meter.event)) for meter in meters if meter.event)
        self.field = _places(field)
        in_json = dict.fromkeys((*(pointer for meter in meters for pointer in meter.json), *field))
        self.tree = PointerTree(in_json)
        self.wanted = _places(in_json)
        in_events = [pointer for meter in meters for pointer in meter.event]
        self.event_tree = PointerTree(dict.fromkeys((*in_events, *field)))
        self.event_wanted = _places(dict.fromkeys((*in_events, *field)))
        self.names_left = _names_of(in_events)
        """What makes an event interesting once the field is found."""
        self.names = _names_of([*in_events, *field])

    def begin(self, fields: bytes) -> AnswerReading:
        """Starts on an answer with these field lines, in any case, each with its CRLF."""
        lines = b"\r\n" + fields.lower()
        counts: dict[str, int] = {}
        unreadable = _NONE
        for unit, name in self._headers:
            value = _value_of(lines, name)
            if _WHOLE_NUMBER.fullmatch(value) and int(value) <= COUNT_MAX:
                counts[unit] = int(value)
            elif value:
                unreadable |= {unit}
        named = (_value_of(lines, b"\r\ncontent-type:"), _value_of(lines, b"\r\ncontent-encoding:"))
        kind, codings = self._shapes.get(named) or self._shape(named)
        if kind == _Kind.CODED:
            reading = AnswerReading(self, counts, unreadable)
            reading.unreadable = frozenset(reading.missing)
            return reading
        if kind == _Kind.JSON:
            return _JsonReading(self, counts, unreadable, codings)
        if kind:
            return _StreamReading(self, counts, unreadable, codings, is_lines=kind == _Kind.LINES)
        return AnswerReading(self, counts, unreadable)

    def _shape(self, named: tuple[bytes, bytes]) -> _Shape:
        kind = _kind_of(named[0].decode("latin-1"))
        if not (self.tree.count if kind == _Kind.JSON else self.events or self.field):
            kind = _Kind.OTHER
        codings = codings_of(named[1].decode("latin-1"))
        shape = (_Kind.CODED if kind else kind, ()) if codings is None else (kind, codings)
        if len(named[0]) + len(named[1]) <= _SHAPE_LENGTH_MAX:
            if len(self._shapes) >= _SHAPES_MAX:
                self._shapes.clear()
            self._shapes[named] = shape
        return shape


class AnswerReading:
    """One answer. This one reads no body: what the header fields say is all."""

    __slots__ = ("_plan", "counts", "field", "unreadable")

    reports_early: ClassVar[bool] = False
    """Whether it may report something before the answer is whole."""

    def __init__(self, plan: MeterPlan, counts: dict[str, int], unreadable: frozenset[str]) -> None:
        self._plan = plan
        self.counts = counts
        """Units reported so far, zero too. To be looked at any time, and not to be changed."""
        self.unreadable = unreadable
        """Units that were said, and not as a whole number from 0 to COUNT_MAX, or in a body that cannot be read."""
        self.field: str | None = None
        """The text that selects rates, once it is found."""

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the body, as they come from the upstream, but for chunked coding. A view is not kept."""

    def end(self) -> None:
        """The body is whole."""

    def break_off(self) -> None:
        """No more will come, though the body is not whole by the framing: a document that is whole in itself still counts."""

    @property
    def missing(self) -> tuple[str, ...]:
        """The plan's units that are not reported (so far)."""
        return tuple(unit for unit in self._plan.units if unit not in self.counts)


class _BodyReading(AnswerReading):
    """An answer whose body is read, its codings taken off."""

    __slots__ = ("_decoding", "_in_header", "_is_over")

    def __init__(
        self, plan: MeterPlan, counts: dict[str, int], unreadable: frozenset[str], codings: tuple[str, ...]
    ) -> None:
        super().__init__(plan, counts, unreadable)
        self._in_header = tuple(counts.items()) if counts else ()
        self._decoding = Decoding(codings) if codings else None
        self._is_over = False

    def feed(self, data: bytes | memoryview) -> None:
        if self._is_over:
            return
        if self._decoding is None:
            self._take(bytes(data))
            return
        try:
            self._decoding.feed(bytes(data), self._take)
        except DecodingError:
            self._is_over = True
            self._forget()
            self.counts = dict(self._in_header)
            self.unreadable = frozenset(self.missing)
            self.field = None

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._finish()
            self._forget()

    def _take(self, data: bytes) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        """Lets go of what is kept."""
        self._decoding = None


class _JsonReading(_BodyReading):
    """One JSON document."""

    __slots__ = ("_length", "_pieces", "_scan")

    def __init__(
        self, plan: MeterPlan, counts: dict[str, int], unreadable: frozenset[str], codings: tuple[str, ...]
    ) -> None:
        super().__init__(plan, counts, unreadable, codings)
        self._pieces: list[bytes] = []
        self._length = 0
        self._scan: JsonScan | None = None

    def break_off(self) -> None:
        """A number might go on, an object or array does not."""
        if self._scan is not None or b"".join(self._pieces).rstrip().endswith((b"}", b"]")):
            self.end()

    def _take(self, data: bytes) -> None:
        if self._scan is not None:
            self._scan.feed(data)
            return
        self._pieces.append(data)
        self._length += len(data)
        if self._length > WHOLE_LENGTH_MAX:
            self._scan = JsonScan(self._plan.tree)
            for piece in self._pieces:
                self._scan.feed(piece)
            self._pieces.clear()

    def _finish(self) -> None:
        if self._scan is not None:
            self._report(ended(self._scan, self._plan.wanted))
            return
        body = b"".join(self._pieces)
        try:
            document = orjson.loads(body.removeprefix(_BOM))
        except orjson.JSONDecodeError:
            if body:
                self._report(scanned(body, self._plan.tree, self._plan.wanted))
            return
        self._report(lambda names: look_up(document, names))

    def _report(self, look: Callable[[Way], object]) -> None:
        for unit, places in self._plan.json:
            if unit in self.counts or (count := first_count(look, places)) is None:
                continue
            if count == UNREADABLE:
                self.unreadable |= {unit}
            else:
                self.counts[unit] = count
                self.unreadable -= {unit}
        self.field = first_text(look, self._plan.field)

    def _forget(self) -> None:
        super()._forget()
        self._scan = None
        self._pieces.clear()


class _StreamReading(_BodyReading):
    """A stream of events, each with a JSON document."""

    reports_early = True

    __slots__ = ("_names", "_stream")

    def __init__(
        self,
        plan: MeterPlan,
        counts: dict[str, int],
        unreadable: frozenset[str],
        codings: tuple[str, ...],
        *,
        is_lines: bool,
    ) -> None:
        super().__init__(plan, counts, unreadable, codings)
        self._names = plan.names
        self._stream = EventStream(is_lines=is_lines)

    def feed(self, data: bytes | memoryview) -> None:
        if self._is_over or self._decoding is not None:
            super().feed(data)
            return
        self._take(data if type(data) is bytes else bytes(data))

    def _take(self, data: bytes) -> None:
        for text in self._stream.feed(data, self._names):
            self._read(text)
        if self._stream.has_passed_over:  # nobody knows what it said
            self._stream.has_passed_over = False
            self.unreadable |= {unit for unit, _, _ in self._plan.events} - dict(self._in_header).keys()

    def _finish(self) -> None:
        for text in self._stream.end(self._names):
            self._read(text)

    def _read(self, text: bytes) -> None:
        look: Callable[[Way], object]
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            if not text.lstrip().startswith(b"{"):
                return  # "[DONE]"
            look = scanned(text, self._plan.event_tree, self._plan.event_wanted)
        else:
            look = partial(look_up, document)

        counts = self.counts
        for unit, each, places in self._plan.events:
            if (count := first_count(look, places)) is None:
                continue
            if any(unit == reported for reported, _ in self._in_header):
                continue
            if count == UNREADABLE:
                self.unreadable |= {unit}
            elif each:
                counts[unit] = min(counts.get(unit, 0) + count, COUNT_MAX)
            else:
                counts[unit] = count
                if self.unreadable:
                    self.unreadable -= {unit}
        if self.field is None:
            self.field = first_text(look, self._plan.field)
            if self.field is not None:
                self._names = self._plan.names_left

    def _forget(self) -> None:
        super()._forget()
        self._stream.end(_NOTHING)


def _places(pointers: Iterable[Pointer]) -> tuple[Way, ...]:
    return tuple(pointer.names for pointer in pointers)


def _names_of(pointers: Iterable[Pointer]) -> Names:
    """What must be in an event that has a value at one of these: the last name on the way that is no place in an array."""
    last = [[name for name in pointer.names if position(name) is None][-1:] for pointer in pointers]
    return Names((name for names in last for name in names), always=[] in last)


def _value_of(lines: bytes, name: bytes) -> bytes:
    """The value of the field that starts so; of several, the list of them all (RFC 9110 §5.2); b"" if there is none."""
    at = lines.find(name)
    if at < 0:
        return b""
    end = lines.find(b"\r\n", at + 2)
    value = lines[at + len(name) : end].strip(b" \t")
    if lines.find(name, end) < 0:
        return value
    return value + b"," + _value_of(lines[end:], name)


def _kind_of(content_type: str) -> _Kind:
    media_type = content_type.partition(";")[0].rstrip(" \t")
    is_json = media_type.startswith("application/") and media_type.endswith("+json")
    return _KINDS.get(media_type, _Kind.JSON if is_json else _Kind.OTHER)
