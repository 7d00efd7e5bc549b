"""One worker: the composition root of the data plane's process. Acts.

Started by the supervisor with a listening socket and a channel. It serves until SIGTERM or until the channel closes (the
supervisor is gone), then accepts nothing more, lets what is under way finish, settles everything and exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import orjson
import structlog
import uvloop

from gateway.acceptor import Acceptor
from gateway.channel import DRAINING, RELOAD, SERVING, SNAPSHOT
from gateway.logs import AccessLog, configure_logs
from gateway.proxy import Proxy
from gateway.route_table import SettingsError
from gateway.settings import load_settings
from gateway.tls import TlsFilesError

LISTEN_BACKLOG = 4096
LAST_WORD_S = 1.0

log = structlog.get_logger("gateway.worker")


class Channel(asyncio.Protocol):
    """The worker's end of the line to the supervisor (see `channel`); its end stops us."""

    def __init__(self, proxy: Proxy, reload: Callable[[], None], stop: asyncio.Event) -> None:
        self._proxy = proxy
        self._reload = reload
        self._stop = stop
        self._transport: asyncio.WriteTransport | None = None
        self._is_closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's do not derive from asyncio's

    def data_received(self, data: bytes) -> None:
        for word in data:
            if word == SNAPSHOT[0]:
                self.say(orjson.dumps(self._proxy.snapshot()))
            elif word == RELOAD[0]:
                self._reload()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._is_closed.set()
        self._stop.set()

    def say(self, line: bytes) -> None:
        if self._transport is not None:
            self._transport.write(line + b"\n")

    async def say_last(self) -> None:
        """Say once more what was counted, all of it now, and hang up; if the supervisor listens yet."""
        if self._transport is not None:
            self.say(orjson.dumps(self._proxy.snapshot()))
            self._transport.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    await self._is_closed.wait()


class UnexpectedErrors:
    """What a callback of the loop raised: counted each time, written down with its trace once a place and minute."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._written: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._proxy.metrics.events["unexpected_error"] += 1
        error = context.get("exception")
        place = str(context.get("message"))
        if isinstance(error, Exception) and error.__traceback__ is not None:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {frame.name}:{frame.lineno}"
        if loop.time() < self._written.get(place, 0.0):
            return
        self._written[place] = loop.time() + 60.0
        log.error("unexpected_error", place=place, message=context.get("message"), exc_info=error)


def raise_open_files_limit() -> None:
    """As many open files as the system lets this process have: two for each request in flight."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(listen_fd: int, channel_fd: int) -> None:
    """Serve on an inherited listening socket until told to stop. Raises SettingsError."""
    loaded = load_settings()
    settings = loaded.settings
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # and a terminal's end does
    proxy = Proxy(settings, loaded.routes, loaded.pepper, AccessLog(settings.access_log_fraction))
    acceptor = Acceptor(socket.socket(fileno=listen_fd), proxy, loaded.tls)
    proxy.start()
    reloads = Reloads(proxy, acceptor)
    channel = Channel(proxy, reloads.want, stop)
    await loop.create_connection(lambda: channel, sock=socket.socket(fileno=channel_fd))
    await await_ledger(proxy, settings.redis_timeout_s)
    acceptor.start()
    loop.set_exception_handler(UnexpectedErrors(proxy))
    gc.collect()
    gc.freeze()  # what is loaded by now stays: the collector need not look at it again
    gc.set_threshold(
        20_000, 20, 100
    )  # a request leaves no cycles; looking for them every 700 objects would be for nothing
    channel.say(SERVING)
    log.info("worker_serving", routes=[route.name for route in loaded.routes.routes])
    await stop.wait()
    channel.say(DRAINING)
    acceptor.finish()
    await drain(proxy, settings.drain_timeout_s)
    await proxy.close()
    await channel.say_last()
    log.info("worker_stopped")


class Reloads:
    """Serves by the route table and the certificates as they are now; keeps the old ones if something is wrong with them."""

    def __init__(self, proxy: Proxy, acceptor: Acceptor) -> None:
        self._proxy = proxy
        self._acceptor = acceptor
        self._wanted = 0
        self._task: asyncio.Task[None] | None = None

    def want(self) -> None:
        """Reload; once more, if that is being done already."""
        self._wanted += 1
        if self._task is None or self._task.done():
            self._task = self._proxy.loop.create_task(self._reload(), name="reload")

    async def _reload(self) -> None:
        while self._wanted:
            self._wanted = 0
            try:
                loaded = await asyncio.to_thread(
                    load_settings
                )  # certificates take their time, and requests go on
                self._proxy.use_routes(loaded.routes)
            except (SettingsError, TlsFilesError) as error:
                self._proxy.metrics.events["reload_refused"] += 1
                log.error("reload_refused", problems=getattr(error, "problems", None) or [str(error)])
            else:
                self._acceptor.tls = loaded.tls


async def await_ledger(proxy: Proxy, timeout_s: float) -> None:
    """Leave connections in the backlog until Redis has said that it is loaded, for at most `timeout_s`.

    Who connects while a worker takes another's place then waits some milliseconds and is not answered 503.
    """
    deadline = proxy.loop.time() + timeout_s
    while not proxy.is_ready and proxy.loop.time() < deadline:  # noqa: ASYNC110 - as in Proxy.close
        await asyncio.sleep(0.005)


async def drain(proxy: Proxy, timeout_s: float) -> None:
    """Let what is under way finish, for at most `timeout_s`; cut and settle the rest."""
    proxy.is_draining = True
    now = proxy.loop.time()
    for client in list(proxy.clients):
        client.stop(now)
    deadline = now + timeout_s
    while (proxy.clients or proxy.arriving) and proxy.loop.time() < deadline:  # noqa: ASYNC110 - as in Proxy.close
        await asyncio.sleep(0.02)
    for client in list(proxy.clients):
        client.cut("The gateway is stopping.")


def main() -> int:
    """`python -m gateway.server --listen-fd N --channel-fd N`: for the supervisor, not for people."""
    parser = argparse.ArgumentParser(
        prog="gateway.server", description="One worker; started by the supervisor."
    )
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    configure_logs(arguments.log_level)
    raise_open_files_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(arguments.listen_fd, arguments.channel_fd))
    except SettingsError as error:
        log.error("bad_settings", problems=error.problems)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
