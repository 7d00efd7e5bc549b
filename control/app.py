"""The control plane's composition root: everything is made here, once, and handed to those who need it.

`tollkeeper control` calls `serve`; tests call `build_app`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from control.api.metrics import ApiMetrics
from control.api.routes import build
from control.api.services import Services
from control.counters import LiveCounters
from control.database import PostgresUnreachable, connect_pool
from control.delivery.resolver import Resolver
from control.domain.changes import Changes
from control.domain.hashing import Hashing
from control.domain.operator import OperatorGate, ensure_operator_token, renew_operator_token
from control.logs import configure_logs
from control.migrate import MigrationError, is_current
from control.publishing import Publisher, connect_redis
from control.settings import ControlSettings, listen_address

__all__ = ["build_app", "ensure_operator_token", "open_services", "renew_operator_token", "serve"]

_log = structlog.get_logger("control.app")
_GATE_THREADS: Final = 1
"""Wrong tokens are tried one at a time, and never in the way of keys being made."""


@asynccontextmanager
async def open_services(settings: ControlSettings) -> AsyncIterator[Services]:
    """Connect to both stores, and close everything in the end. Raises PostgresUnreachable; Redis may come up later."""
    hashing, gate_hashing = Hashing(settings.hash_threads), Hashing(_GATE_THREADS)
    redis = connect_redis(settings)
    try:
        async with await connect_pool(settings, application_name="tollkeeper-control") as pool:
            yield Services(
                settings=settings,
                pool=pool,
                changes=Changes(
                    pool, Publisher(redis, settings.layout), timeout_s=settings.postgres_timeout_s
                ),
                counters=LiveCounters(redis, settings.layout),
                hashing=hashing,
                gate=OperatorGate(gate_hashing),
                pepper=settings.read_pepper(),
                resolver=Resolver(),
                metrics=ApiMetrics(),
            )
    finally:
        hashing.close()
        gate_hashing.close()
        await redis.aclose()


def build_app(deps: Services) -> web.Application:
    """The REST API on these services."""
    return build(deps)


async def serve(settings: ControlSettings) -> None:
    """Answer the REST API until SIGTERM or SIGINT; calls in flight are finished first.

    Ends the process with status 1 and one clear line if Postgres is away or the schema is not the right one.
    """
    configure_logs(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        async with open_services(settings) as deps:
            await _prepare(deps)
            await _answer(deps, stopping)
    except (PostgresUnreachable, MigrationError) as error:
        _log.error("cannot_start", reason=str(error))
        raise SystemExit(1) from None


async def _prepare(deps: Services) -> None:
    async with deps.reading() as conn:
        if not await is_current(conn):
            raise MigrationError("the schema is not up to date: run `tollkeeper migrate` first")
        token = await ensure_operator_token(conn)
    if token is not None:
        # The one place where it is ever shown; not a log line, so that no collector of logs keeps it.
        sys.stdout.write(f"Operator token, shown this once: {token}\n")
        sys.stdout.flush()


async def _answer(deps: Services, stopping: asyncio.Event) -> None:
    host, port = listen_address(deps.settings.control_listen)
    runner = web.AppRunner(
        build_app(deps), access_log=None, shutdown_timeout=deps.settings.shutdown_timeout_s
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, reuse_address=True)
        await site.start()
        _log.info("listening", address=[f"{name[0]}:{name[1]}" for name in runner.addresses])
        await stopping.wait()
        _log.info("stopping")
    finally:
        await runner.cleanup()
