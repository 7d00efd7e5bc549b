"""An installation whose parts can be stopped, hung and killed one by one: two servers, control, jobs and a gateway."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path

import aiohttp
import asyncpg
import psutil

from control.domain.operator import ensure_operator_token
from control.embedded import EmbeddedPostgres, EmbeddedRedis, free_port
from control.embedded.process import ServerProcess
from control.migrate import migrate
from tests.conftest import UNSYNCED
from tests.system.installation import Addresses, workers_of
from tests.system.running import environment

READY_TIMEOUT_S = 40.0
HOLD_TTL_S = 2
WORKERS = 2
STOP_STEPS = [(signal.SIGTERM, 15.0)]

_PYTHON = (sys.executable, "-P", "-m")
_COMMANDS = {
    "control": (*_PYTHON, "control.cli", "control"),
    "jobs": (*_PYTHON, "control.cli", "jobs"),
    "gateway": (*_PYTHON, "gateway"),
}


class Stack:
    """Made once for all tests of this directory; each leaves it running."""

    def __init__(self, directory: Path, routes: str) -> None:
        self.directory = directory
        self.redis = EmbeddedRedis(directory / "redis")
        self.postgres = EmbeddedPostgres(directory / "postgres", settings=UNSYNCED)
        self._ports = {name: free_port() for name in ("gateway", "control", "jobs", "management")}
        self._token = ""
        self._children: dict[str, ServerProcess] = {}
        (directory / "routes.toml").write_text(routes)
        (directory / "pepper").write_text(secrets.token_hex(32))

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    @property
    def addresses(self) -> Addresses:
        return Addresses(
            self.url("gateway"), self.url("control"), self.url("management"), self._token, self.redis.url,
            self.postgres.dsn,
        )  # fmt: skip

    async def start(self) -> None:
        await asyncio.gather(self.redis.start(), self.postgres.start())
        await self._migrate()
        await asyncio.gather(*(self.start_process(name) for name in _COMMANDS))

    async def heal(self) -> None:
        """Start again what a test that failed has left stopped."""
        await asyncio.gather(self.redis.start(), self.postgres.start())
        for name, child in self._children.items():
            if not child.is_running:
                await self.start_process(name)

    async def _migrate(self) -> None:
        await migrate(self.postgres.dsn)
        session = await asyncpg.connect(self.postgres.dsn)
        token = await ensure_operator_token(session)
        await session.close()
        assert token is not None
        self._token = token

    async def start_process(self, name: str) -> None:
        """Start control, jobs or the gateway, and wait until it is ready."""
        child = self._children.setdefault(name, ServerProcess(name, self._folder(name)))
        child.launch(
            await child.claim(), _COMMANDS[name], user=None, stop_steps=STOP_STEPS, env=self._environment()
        )
        place = "management" if name == "gateway" else name
        await child.wait_ready(lambda: is_ready(self.url(place)), READY_TIMEOUT_S)

    async def stop_process(self, name: str) -> None:
        await self._children[name].stop()

    async def kill_process(self, name: str) -> None:
        """SIGKILL; for the gateway its workers with it, in the same instant."""
        child = self._children[name]
        assert child.pid is not None
        # Looked up aside and killed at once: meanwhile the load goes on, so that they die in the middle of something.
        workers = await asyncio.to_thread(workers_of, child.pid) if name == "gateway" else []
        pids = [child.pid, *(worker.pid for worker in workers)]
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none is to notice the end of another
            for pid in pids:
                os.kill(pid, number)
        await child.stop()
        await asyncio.to_thread(psutil.wait_procs, workers, timeout=5)

    def pid(self, name: str) -> int:
        pid = self._children[name].pid
        assert pid is not None
        return pid

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.pid("gateway"))

    async def gateway_is_ready(self) -> bool:
        return await is_ready(self.url("management"))

    async def close(self) -> None:
        for name in ("gateway", "jobs", "control"):
            if name in self._children:
                await self._children[name].stop()
        await asyncio.gather(self.redis.stop(), self.postgres.stop())
        self.postgres.remove_data()

    def _folder(self, name: str) -> Path:
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        return folder

    def _environment(self) -> dict[str, str]:
        settings = {
            "REDIS_URL": self.redis.url, "POSTGRES_DSN": self.postgres.dsn, "PEPPER_FILE": str(self.directory / "pepper"),
            "CONFIG": str(self.directory / "routes.toml"), "WORKERS": str(WORKERS), "HOLD_TTL_S": str(HOLD_TTL_S),
            "LISTEN": f"127.0.0.1:{self._ports['gateway']}", "CONTROL_LISTEN": f"127.0.0.1:{self._ports['control']}",
            "MANAGEMENT_LISTEN": f"127.0.0.1:{self._ports['management']}",
            "JOBS_LISTEN": f"127.0.0.1:{self._ports['jobs']}", "DRAIN_TIMEOUT_S": "5",
        }  # fmt: skip
        return environment(**{f"TOLLKEEPER_{name}": value for name, value in settings.items()})


async def is_ready(url: str) -> bool:
    timeout = aiohttp.ClientTimeout(total=2)
    with suppress(aiohttp.ClientError, TimeoutError):
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as http,
            http.get(f"{url}/readyz") as answer,
        ):
            return answer.status == 200
    return False


def hang(pid: int) -> None:
    """Stop a process in its tracks: it keeps its connections and says nothing."""
    os.kill(pid, signal.SIGSTOP)


def wake(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
