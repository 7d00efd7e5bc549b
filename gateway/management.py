"""The management listener: /livez, /readyz, /metrics. Acts; aiohttp, because nothing here is hot.

It belongs to operators: it listens on an address of its own and is never reachable through the workloads' port.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import Snapshot, families
from gateway.settings import parse_address


class Supervised(Protocol):
    """What the listener asks about."""

    async def snapshot(self) -> Snapshot: ...

    async def why_not_ready(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Management:
    """The running listener."""

    runner: web.AppRunner
    address: str

    async def close(self) -> None:
        await self.runner.cleanup()


class _Snapshot(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return families(self._snapshot)


async def serve_management(address: str, supervised: Supervised) -> Management:
    """Listen on "host:port". Raises OSError if the address is taken."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why = await supervised.why_not_ready()
        if why is None:
            return web.Response(text="ready\n")
        return web.Response(status=503, text=f"not ready: {why}\n")

    async def metrics(_: web.Request) -> web.Response:
        registry = CollectorRegistry()
        registry.register(_Snapshot(await supervised.snapshot()))
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = parse_address(address)
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    bound = runner.addresses[0]
    return Management(runner, f"{bound[0]}:{bound[1]}")
