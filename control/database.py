"""Connections to Postgres: one bounded pool a process, with a limit on every wait. Called by the composition roots."""

from __future__ import annotations

import asyncio
import time
from typing import Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from control.settings import ControlSettings

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

POSTGRES_ERRORS: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""What an unreachable, stopping or overloaded Postgres looks like; anything else is a defect of ours."""

_RETRY_PAUSE_S: Final = 0.25
_LOCK_TIMEOUT_S: Final = 3.0


class PostgresUnreachable(Exception):
    """Postgres did not answer within the bound; the message says what to look at, without the password."""


async def connect_pool(settings: ControlSettings, *, application_name: str = "tollkeeper") -> Pool:
    """Open the pool, waiting up to `start_timeout_s` for Postgres to come up. Raises PostgresUnreachable."""
    give_up_at = time.monotonic() + settings.start_timeout_s
    while True:
        try:
            return await _open(settings, application_name)
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidCatalogNameError) as error:
            raise PostgresUnreachable(
                f"Postgres refused the connection ({type(error).__name__}): check TOLLKEEPER_POSTGRES_DSN"
            ) from None
        except POSTGRES_ERRORS as error:
            if time.monotonic() + _RETRY_PAUSE_S >= give_up_at:
                raise PostgresUnreachable(
                    f"no answer from Postgres in {settings.start_timeout_s:g} s ({type(error).__name__}): "
                    "check TOLLKEEPER_POSTGRES_DSN, and that it runs"
                ) from error
        await asyncio.sleep(_RETRY_PAUSE_S)


async def _open(settings: ControlSettings, application_name: str) -> Pool:
    milliseconds = str(int(settings.postgres_timeout_s * 1000))
    return await asyncpg.create_pool(
        settings.postgres_dsn.get_secret_value(),
        min_size=1,
        max_size=settings.postgres_connections_max,
        timeout=settings.postgres_timeout_s,
        command_timeout=settings.postgres_timeout_s
        + 1,  # the server's own limit strikes first, and leaves a usable connection
        server_settings={
            "application_name": application_name,
            "statement_timeout": milliseconds,
            "lock_timeout": str(int(min(_LOCK_TIMEOUT_S, settings.postgres_timeout_s) * 1000)),
            "idle_in_transaction_session_timeout": milliseconds,
            "timezone": "UTC",
        },
    )
