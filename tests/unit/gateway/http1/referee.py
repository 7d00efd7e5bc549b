"""llhttp (Node's parser, through httptools) as a referee: how somebody else reads the same bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools


@dataclass(slots=True)
class Read:
    """One message as llhttp read it. Names and values are as they came, without the spaces around values."""

    target: bytes = b""
    method: bytes = b""
    status: int = 0
    version: str = ""
    keeps_alive: bool = False
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    is_whole: bool = False
    leaves_http: bool = False


class _Notes:
    """What llhttp calls: notes messages in order."""

    def __init__(self) -> None:
        self.messages: list[Read] = []
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None
        self._in_trailers = False

    def on_message_begin(self) -> None:
        self.messages.append(Read())
        self._in_trailers = False

    def on_url(self, url: bytes) -> None:
        self.messages[-1].target += url

    def on_header(self, name: bytes, value: bytes | None) -> None:
        if not self._in_trailers:
            self.messages[-1].fields.append((name, (value or b"").strip(b" \t")))

    def on_headers_complete(self) -> None:
        self._in_trailers = True
        message, parser = self.messages[-1], self.parser
        assert parser is not None
        message.version = parser.get_http_version()
        message.keeps_alive = parser.should_keep_alive()
        if isinstance(parser, httptools.HttpRequestParser):
            message.method = parser.get_method()
        else:
            message.status = parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].is_whole = True


class Reading:
    """Messages read as their bytes arrive. `is_refused` once llhttp would read no further."""

    def __init__(self, *, of_answers: bool = False) -> None:
        notes = _Notes()
        self._parser = (
            httptools.HttpResponseParser(notes) if of_answers else httptools.HttpRequestParser(notes)
        )
        notes.parser = self._parser
        self.messages = notes.messages
        self.is_refused = False

    def feed(self, data: bytes) -> None:
        if self.is_refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.messages[-1].leaves_http = True
        except httptools.HttpParserError:
            self.is_refused = True


def read_requests(data: bytes) -> list[Read] | None:
    """The requests in `data`, or None if llhttp refuses the first of them."""
    return _read(Reading(), data)


def read_answers(data: bytes) -> list[Read] | None:
    """The answers in `data`, or None if llhttp refuses the first of them."""
    return _read(Reading(of_answers=True), data)


def _read(reading: Reading, data: bytes) -> list[Read] | None:
    reading.feed(data)
    if reading.is_refused and not (reading.messages and reading.messages[0].is_whole):
        return None
    return reading.messages
