"""Where the jobs answer probes and Prometheus: /livez, /readyz, /metrics. Nothing listens unless an address is set."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from control.jobs.metrics import JobMetrics
from control.settings import listen_address


class Health:
    """How each job is doing: starting, running, standby (another process runs it) or failing, and of what."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self._unwell: set[str] = set()

    def starting(self, job: str) -> None:
        self.states[job] = "starting"
        self._unwell.add(job)

    def well(self, job: str, state: str) -> None:
        self.states[job] = state
        self._unwell.discard(job)

    def failing(self, job: str, kind: str) -> None:
        self.states[job] = f"failing: {kind}"
        self._unwell.add(job)

    @property
    def is_ready(self) -> bool:
        """Whether every job has run, or is run elsewhere, and none fails."""
        return not self._unwell


@asynccontextmanager
async def listening(address: str | None, health: Health, metrics: JobMetrics) -> AsyncIterator[None]:
    """Serve at "host:port" while the block runs. Raises OSError if the address is taken."""
    if address is None:
        yield
        return
    runner = web.AppRunner(build_app(health, metrics), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, *listen_address(address)).start()
        yield
    finally:
        await runner.cleanup()


def build_app(health: Health, metrics: JobMetrics) -> web.Application:
    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        return web.json_response({"jobs": health.states}, status=200 if health.is_ready else 503)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", exposition)])
    return app
