"""A Git host: `git http-backend`, the real one, behind a small CGI bridge. It trusts X-Principal, as an upstream would."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from aiohttp import web

_HEAD_LIMIT = 1 << 16


class GitHost:
    """`principals` are those on whose behalf something was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.principals: set[str] = set()
        self.credentials: list[str] = []
        """Authorization fields that reached it: there must be none."""

    def application(self) -> web.Application:
        application = web.Application(client_max_size=0)
        application.router.add_route("*", "/git/{path:.*}", self._serve)
        return application

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        principal = request.headers.get("X-Principal")
        if principal is None:
            return web.Response(status=403, text="who is calling?\n")
        self.principals.add(principal)
        self.credentials += request.headers.getall("Authorization", [])
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self._environment(request, principal),
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            feeding = asyncio.create_task(self._feed(request, process.stdin))
            response = await self._answer(request, process.stdout)
            await feeding
            return response
        finally:
            if process.returncode is None:
                await process.wait()

    def _environment(self, request: web.Request, principal: str) -> dict[str, str]:
        given = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.root), "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": "/" + request.match_info["path"], "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method, "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "REMOTE_USER": principal, "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": request.headers.get("Git-Protocol", ""), "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(self.root),
        }  # fmt: skip
        if request.content_length is not None:
            given["CONTENT_LENGTH"] = str(request.content_length)
        return given

    @staticmethod
    async def _feed(request: web.Request, stdin: asyncio.StreamWriter) -> None:
        async for piece in request.content.iter_any():
            stdin.write(piece)
            await stdin.drain()
        stdin.close()

    @staticmethod
    async def _answer(request: web.Request, stdout: asyncio.StreamReader) -> web.StreamResponse:
        head = (await stdout.readuntil(b"\r\n\r\n"))[:_HEAD_LIMIT].decode()
        status, headers = 200, {}
        for line in head.splitlines():
            name, _, value = line.partition(":")
            if name.lower() == "status":
                status = int(value.split()[0])
            elif name:
                headers[name] = value.strip()
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        while piece := await stdout.read(65_536):
            await response.write(piece)
        await response.write_eof()
        return response
