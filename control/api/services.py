"""What the calls of the API work with: made once by the composition root, found on the application. No logic."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from control.api.metrics import ApiMetrics
from control.counters import LiveCounters
from control.database import Connection, Pool
from control.delivery.resolver import Resolver
from control.domain.changes import Changes
from control.domain.hashing import Hashing
from control.domain.operator import OperatorGate
from control.settings import ControlSettings
from gateway.contract.token import Pepper


@dataclass(frozen=True, slots=True)
class Services:
    """One installation, as the API sees it."""

    settings: ControlSettings
    pool: Pool
    changes: Changes
    counters: LiveCounters
    hashing: Hashing
    gate: OperatorGate
    pepper: Pepper
    resolver: Resolver
    metrics: ApiMetrics

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection for calls that change nothing."""
        async with self.pool.acquire(timeout=self.settings.postgres_timeout_s) as conn:
            yield conn


SERVICES: Final = web.AppKey("services", Services)


def services(request: web.Request) -> Services:
    return request.app[SERVICES]
