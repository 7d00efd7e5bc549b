"""The schema and the operator token, made ready before the processes that need them. Called by ``stack.py`` and
``processes.py``.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from control.addresses import check_postgres_dsn
from control.cli.failures import CommandFailed, ExitCode
from control.database import Connection
from control.domain.operator import ensure_operator_token, renew_operator_token
from control.migrate import MigrationError, migrate

_CONNECT_TIMEOUT_S = 10.0
_UNUSABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError)


async def bring_up_to_date(dsn: str) -> list[str]:
    """Run the migrations that are missing; gives their names.

    Raises CommandFailed when Postgres cannot be reached (3), or it and the files disagree (1).
    """
    _check(dsn)
    try:
        return await migrate(dsn)
    except MigrationError as error:
        raise CommandFailed(str(error)) from error
    except _UNUSABLE as error:
        raise _unusable(error) from error


async def prepare(dsn: str, keep: Callable[[str], None]) -> str | None:
    """Migrate; then make the operator token if there is none: gives it, or None if there was one already.

    ``keep`` is called with a new token before it becomes valid, so that none is ever valid and lost.
    """
    await bring_up_to_date(dsn)
    return await _with_token(dsn, ensure_operator_token, keep)


async def renew_token(dsn: str, keep: Callable[[str], None]) -> str:
    """A new operator token in place of all others; ``keep`` as in `prepare`. Raises CommandFailed when there is no
    schema yet, or Postgres cannot be reached.
    """
    _check(dsn)
    try:
        return await _with_token(dsn, renew_operator_token, keep)
    except asyncpg.UndefinedTableError as error:
        raise CommandFailed(
            "There is no schema in this database yet: `tollkeeper migrate` makes it."
        ) from error
    except _UNUSABLE as error:
        raise _unusable(error) from error


T = TypeVar("T", str, str | None)


async def _with_token(dsn: str, make: Callable[[Connection], Awaitable[T]], keep: Callable[[str], None]) -> T:
    conn = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        async with conn.transaction():
            token = await make(conn)
            if token is not None:
                keep(token)
            return token
    finally:
        await conn.close(timeout=_CONNECT_TIMEOUT_S)


def _check(dsn: str) -> None:
    try:
        check_postgres_dsn(dsn)
    except ValueError as error:
        raise CommandFailed(f"Postgres cannot be used: {error}.", ExitCode.USAGE) from error


def _unusable(error: Exception) -> CommandFailed:
    reason = str(error) or type(error).__name__
    return CommandFailed(f"Postgres cannot be used: {reason}", ExitCode.UNREACHABLE)
