"""The demo upstream: an HTTP service that shows what reached it, and answers like a model where one is asked.

    GET|POST… /anything…          method, path, headers and body size as JSON
    POST /v1/chat/completions     a chat completion as OpenAI's API shapes it; `"stream": true` sends it in pieces
    GET /stream?events=5&interval=0.1   server-sent events
    GET /bytes/{n}   GET /status/{code}   GET /healthz

Bounded in every direction. Called by ``tollkeeper demo`` and ``tollkeeper demo-upstream``; tests use it as well.
"""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from aiohttp import web
from aiohttp.typedefs import Handler

BODY_BYTES_MAX = 16 * 1024 * 1024
ANSWER_BYTES_MAX = 1024 * 1024 * 1024
EVENTS_MAX = 10_000
INTERVAL_S_MAX = 60.0
_CHUNK = b"0123456789abcdef" * 4096
_WORD_INTERVAL_S = 0.02

_WORDS = (
    "Yes.",
    "The",
    "key",
    "is",
    "good,",
    "and",
    "every",
    "budget",
    "has",
    "room",
    "for",
    "this",
    "request.",
)


async def echo(request: web.Request) -> web.Response:
    """Everything that the upstream saw of the request; repeated headers as a list."""
    received = 0
    async for chunk in request.content.iter_chunked(65_536):
        received += len(chunk)
    headers: dict[str, str | list[str]] = {}
    for name in dict.fromkeys(request.headers):
        values = request.headers.getall(name)
        headers[name] = values[0] if len(values) == 1 else values
    return web.json_response(
        {"method": request.method, "path": request.raw_path, "headers": headers, "body_bytes": received}
    )


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer the last message, whole or in pieces, with a `usage` that counts words as tokens."""
    try:
        asked = await request.json()
        messages = asked["messages"]
        prompt = " ".join(str(message["content"]) for message in messages)
        model = str(asked.get("model", "demo"))
        includes_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        streams = bool(asked.get("stream"))
    except (ValueError, KeyError, TypeError, AttributeError):
        error = {"message": "send a JSON object with `messages`", "type": "invalid_request_error"}
        return web.json_response({"error": error}, status=400)
    prompt_tokens = max(1, len(prompt.split()))
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(_WORDS),
        "total_tokens": prompt_tokens + len(_WORDS),
    }
    head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}
    if streams:
        return await _stream_completion(request, head, usage if includes_usage else None)
    message = {"role": "assistant", "content": " ".join(_WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})


async def _stream_completion(
    request: web.Request, head: dict[str, Any], usage: dict[str, int] | None
) -> web.StreamResponse:
    response = await _begin_events(request)

    async def send(choices: list[dict[str, Any]], **more: Any) -> None:
        chunk = {**head, "object": "chat.completion.chunk", "choices": choices, **more}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    for index, word in enumerate(_WORDS):
        delta = {"content": word + " "} if index else {"role": "assistant", "content": word + " "}
        await send([{"index": 0, "delta": delta, "finish_reason": None}])
        await asyncio.sleep(_WORD_INTERVAL_S)
    await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    if usage is not None:
        await send([], usage=usage)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def stream(request: web.Request) -> web.StreamResponse:
    """`events` events, `interval` seconds apart."""
    try:
        events = int(request.query.get("events", "5"))
        interval_s = float(request.query.get("interval", "0.1"))
    except ValueError:
        raise web.HTTPBadRequest(text="events and interval are numbers\n") from None
    if not (0 <= events <= EVENTS_MAX and 0 <= interval_s <= INTERVAL_S_MAX):
        raise web.HTTPBadRequest(text=f"at most {EVENTS_MAX} events, {INTERVAL_S_MAX:g} s apart\n")
    response = await _begin_events(request)
    for index in range(events):
        await response.write(f"data: event {index + 1} of {events}\n\n".encode())
        await asyncio.sleep(interval_s)
    await response.write_eof()
    return response


async def _begin_events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    return response


async def some_bytes(request: web.Request) -> web.StreamResponse:
    left = int(request.match_info["n"])
    if left > ANSWER_BYTES_MAX:
        raise web.HTTPBadRequest(text=f"at most {ANSWER_BYTES_MAX} bytes\n")
    response = web.StreamResponse(
        headers={"Content-Type": "application/octet-stream", "Content-Length": str(left)}
    )
    await response.prepare(request)
    while left > 0:
        await response.write(_CHUNK[:left])
        left -= len(_CHUNK)
    await response.write_eof()
    return response


async def some_status(request: web.Request) -> web.Response:
    code = int(request.match_info["code"])
    if not 200 <= code <= 599:
        raise web.HTTPBadRequest(text="a status between 200 and 599\n")
    return web.Response(status=code, text=f"{code}\n" if code not in (204, 304) else None)


@web.middleware
async def client_may_go(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A client that goes away in the middle of an answer is nothing to complain of."""
    try:
        return await handler(request)
    except ConnectionResetError:
        return web.Response(status=499)


async def healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def build_upstream() -> web.Application:
    application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[client_may_go])
    application.router.add_route("*", "/anything{rest:.*}", echo)
    application.router.add_post("/v1/chat/completions", chat_completions)
    application.router.add_get("/stream", stream)
    application.router.add_get(r"/bytes/{n:\d{1,12}}", some_bytes)
    application.router.add_get(r"/status/{code:\d{3}}", some_status)
    application.router.add_get("/healthz", healthz)
    return application


async def start_upstream(port: int = 0) -> tuple[web.AppRunner, str]:
    """Listen on 127.0.0.1; gives the runner (to be cleaned up) and the URL. Raises OSError when the port is taken."""
    runner = web.AppRunner(build_upstream(), access_log=None, shutdown_timeout=2, handle_signals=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def serve(port: int, tell: Callable[[str], None]) -> None:
    """Run until SIGINT or SIGTERM; ``tell`` is given the URL once it answers."""
    import signal

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    runner, url = await start_upstream(port)
    try:
        tell(url)
        await ended.wait()
    finally:
        await runner.cleanup()
