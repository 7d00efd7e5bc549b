"""A plain reverse proxy as one writes it with aiohttp.web and aiohttp's client, on uvloop. Run as a program.

python -m tests.benchmark.aiohttp_proxy PORT UPSTREAM_PORT
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web

_UPSTREAM = web.AppKey("upstream", str)
_SESSION = web.AppKey("session", ClientSession)
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer", "content-length"}
)


async def _pass(request: web.Request) -> web.StreamResponse:
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
    body = request.content if request.body_exists else None
    target = request.app[_UPSTREAM] + request.path_qs
    async with request.app[_SESSION].request(
        request.method, target, headers=headers, data=body, allow_redirects=False
    ) as got:
        answer = web.StreamResponse(status=got.status)
        for name, value in got.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                answer.headers.add(name, value)
        answer.content_length = got.content_length
        await answer.prepare(request)
        async for chunk in got.content.iter_any():
            await answer.write(chunk)
        await answer.write_eof()
        return answer


async def _session(app: web.Application) -> AsyncIterator[None]:
    connector = TCPConnector(limit=0, keepalive_timeout=600)
    async with ClientSession(
        connector=connector, auto_decompress=False, cookie_jar=DummyCookieJar()
    ) as session:
        app[_SESSION] = session
        yield


def _application(upstream_port: int) -> web.Application:
    app = web.Application()
    app[_UPSTREAM] = f"http://127.0.0.1:{upstream_port}"
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/{path:.*}", _pass)
    return app


if __name__ == "__main__":
    loop = uvloop.new_event_loop()
    port, upstream_port = (int(word) for word in sys.argv[1:3])
    web.run_app(
        _application(upstream_port), host="127.0.0.1", port=port, access_log=None, print=None, loop=loop, backlog=1024,
        keepalive_timeout=600,
    )  # fmt: skip
