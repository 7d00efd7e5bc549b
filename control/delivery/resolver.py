"""The addresses of receivers' names, looked up in threads of our own: a name server that does not answer holds up those alone
whom it is asked about. Acts.

The system's look-up cannot be cancelled and takes half a minute to give up, and the event loop has a handful of threads for it,
which reconnections to Redis and Postgres need too. So here a name is looked up once at a time, however many want it, and who
waits gives up sooner than the thread does.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from threading import Thread
from typing import Any, Final, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

PATIENCE_S: Final = 5.0
THREADS_MAX: Final = 512
"""Far more than there are deliveries on their way: a thread may hang for minutes after everybody has given up on it."""
_IS_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV

Found: TypeAlias = list[tuple[Any, ...]]
"""As `socket.getaddrinfo` gives it."""


class NotResolvedInTime(OSError):
    """Nobody said in time which addresses a name has."""


@dataclass(frozen=True, slots=True)
class _Asking:
    until: float
    task: asyncio.Task[Found]


class Resolver(AbstractResolver):
    """One a process, whatever it delivers: that bounds the threads."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._asking: dict[str, _Asking] = {}
        self._threads = asyncio.Semaphore(THREADS_MAX)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """What aiohttp asks for. Raises OSError if the name has no address, or NotResolvedInTime."""
        addresses = _literal(host) or await self._addresses(host)
        found = [
            ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=0, flags=_IS_NUMERIC)
            for kind, _, _, _, address in addresses
            if family in (socket.AF_UNSPEC, kind)
        ]
        if not found:
            raise OSError("the name has no address of that kind")
        return found

    async def connect(self, host: str, port: int) -> socket.socket:
        """A connected socket, to the first of the name's addresses that takes one. Raises OSError if none does."""
        loop = asyncio.get_running_loop()
        failure: OSError = OSError("the name has no address")
        for found in await self.resolve(host, port):
            sock = socket.socket(found["family"], socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await loop.sock_connect(sock, (found["host"], port))
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _addresses(self, host: str) -> Found:
        loop = asyncio.get_running_loop()
        asking = self._asking.get(host)
        if asking is None:
            task = loop.create_task(self._ask(host), name="resolve a receiver")
            task.add_done_callback(partial(self._on_asked, host))
            asking = self._asking[host] = _Asking(loop.time() + self._patience_s, task)
        try:
            async with asyncio.timeout_at(asking.until):
                return await asyncio.shield(asking.task)
        except TimeoutError:
            raise NotResolvedInTime(f"no address within {self._patience_s:g} s") from None

    async def _ask(self, host: str) -> Found:
        loop = asyncio.get_running_loop()
        async with self._threads:
            answer: asyncio.Future[Found] = loop.create_future()
            Thread(target=_look_up, args=(host, loop, answer), daemon=True, name="resolve").start()
            return await answer

    def _on_asked(self, host: str, task: asyncio.Task[Found]) -> None:
        del self._asking[host]
        if not task.cancelled():
            task.exception()  # whoever asked may have given up, and then nobody else looks


def _look_up(host: str, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[Found]) -> None:
    """In a thread: what the system says, handed back to the loop, if that is still there."""
    give: partial[None]
    try:
        give = partial(
            _give, answer, socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        )
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that can be nobody's
        give = partial(_fail, answer, error if isinstance(error, OSError) else OSError(str(error)))
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(give)


def _literal(host: str) -> Found | None:
    """What is an address needs nobody to be asked."""
    try:
        ip_address(host)
    except ValueError:
        return None
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


def _give(answer: asyncio.Future[Found], found: Found) -> None:
    if not answer.done():
        answer.set_result(found)


def _fail(answer: asyncio.Future[Found], error: OSError) -> None:
    if not answer.done():
        answer.set_exception(error)
