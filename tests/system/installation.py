"""One running installation as the tests see it: its REST API, its ledger and counters, its gateways and their logs."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import asyncpg
import psutil
import redis.asyncio

from control.embedded import wait_until
from gateway.contract.ids import KEY_ID_LENGTH, LEVELS, AccountId, KeyId, OrganizationTag
from gateway.contract.layout import Layout
from gateway.contract.records import COUNTER_FIELDS, Counters, read_counters
from gateway.contract.token import PREFIX, SECRET_LENGTH, checksum
from tests.system.running import environment

SETTLED_TIMEOUT_S = 30.0
GATEWAY_READY_TIMEOUT_S = 30.0

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """A key with its token, its account and its organization."""

    organization: str
    organization_name: str
    account: str
    account_name: str
    key: str
    token: str

    @property
    def tag(self) -> OrganizationTag:
        return OrganizationTag(self.organization.removeprefix("org_"))

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def principal(self) -> str:
        return f"service-account/{self.organization_name}/{self.account_name}"


def with_other_secret(token: str) -> str:
    """A well-formed token of the same key whose secret is wrong."""
    start = len(PREFIX) + KEY_ID_LENGTH + 1
    body = token[:start] + secrets.token_hex(SECRET_LENGTH)[:SECRET_LENGTH]
    return body + checksum(body.encode())


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where an installation answers: URLs."""

    gateway: str
    control: str
    management: str
    operator_token: str
    redis: str
    postgres: str

    @property
    def gateway_port(self) -> int:
        return int(self.gateway.rpartition(":")[2])


class Installation:
    """Use as a context of one test: clients live as long as the test's loop."""

    def __init__(
        self, addresses: Addresses, http: aiohttp.ClientSession, database: asyncpg.Connection
    ) -> None:
        self.addresses = addresses
        self.http = http
        self.database = database
        self.redis = redis.asyncio.Redis.from_url(addresses.redis, decode_responses=False)
        self.layout = Layout()

    # -- the REST API

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call the REST API; fails unless it is done."""
        headers = {"Authorization": f"Bearer {self.addresses.operator_token}"}
        url = f"{self.addresses.control}{path}"
        async with self.http.request(method, url, json=body, headers=headers) as answer:
            text = await answer.text()
            assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
            found: dict[str, Any] = json.loads(text) if text else {}
            return found

    async def organization(
        self, limit: str | None = None, period: str = "never", **more: Any
    ) -> dict[str, Any]:
        body = {"name": f"org-{secrets.token_hex(6)}", "credit_limit": limit, "reset_period": period, **more}
        return await self.call("POST", "/v1/organizations", body)

    async def account(
        self, organization: dict[str, Any], limit: str | None = None, period: str = "never", **more: Any
    ) -> dict[str, Any]:
        name = f"worker-{secrets.token_hex(4)}"
        body = {"name": name, "credit_limit": limit, "reset_period": period, **more}
        return await self.call("POST", f"/v1/organizations/{organization['id']}/service-accounts", body)

    async def key(
        self,
        organization: dict[str, Any],
        account: dict[str, Any],
        limit: str | None = None,
        period: str = "never",
        **more: Any,
    ) -> Workload:
        body = {"name": "prod", "credit_limit": limit, "reset_period": period, **more}
        made = await self.call("POST", f"/v1/service-accounts/{account['id']}/keys", body)
        return Workload(
            organization["id"],
            organization["name"],
            account["id"],
            account["name"],
            made["key"]["id"],
            made["token"],
        )

    async def workload(self, limit: str | None = None, period: str = "never", **more: Any) -> Workload:
        """A new key, with this limit of its own, of a new account of a new organization."""
        organization = await self.organization()
        return await self.key(organization, await self.account(organization), limit, period, **more)

    async def usage(self, workload: Workload, group_by: str) -> list[dict[str, Any]]:
        found = await self.call("GET", f"/v1/organizations/{workload.organization}/usage?group_by={group_by}")
        rows: list[dict[str, Any]] = found["data"]
        return rows

    async def ask(self, workload: Workload, path: str, **more: Any) -> tuple[int, bytes]:
        """One request through the gateway: status and body."""
        method = more.pop("method", "GET")
        url = f"{self.addresses.gateway}{path}"
        async with self.http.request(method, url, headers=workload.bearer, **more) as answer:
            return answer.status, await answer.read()

    # -- the books

    async def settled(self, tag: OrganizationTag, timeout_s: float = SETTLED_TIMEOUT_S) -> list[Row]:
        """Wait until nothing of the organization is held or undrained; check that no request has two rows and that every
        counter equals the sum of the rows; give the rows, oldest first.
        """
        shard = self.layout.shard_of(tag)
        mark = f"|{tag}|".encode()

        async def is_drained() -> bool:
            holds = await self.redis.zrange(self.layout.holds(shard), 0, -1)
            return not any(mark in hold for hold in holds) and not await self.redis.xlen(
                self.layout.events(shard)
            )

        await wait_until(is_drained, timeout_s, "every hold to be settled and every event to be drained")
        rows = await self.rows(tag)
        names = [row["request_id"] for row in rows]
        assert len(set(names)) == len(names), "a request has two rows"
        await self._check_counters(tag, rows)
        return rows

    async def refusals(self, tag: OrganizationTag) -> dict[tuple[str, str, bool], int]:
        """How many requests of an organization the ledger says were refused, by reason, level, and whether it only observed."""
        found = await self.database.fetch(
            "SELECT reason, level, observed, sum(count)::bigint FROM refusals WHERE organization = $1 GROUP BY 1, 2, 3",
            tag,
        )
        return {(reason, level, observed): count for reason, level, observed, count in found}

    async def rows(self, tag: OrganizationTag) -> list[Row]:
        """The ledger of an organization as it is now, oldest first."""
        found = await self.database.fetch(
            "SELECT * FROM usage_events WHERE organization = $1 ORDER BY admitted_at, request_id", tag
        )
        return [dict(row) for row in found]

    async def _check_counters(self, tag: OrganizationTag, rows: list[Row]) -> None:
        places = {(level, row[level]) for row in rows for level in LEVELS}
        for level, identifier in sorted(places):
            live = await self.live(level, identifier)
            expected = sum(
                row["cost"]
                for row in rows
                if row[level] == identifier and row[f"{level}_window"] == live.window_ms
            )
            assert (live.spent, live.held, live.in_flight) == (expected, 0, 0), (
                f"{level} {identifier}: spent, held and in flight, against the rows"
            )

    async def counters(self, level: str, identifier: str) -> tuple[int, int, int]:
        """window, spent and held of a record in Redis, microcredits."""
        found = await self.live(level, identifier)
        return found.window_ms, found.spent, found.held

    async def live(self, level: str, identifier: str) -> Counters:
        """All counters of a record in Redis."""
        if level == "key":
            name = self.layout.key(KeyId(identifier))
        elif level == "account":
            name = self.layout.account(AccountId(identifier))
        else:
            name = self.layout.organization(OrganizationTag(identifier.removeprefix("org_")))
        values = await self.redis.hmget(name, list(COUNTER_FIELDS))
        found = read_counters(cast("list[bytes | None]", values))
        assert found is not None, f"{name} is not in Redis"
        return found


@asynccontextmanager
async def opened(addresses: Addresses) -> AsyncIterator[Installation]:
    """Clients for one test."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as http:
        database = await asyncpg.connect(addresses.postgres)
        installation = Installation(addresses, http, database)
        try:
            yield installation
        finally:
            await installation.redis.aclose()
            await database.close()


