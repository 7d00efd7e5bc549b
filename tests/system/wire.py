"""A client that says exactly the bytes it is told, and reads answers one by one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from tests.system.installation import Workload

ANSWER_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: names of fields are in lower case, in the order in which they came."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes
    is_whole: bool = True
    """False if the connection ended before the body did."""
    trailers: tuple[tuple[str, str], ...] = ()

    def all(self, name: str) -> list[str]:
        return [value for given, value in self.fields if given == name]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, tls: ssl.SSLContext | None = None, source: str | None = None) -> Self:
        """Connect, with a TLS handshake if there is a context for it; `source` is the address to come from."""
        local = (source, 0) if source is not None else None
        return cls(
            *await asyncio.open_connection("127.0.0.1", port, limit=1 << 22, ssl=tls, local_addr=local)
        )

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, to_head: bool = False, skip_interim: bool = True) -> Answer:
        """The next answer. Raises IncompleteReadError if the connection ends instead."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                head = await self.reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode("latin-1")[:-4].split("\r\n")
                version, status, *_ = first.split(" ")
                assert version == "HTTP/1.1", first
                pairs = [line.partition(":") for line in lines]
                fields = [(name.lower(), value.strip()) for name, _, value in pairs]
                if int(status) >= 200 or not skip_interim:
                    break
            trailers: list[tuple[str, str]] = []
            body, is_whole = await self._body(int(status), fields, to_head, trailers)
            return Answer(int(status), fields, body, is_whole, tuple(trailers))

    async def _body(
        self, status: int, fields: list[tuple[str, str]], to_head: bool, trailers: list[tuple[str, str]]
    ) -> tuple[bytes, bool]:
        names = dict(fields)
        if to_head or status in (204, 304) or status < 200:
            return b"", True
        try:
            if names.get("transfer-encoding") == "chunked":
                return await self._chunks(trailers)
            if "content-length" in names:
                return await self.reader.readexactly(int(names["content-length"])), True
            return await self.reader.read(-1), True
        except asyncio.IncompleteReadError as error:
            return error.partial, False
        except ConnectionResetError:
            return b"", False

    async def _chunks(self, trailers: list[tuple[str, str]]) -> tuple[bytes, bool]:
        body = b""
        try:
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            while line := (await self.reader.readuntil(b"\r\n"))[:-2].decode("latin-1"):
                name, _, value = line.partition(":")
                trailers.append((name.lower(), value.strip()))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return body, False
        return body, True

    async def is_closed(self) -> bool:
        """Whether the other side ends the connection without a further byte."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                return await self.reader.read(1) == b""
            except ConnectionResetError:
                return True

    async def still_open(self, for_s: float = 0.3) -> bool:
        """Whether the connection stays as it is for this long."""
        try:
            async with asyncio.timeout(for_s):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        if not self.writer.transport.is_closing():  # TLS of Python 3.11.2 fails on one that has ended
            self.writer.transport.abort()


@asynccontextmanager
async def wire(
    port: int, *, tls: ssl.SSLContext | None = None, source: str | None = None
) -> AsyncIterator[Wire]:
    opened = await Wire.open(port, tls=tls, source=source)
    try:
        yield opened
    finally:
        opened.close()


def request(
    workload: Workload | None,
    target: str,
    *fields: str,
    method: str = "GET",
    version: str = "1.1",
    body: bytes = b"",
) -> bytes:
    """A request with Host and, for a workload, its token; further fields as whole lines. `body` brings its length."""
    lines = [f"{method} {target} HTTP/{version}", "Host: gateway.test"]
    if workload is not None:
        lines.append(f"Authorization: Bearer {workload.token}")
    lines += fields
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def metric(management_port: int, sample: str) -> float:
    """A sample of /metrics, named with all its labels as it is printed; 0 if there is none."""
    async with wire(management_port) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n")
        text = (await client.answer()).body.decode()
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(sample + " ")), 0.0)


async def event_count(management_port: int, event: str) -> int:
    """How often a gateway has counted this event."""
    return int(await metric(management_port, f'tollkeeper_events_total{{event="{event}"}}'))
