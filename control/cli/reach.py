"""Whether a Redis that was given answers: asked before anything is started with it. Called by ``stack.py``."""

from redis.asyncio import Redis
from redis.exceptions import RedisError

from control.addresses import check_redis_url
from control.cli.failures import CommandFailed, ExitCode

_TIMEOUT_S = 5.0


async def reach_redis(url: str) -> None:
    """Raises CommandFailed when this is no URL (2), or nothing that takes our commands answers there (3)."""
    try:
        check_redis_url(url)
    except ValueError as error:
        raise CommandFailed(f"Redis cannot be used: {error}.", ExitCode.USAGE) from error
    try:
        async with Redis.from_url(
            url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S
        ) as client:
            await client.ping()
    except (RedisError, OSError, ValueError) as error:
        # A ValueError is about a part of the URL, and its words repeat that part.
        reason = "its URL cannot be read" if isinstance(error, ValueError) else str(error)
        raise CommandFailed(f"Redis cannot be used: {reason}", ExitCode.UNREACHABLE) from error
