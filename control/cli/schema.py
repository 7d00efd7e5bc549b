"""The schema and the operator token, made ready before the processes that need them. Called by ``stack.py`` and
``processes.py``.
"""

from collections.abc import Callable

import asyncpg

from control.cli.failures import CommandFailed, ExitCode
from control.migrate import MigrationError, migrate

_CONNECT_TIMEOUT_S = 10.0


async def bring_up_to_date(dsn: str) -> list[str]:
    """Run the migrations that are missing; gives their names.

    Raises CommandFailed when Postgres cannot be reached (3), or it and the files disagree (1).
    """
    try:
        return await migrate(dsn)
    except MigrationError as error:
        raise CommandFailed(str(error)) from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise CommandFailed(f"Postgres cannot be used: {reason}", ExitCode.UNREACHABLE) from error


async def prepare(dsn: str, keep: Callable[[str], None]) -> str | None:
    """Migrate; then make the operator token if there is none: gives it, or None if there was one already.

    ``keep`` is called with a new token before it becomes valid, so that none is ever valid and lost.
    """
    from control.app import ensure_operator_token

    await bring_up_to_date(dsn)
    conn = await asyncpg.connect(dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        async with conn.transaction():
            token = await ensure_operator_token(conn)
            if token is not None:
                keep(token)
            return token
    finally:
        await conn.close(timeout=_CONNECT_TIMEOUT_S)
