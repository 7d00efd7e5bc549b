"""An upstream that meters: chat completions in the manner of OpenAI, messages in the manner of Anthropic, and other answers
whose length, time or usage is what a test says.

A request says in `X-Play` how it is to be answered (`Play.fields`). One instance serves a whole run of tests; what became of a
test's own requests it finds by its key.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any, Literal, Protocol

import brotli  # type: ignore[import-untyped]
import zstandard
from aiohttp import WSCloseCode, web

STAY_MAX_S = 20.0
"""How long an answer that waits for its reader to go waits at most."""

BODY_BYTES_MAX = 16 * 1024 * 1024

Usage = Literal["last", "every", "increments", "none", "zero", "null", "partly"]
"""How a stream of chat completions reports what it used: in an event behind the others; in each, up to there or since the one
before; or not at all, as nothing, null or half of it. One that is not streamed reports the last three alike, and else the sum.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """How a request is to be answered."""

    coding: str = ""
    usage: Usage = "last"
    tokens: tuple[int, int] = (12_345, 101)
    """Of the prompt, and of the completion."""
    events: int = 6
    """How many events, pieces or messages there are, beside those that begin and end a stream."""
    interval_s: float = 0.0
    stays_after: int = 0
    """Send nothing after so many events, until the reader has gone."""
    dies: Literal["", "unheard", "midway"] = ""
    status: int = 200
    wait_s: float = 0.0
    """How long nothing is said."""
    size: int = 1024
    """Bytes of each piece."""
    has_length: bool = False
    straddles: bool = False
    """Send each piece together with the first half of the next one."""
    model: str = ""
    """Which model says that it answers, if it is not the one that was asked."""
    units: str = ""
    """What X-Usage-Units says."""

    @property
    def fields(self) -> dict[str, str]:
        return {"X-Play": json.dumps(asdict(self))}

    @classmethod
    def of(cls, request: web.Request) -> Play:
        said = json.loads(request.headers.get("X-Play", "{}"))
        return cls(**(said | ({"tokens": tuple(said["tokens"])} if "tokens" in said else {})))


@dataclass(slots=True, eq=False)
class Visit:
    """One request. Times are of the monotonic clock."""

    key: str
    target: str
    body_bytes: int = 0
    sha256: str = ""
    sent_at: list[float] = field(default_factory=list)
    """When each event or piece was written."""
    ended_at: float | None = None
    was_cut: bool = False
    """Whether its connection ended before its answer."""


PLAY = web.RequestKey("play", Play)
VISIT = web.RequestKey("visit", Visit)


class Coder(Protocol):
    """Codes a stream so that what was given can be read at once."""

    def piece(self, data: bytes) -> bytes: ...

    def end(self) -> bytes: ...


class _Plain:
    def piece(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._coder = zlib.compressobj(wbits=wbits)

    def piece(self, data: bytes) -> bytes:
        return self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._coder.flush()


class _Brotli:
    def __init__(self) -> None:
        self._coder = brotli.Compressor(quality=4)

    def piece(self, data: bytes) -> bytes:
        return bytes(self._coder.process(data) + self._coder.flush())

    def end(self) -> bytes:
        return bytes(self._coder.finish())


class _Zstd:
    def __init__(self) -> None:
        self._coder = zstandard.ZstdCompressor().compressobj()

    def piece(self, data: bytes) -> bytes:
        return self._coder.compress(data) + self._coder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._coder.flush()


def coder_for(coding: str) -> Coder:
    """For a coding that nobody knows, too: it leaves everything as it is."""
    if coding in ("gzip", "deflate"):
        return _Zlib(31 if coding == "gzip" else 15)
    if coding == "br":
        return _Brotli()
    return _Zstd() if coding == "zstd" else _Plain()


class ModelUpstream:
    """Served by the fixture `models`."""

    def __init__(self) -> None:
        self.url = ""
        self.visits: list[Visit] = []
        self._under_way: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()
        """By key, and by account: how many requests were being answered at one time, at most."""

    def of(self, key: str) -> list[Visit]:
        """What came with this key, in the order of arrival."""
        return [visit for visit in list(self.visits) if visit.key == key]

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._note])
        add = application.router.add_route
        add("POST", "/chat/completions", self._chat)
        add("POST", "/messages", self._messages)
        add("GET", "/socket", self._socket)
        add("*", "/pieces", self._pieces)
        return application

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        key = request.headers.get("X-Principal-Key-Id", "")
        request[VISIT] = visit = Visit(key, request.path_qs)
        self.visits.append(visit)
        whose = (key, request.headers.get("X-Principal-Id", ""))
        for one in whose:
            self._under_way[one] += 1
            self.most_at_once[one] = max(self.most_at_once[one], self._under_way[one])
        try:
            body = await request.read()
            visit.body_bytes, visit.sha256 = len(body), sha256(body).hexdigest()
            request[PLAY] = play = Play.of(request)
            await asyncio.sleep(play.wait_s)
            if play.dies == "unheard":
                return _hang_up(request)
            answer: web.StreamResponse = await handler(request)
            return answer
        except (asyncio.CancelledError, ConnectionError):
            visit.was_cut = True
            raise
        finally:
            self._under_way.subtract(whose)
            visit.ended_at = time.monotonic()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        play, asked = request[PLAY], await request.json()
        head = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": play.model or asked.get("model")}
        if play.status >= 400:
            error = {"message": "not now", "type": "server_error", "code": None, "param": None}
            return await _document(request, {"error": error, **_usage_of_whole(play)})
        if not asked.get("stream"):
            message = {"role": "assistant", "content": "word " * play.events}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            said = {**head, "object": "chat.completion", "choices": [choice], **_usage_of_whole(play)}
            return await _document(request, said)
        chunk = {**head, "object": "chat.completion.chunk"}
        return await _stream(request, [b"data: %b\n\n" % event for event in _chat_events(play, chunk)])

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        play, asked = request[PLAY], await request.json()
        prompt, completion = play.tokens
        head = {"id": "msg_1", "type": "message", "role": "assistant", "model": asked.get("model")}
        usage = {"input_tokens": prompt, "output_tokens": completion}
        if not asked.get("stream"):
            content = [{"type": "text", "text": "word " * play.events}]
            return await _document(request, {**head, "content": content, "usage": usage})
        delta = {"type": "text_delta", "text": "word "}
        first = {"input_tokens": prompt} if play.usage == "partly" else {**usage, "output_tokens": 1}
        told: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**head, "content": [], "usage": first}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *({"type": "content_block_delta", "index": 0, "delta": delta} for _ in range(play.events)),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": completion}},
            {"type": "message_stop"},
        ]  # fmt: skip
        events = [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _json(event)) for event in told]
        return await _stream(request, events)

    async def _pieces(self, request: web.Request) -> web.StreamResponse:
        """Bytes, or a small document where none are asked for."""
        play = request[PLAY]
        if not play.events:
            return await _document(request, {"said": "enough"})
        return await _stream(request, [b"x" * play.size] * play.events, "application/octet-stream")

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        play, visit = request[PLAY], request[VISIT]
        socket = web.WebSocketResponse(timeout=STAY_MAX_S)
        await socket.prepare(request)
        for _ in range(play.events):
            await socket.send_bytes(b"x" * play.size)
            visit.sent_at.append(time.monotonic())
            await asyncio.sleep(play.interval_s)
        if play.stays_after:
            await socket.receive(timeout=STAY_MAX_S)
        await socket.close(code=WSCloseCode.OK)
        return socket


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _usage_of_whole(play: Play) -> dict[str, Any]:
    prompt, completion = play.tokens
    if play.usage == "none":
        return {}
    if play.usage == "null":
        return {"usage": None}
    if play.usage == "partly":
        return {"usage": {"prompt_tokens": prompt}}
    return {"usage": _usage(0, 0) if play.usage == "zero" else _usage(prompt, completion)}


