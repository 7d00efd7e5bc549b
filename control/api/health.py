"""/livez, /readyz, /metrics: for whoever runs this process. Open to all who reach the listener; nothing secret in them."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from aiohttp import web

from control.api import shapes
from control.api.services import Services, services
from control.database import POSTGRES_ERRORS

_log = structlog.get_logger("control.health")
_READY_TIMEOUT_S: Final = 3.0


async def livez(_: web.Request) -> web.Response:
    """The process answers; nothing else is asked, so that a database that is away does not get it restarted."""
    return shapes.answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """200 if Postgres and Redis both answer, else 503 and which one does not."""
    deps = services(request)
    postgres, redis = await asyncio.gather(_postgres_answers(deps), deps.counters.is_answering())
    checks = {"postgres": postgres, "redis": redis}
    ready = all(checks.values())
    return shapes.answer({"status": "ok" if ready else "unavailable", **checks}, status=200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=services(request).metrics.text(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def _postgres_answers(deps: Services) -> bool:
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S), deps.reading() as conn:
            return bool(await conn.fetchval("SELECT true"))
    except POSTGRES_ERRORS as error:
        _log.info("postgres_does_not_answer", error=type(error).__name__)
        return False