_SIGNS_OF_A_DEFECT = (
    "Traceback",
    '"exception":',
    "unexpected_error",
    "Task was destroyed",
    "never retrieved",
    "RuntimeWarning",
)


def logs_in(directory: Path) -> list[Path]:
    """What the processes have logged there."""
    return [path for path in directory.rglob("*.log") if path.stat().st_size]


def check_logs(directory: Path) -> None:
    """No process has met anything that it did not expect."""
    for log in logs_in(directory):
        text = log.read_text(errors="replace")
        for sign in _SIGNS_OF_A_DEFECT:
            place = text.find(sign)
            assert place < 0, f"{log.name} of {log.parent.name}: {text[max(0, place - 500) : place + 1500]}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """One more gateway of an installation."""

    process: subprocess.Popen[bytes]
    port: int
    management_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        return workers_of(self.process.pid)


def workers_of(supervisor: int) -> list[psutil.Process]:
    """The worker processes of a gateway."""
    children = psutil.Process(supervisor).children()
    return [child for child in children if "gateway.server" in child.cmdline()]


@contextmanager
def another_gateway(
    redis_url: str,
    pepper_file: Path,
    log: Path,
    routes: Path,
    *,
    limit_files: int | None = None,
    **settings: str,
) -> Iterator[Gateway]:
    """Start a gateway with settings of its own (names without the prefix, in lower case), ready to admit; stop it.

    `limit_files` is the soft limit of open files that it is started with.
    """
    given = {
        "redis_url": redis_url, "pepper_file": str(pepper_file), "config": str(routes),
        "listen": "127.0.0.1:0", "management_listen": "127.0.0.1:0", "drain_timeout_s": "2", **settings,
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "gateway"]
    if limit_files is not None:
        command = ["bash", "-c", f'ulimit -Sn {limit_files}; exec "$@"', "bash", *command]
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", start_new_session=True,
            env=environment(**{f"TOLLKEEPER_{name.upper()}": value for name, value in given.items()}),
        )  # fmt: skip
    try:
        asyncio_free_wait(lambda: _is_listening(log, start), GATEWAY_READY_TIMEOUT_S, f"a gateway; see {log}")
        said = _listening_line(log, start)
        gateway = Gateway(process, said["port"], int(said["management"].rpartition(":")[2]))
        asyncio_free_wait(lambda: _is_ready(gateway.management_port), GATEWAY_READY_TIMEOUT_S, "readiness")
        yield gateway
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def asyncio_free_wait(condition: Any, timeout_s: float, what: str) -> None:
    """`wait_until` for fixtures that have no loop, whether or not the caller runs in one."""
    import threading

    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(wait_until(condition, timeout_s, what))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _listening_line(log: Path, start: int) -> dict[str, Any]:
    for line in log.read_bytes()[start:].splitlines():
        if b'"gateway_listening"' in line:
            said: dict[str, Any] = json.loads(line)
            return said
    return {}


def _is_listening(log: Path, start: int) -> bool:
    return bool(_listening_line(log, start))


def _is_ready(management_port: int) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", management_port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