def _chat_events(play: Play, chunk: Mapping[str, Any]) -> Iterator[bytes]:
    """The data of each event."""
    prompt, completion = play.tokens
    before = 0
    for number in range(1, play.events + 1):
        so_far = completion * number // play.events
        usage: dict[str, Any] = {} if play.usage == "none" else {"usage": None}
        if play.usage == "every":
            usage = {"usage": _usage(prompt, so_far)}
        elif play.usage == "increments":
            usage = {"usage": _usage(prompt if number == 1 else 0, so_far - before)}
        before = so_far
        choice = {"index": 0, "delta": {"content": "word "}, "finish_reason": None}
        yield _json({**chunk, "choices": [choice], **usage})
    yield _json({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if play.usage in ("last", "null", "zero", "partly"):
        yield _json({**chunk, "choices": [], **_usage_of_whole(play)})
    yield b"[DONE]"


async def _document(request: web.Request, said: Mapping[str, Any]) -> web.StreamResponse:
    play = request[PLAY]
    coder = coder_for(play.coding)
    body = coder.piece(_json(said)) + coder.end()
    fields = _fields(play)
    if play.dies != "midway":
        return web.Response(body=body, status=play.status, content_type="application/json", headers=fields)
    answer = web.StreamResponse(headers={**fields, "Content-Type": "application/json"})
    answer.content_length = len(body)
    await answer.prepare(request)
    await answer.write(body[: len(body) // 2])
    return await _broken(request, answer)


def _fields(play: Play) -> dict[str, str]:
    coding = {"Content-Encoding": play.coding} if play.coding else {}
    return coding | ({"X-Usage-Units": play.units} if play.units else {})


async def _stream(
    request: web.Request, pieces: list[bytes], content_type: str = "text/event-stream"
) -> web.StreamResponse:
    play, visit = request[PLAY], request[VISIT]
    coder = coder_for(play.coding)
    if play.straddles:
        pieces = _straddling(pieces)
    answer = web.StreamResponse(status=play.status, headers={**_fields(play), "Content-Type": content_type})
    if play.has_length:
        answer.content_length = sum(map(len, pieces))
    await answer.prepare(request)
    async for piece in _paced(play, pieces):
        await answer.write(coder.piece(piece))
        visit.sent_at.append(time.monotonic())
    if play.dies == "midway":
        return await _broken(request, answer)
    if end := coder.end():
        await answer.write(end)
    await answer.write_eof()
    return answer


def _straddling(pieces: list[bytes]) -> list[bytes]:
    halves = [(piece[: len(piece) // 2], piece[len(piece) // 2 :]) for piece in pieces]
    return [halves[0][0], *(end + start for (_, end), (start, _) in pairwise(halves)), halves[-1][1]]


async def _paced(play: Play, pieces: list[bytes]) -> AsyncIterator[bytes]:
    for number, piece in enumerate(pieces, 1):
        yield piece
        if number == play.stays_after:
            await asyncio.sleep(STAY_MAX_S)  # cut short when the reader goes
        if number == len(pieces) // 2 and play.dies == "midway":
            return
        await asyncio.sleep(play.interval_s)


async def _broken(request: web.Request, answer: web.StreamResponse) -> web.StreamResponse:
    """End the connection in the middle, once what was written is sent."""
    assert request.transport is not None
    request.transport.close()
    return answer
