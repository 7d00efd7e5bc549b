"""The addresses of upstreams' names, looked up again as they may have changed. Acts.

A name is looked up for the first connection, and aside whenever what is known of it is older than `ttl_s` while connections are
opened or kept. A look-up that fails, or hangs, leaves what was known: an upstream must not vanish with its name server.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Final

import structlog

_NAMES_MAX: Final = 4096

log = structlog.get_logger("gateway.resolver")


@dataclass(slots=True)
class _Known:
    addresses: tuple[str, ...]
    until: float
    has_failed: bool = False


class Resolver:
    """What the names of a worker's upstreams stand for."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._loop = asyncio.get_running_loop()
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The addresses of a host. Raises OSError if it has none, or nobody can say."""
        if is_address(host):
            return (host,)
        if host not in self._known:
            await asyncio.shield(self._asking.get(host) or self._begin(host))
        self.refresh(host)
        return self._known[host].addresses

    def is_current(self, host: str, address: str) -> bool:
        """False if the name is known to stand for other addresses by now."""
        known = self._known.get(host)
        return known is None or address in known.addresses

    def refresh(self, host: str) -> None:
        """Look a name up again, aside, if what is known of it is old: nobody waits for a name server that does not answer."""
        known = self._known.get(host)
        if known is not None and host not in self._asking and self._loop.time() >= known.until:
            self._begin(host)

    def _begin(self, host: str) -> asyncio.Task[None]:
        task = self._asking[host] = self._loop.create_task(self._ask(host), name=f"resolve {host}")
        task.add_done_callback(partial(self._on_asked, host))
        return task

    def _on_asked(self, host: str, task: asyncio.Task[None]) -> None:
        self._asking.pop(host, None)
        if not task.cancelled():
            task.exception()  # whoever asked may have gone, and then nobody else looks

    def close(self) -> None:
        for asking in list(self._asking.values()):
            asking.cancel()

    async def _ask(self, host: str) -> None:
        known = self._known.get(host)
        try:
            found = await self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
            if not addresses:
                raise OSError("the name has no address")
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that can be nobody's
            if known is None:
                raise error if isinstance(error, OSError) else OSError(str(error)) from None
            if not known.has_failed:
                log.warning(
                    "name_not_resolved", host=host, error=getattr(error, "strerror", None) or str(error)
                )
            known.has_failed, known.until = True, self._loop.time() + self._ttl_s
            return
        if len(self._known) >= _NAMES_MAX:
            self._known.clear()
        self._known[host] = _Known(addresses, self._loop.time() + self._ttl_s)


def is_address(host: str) -> bool:
    """Whether it need not be looked up."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
