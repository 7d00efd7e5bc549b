"""Everything that one `tollkeeper up` runs: the two servers, control, jobs and the gateway, as child processes.

Each child is under a guard (``control.embedded.guard``): it does not see the terminal's Ctrl-C, and it ends when this
process does, however that happens. Who may start: ``up.py`` and ``demo.py``.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

import aiohttp

from control.cli.credentials import read_client_file
from control.cli.data_directory import DataDirectory
from control.cli.failures import CommandFailed
from control.cli.log_tail import LogTail
from control.cli.output import talk
from control.cli.plan import HOST, Addresses, Plan, is_free
from control.cli.reach import reach_redis
from control.cli.schema import prepare, renew_token
from control.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServerFailed, free_port
from control.embedded.process import ServerProcess

READY_TIMEOUT_S = 45.0
WATCH_INTERVAL_S = 0.25

_PYTHON = (sys.executable, "-P")
"""-P: what lies in the working directory must not shadow our packages."""

# How long each child may take to end before it is killed: the gateway first, then the other two together, then the
# servers. All of it is done within half a minute.
_STOP_S = {"gateway": 15.0, "jobs": 8.0, "control": 8.0}
_DRAIN_S = 9.0
"""For requests in flight: the gateway gives its workers some seconds more than that, and must still end in time."""


class Stack:
    """One start and one stop of a plan in a claimed data directory, which `stop` releases."""

    def __init__(self, plan: Plan, directory: DataDirectory) -> None:
        self.plan = plan
        self.directory = directory
        self.made_token = False
        """Whether this start made the operator token (it then has not been shown yet)."""
        self._servers: list[EmbeddedPostgres | EmbeddedRedis] = []
        self._children: dict[str, ServerProcess] = {}
        self._tails: dict[str, LogTail] = {}

    async def start(self) -> Addresses:
        """Start everything and return once all of it is ready.

        Raises CommandFailed saying which part failed, with its last lines; what was started is then left to `stop`.
        """
        gateway_port = _chosen_port(self.plan.port, "--port")
        control_port = _chosen_port(self.plan.control_port, "--control-port")
        management_port = _chosen_port(self.plan.management_port, "--management-port")
        if len({gateway_port, control_port, management_port}) < 3:
            raise CommandFailed("--port, --control-port and --management-port must differ.")
        redis, postgres = await self._start_servers()
        token = await self._migrate(postgres)
        addresses = Addresses(
            gateway=f"http://{HOST}:{gateway_port}",
            control=f"http://{HOST}:{control_port}",
            management=f"http://{HOST}:{management_port}",
            operator_token=token,
            redis=redis,
            postgres=postgres,
        )
        await self._start_children(addresses)
        return await self._settled(addresses)

    async def watch(self) -> None:
        """Pass warnings on to standard error; raises CommandFailed when something that was started has ended."""
        while True:
            for tail in self._tails.values():
                tail.pass_on()
            for server in self._servers:
                if not server.is_running:
                    name = type(server).__name__.removeprefix("Embedded")
                    raise CommandFailed(f"{name} has ended on its own. Its log: {server.log}")
            for child in self._children.values():
                if not child.is_running:
                    raise CommandFailed(str(child.failure("has ended on its own")))
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def stop(self) -> None:
        """Stop the gateway (it settles what is in flight), then jobs and control, then the servers. Bounded."""
        for names in (("gateway",), ("jobs", "control")):
            await asyncio.gather(*(self._children[name].stop() for name in names if name in self._children))
        for tail in self._tails.values():
            tail.pass_on()
        await asyncio.gather(*(server.stop() for server in self._servers))
        self.directory.release()

    def hurry(self) -> None:
        """Kill what is still busy ending. What the gateway held then is settled by the expire job of a later start."""
        for child in self._children.values():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    # Its guard leads the group, and the gateway's workers are in it.
                    os.killpg(os.getpgid(child.pid), signal.SIGKILL)

    async def _start_servers(self) -> tuple[str, str]:
        """Start the embedded servers that the plan does not bring itself: (redis URL, postgres DSN)."""
        if self.plan.redis_url:
            await reach_redis(self.plan.redis_url)
        redis = None if self.plan.redis_url else EmbeddedRedis(self.directory.path / "valkey")
        postgres = None if self.plan.postgres_dsn else EmbeddedPostgres(self.directory.path / "postgres")
        self._servers = [server for server in (redis, postgres) if server is not None]
        results = await asyncio.gather(*(server.start() for server in self._servers), return_exceptions=True)
        for failure in results:
            if isinstance(failure, EmbeddedServerFailed):
                raise CommandFailed(str(failure)) from failure
            if failure is not None:
                raise failure
        redis_url = redis.url if redis else self.plan.redis_url
        postgres_dsn = postgres.dsn if postgres else self.plan.postgres_dsn
        assert redis_url is not None
        assert postgres_dsn is not None
        return redis_url, postgres_dsn

    async def _migrate(self, dsn: str) -> str | None:
        """Bring the schema up to date and make the operator token if there is none: the token, or None if only
        somebody else knows it.
        """
        kept = read_client_file(self.directory.path)

        def keep(token: str) -> None:
            self.made_token = True
            self.directory.write_client_file({"url": "", "operator_token": token})

        made = await prepare(dsn, keep)
        if made is not None:
            return made
        known = os.environ.get("TOLLKEEPER_OPERATOR_TOKEN") or (kept.operator_token if kept else None)
        if known is None and self.plan.postgres_dsn is None:
            # The database is this directory's own: whoever can start it may have its token.
            talk("The operator token was lost; a new one takes its place.")
            return await renew_token(dsn, keep)
        return known

    async def _start_children(self, addresses: Addresses) -> None:
        jobs_port = free_port()
        env = self._environment(addresses, jobs_port)
        command_line = [*_PYTHON, "-m", "control.cli"]
        await self._launch("control", [*command_line, "control"], env)
        await self._launch("jobs", [*command_line, "jobs"], env)
        # The gateway needs Redis only, and is not told of anything else.
        hidden = ("TOLLKEEPER_POSTGRES_DSN", "TOLLKEEPER_OPERATOR_TOKEN")
        gateway_env = {name: value for name, value in env.items() if name not in hidden}
        await self._launch("gateway", [*_PYTHON, "-m", "gateway"], gateway_env)
        urls = {
            "control": addresses.control,
            "jobs": f"http://{HOST}:{jobs_port}",
            "gateway": addresses.management,
        }
        try:
            async with asyncio.TaskGroup() as waits:
                for name, url in urls.items():
                    waits.create_task(self._wait_ready(name, url))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    def _environment(self, addresses: Addresses, jobs_port: int) -> dict[str, str]:
        env = dict(os.environ)
        if not env.get("TOLLKEEPER_PEPPER") and not env.get("TOLLKEEPER_PEPPER_FILE"):
            env["TOLLKEEPER_PEPPER_FILE"] = str(self.directory.pepper_file())
        env |= {
            "PYTHONUNBUFFERED": "1",
            "TOLLKEEPER_REDIS_URL": addresses.redis,
            "TOLLKEEPER_POSTGRES_DSN": addresses.postgres,
            "TOLLKEEPER_LISTEN": addresses.gateway.removeprefix("http://"),
            "TOLLKEEPER_MANAGEMENT_LISTEN": addresses.management.removeprefix("http://"),
            "TOLLKEEPER_CONTROL_LISTEN": addresses.control.removeprefix("http://"),
            "TOLLKEEPER_JOBS_LISTEN": f"{HOST}:{jobs_port}",
        }
        env.setdefault("TOLLKEEPER_DRAIN_TIMEOUT_S", f"{_DRAIN_S:g}")
        env.setdefault("TOLLKEEPER_SHUTDOWN_TIMEOUT_S", f"{_STOP_S['control'] - 2:g}")
        if self.plan.workers is not None:
            env["TOLLKEEPER_WORKERS"] = str(self.plan.workers)
        env.pop("TOLLKEEPER_CONFIG", None)
        env.pop("TOLLKEEPER_UPSTREAM", None)
        if self.plan.config is not None:
            env["TOLLKEEPER_CONFIG"] = str(self.plan.config.absolute())
        if self.plan.upstream is not None:
            env["TOLLKEEPER_UPSTREAM"] = self.plan.upstream
        return env

    async def _launch(self, name: str, command: Sequence[str], env: dict[str, str]) -> None:
        child = ServerProcess(name, self.directory.folder(name))
        try:
            lock = await child.claim()
            self._tails[name] = LogTail(name, child.log)
            self._children[name] = child
            child.launch(lock, command, user=None, stop_steps=[(signal.SIGTERM, _STOP_S[name])], env=env)
        except EmbeddedServerFailed as failure:
            raise CommandFailed(str(failure)) from failure

    async def _wait_ready(self, name: str, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:

            async def is_ready() -> bool:
                try:
                    async with http.get(f"{url}/readyz") as answer:
                        return answer.status == 200
                except (aiohttp.ClientError, TimeoutError):
                    return False

            try:
                await self._children[name].wait_ready(is_ready, READY_TIMEOUT_S)
            except EmbeddedServerFailed as failure:
                raise CommandFailed(str(failure)) from failure

    async def _settled(self, addresses: Addresses) -> Addresses:
        """The addresses with a token that the control plane really takes, kept in the client file."""
        token = addresses.operator_token
        if token is not None and not await _is_accepted(addresses.control, token):
            talk("The operator token that is kept here is not the one of this database.")
            token = None
        if token is None:
            talk(
                "The operator token was made elsewhere. "
                "Give it to the commands as TOLLKEEPER_OPERATOR_TOKEN or --token-file."
            )
        self.directory.write_client_file(
            {
                "url": addresses.control,
                "operator_token": token,
                "gateway": addresses.gateway,
                "management": addresses.management,
            }
        )
        return replace(addresses, operator_token=token)


async def _is_accepted(url: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"}
    address = f"{url}/v1/organizations?limit=1"
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as http, http.get(address, headers=headers) as answer:
        return answer.status != 401


def _chosen_port(port: int, option: str) -> int:
    """The port, or a free one for 0. Raises CommandFailed when somebody listens there already."""
    if port == 0:
        return free_port()
    if not is_free(port):
        raise CommandFailed(f"Port {port} is taken: choose another with {option} (0 picks a free one).")
    return port
