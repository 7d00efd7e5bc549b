"""P4, P7: a token is in the answer that makes it and in the workload's hands, and nowhere else."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil

from control.embedded import wait_until
from gateway.contract.ids import KEY_ID_LENGTH
from gateway.contract.token import PATTERN, PREFIX, SECRET_LENGTH
from tests.system.installation import Installation, Workload, with_other_secret
from tests.system.recording_upstream import RecordingUpstream
from tests.system.running import Running
from tests.system.wire import request, wire

PRIVATE = {"pepper", "client.json"}
"""Files of the data directory whose business it is to hold a secret (neither holds a token of a key)."""


def secret_of(token: str) -> str:
    start = len(PREFIX) + KEY_ID_LENGTH + 1
    return token[start : start + SECRET_LENGTH]


def forms(secret: str) -> Iterator[bytes]:
    """How a secret may be written down: as it is, or in base64 at each of its three alignments."""
    yield secret.encode()
    for shift in range(3):
        encoded = base64.b64encode(b" " * shift + secret.encode())
        yield encoded[4:-4]


async def say(installation: Installation, data: bytes) -> None:
    async with wire(installation.addresses.gateway_port) as client:
        client.send(data)
        with contextlib.suppress(EOFError, ConnectionError):
            await client.answer()


async def traffic(installation: Installation, workload: Workload, wrong: str) -> None:
    """Requests of every kind: good, refused, failed and malformed, all with tokens in them."""
    token = workload.token
    for path in (
        "/free/",
        "/priced/",
        "/nobody/",
        "/quick/die/0",
        "/quick/nonsense",
        "/nowhere",
        "/v1/models",
    ):
        await say(installation, request(workload, path))
    basic = base64.b64encode(f"git:{token}".encode()).decode()
    for fields in (
        [f"X-Api-Key: {token}"], [f"Authorization: Basic {basic}"], [f"Authorization: Bearer {wrong}"],
        [f"Authorization: Digest {token}"], [f"Authorization Bearer {token}"], [f"Authorization: Bearer {token}\0"],
        [f"Authorization: Bearer {token}", f"Authorization: Bearer {wrong}"], [f"{token}: x"], [f"X_Api_Key: {token}"],
        [f"Authorization: Bearer {token}", "Content-Length: x"], [f"Authorization: Bearer {token[:-1]}"],
        [f"Authorization: Bearer {token}{token}"], [f"Proxy-Authorization: Bearer {token}"],
    ):  # fmt: skip
        await say(installation, request(None, "/free/", *fields))
    await say(installation, f"{token} /free/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    await say(installation, f"GET /free/ {token}\r\nHost: a\r\n\r\n".encode())
    await say(installation, request(None, "/free/", f"Host: {token}/"))
    await say(
        installation, request(workload, "/free/", "Transfer-Encoding: chunked") + token.encode() + b"\r\n"
    )


async def call_control(installation: Installation, workload: Workload) -> None:
    """Tokens where they do not belong: on the REST API."""
    url = f"{installation.addresses.control}/v1/keys/{workload.key}"
    for headers in (workload.bearer, {"Authorization": workload.token}, {"X-Api-Key": workload.token}):
        async with installation.http.get(url, headers=headers) as answer:
            assert answer.status in (401, 403)
            assert workload.token not in await answer.text()
    operator = {"Authorization": f"Bearer {installation.addresses.operator_token}"}
    for body in ({"token": workload.token}, {"name": workload.token * 4}):
        async with installation.http.patch(url, json=body, headers=operator) as answer:
            assert answer.status == 400
            await answer.read()


async def metrics_of_every_process(installation: Installation, product: Running) -> bytes:
    """/metrics of the gateway, of control and of the jobs, whose port only the processes know."""
    found = b""
    ports = {int(installation.addresses.management.rpartition(":")[2])}
    for process in psutil.Process(product.process.pid).children(recursive=True):
        if "control.cli" in process.cmdline():
            ports |= {
                each.laddr.port for each in process.net_connections() if each.status == psutil.CONN_LISTEN
            }
    assert len(ports) == 3
    for port in ports:
        async with installation.http.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.status == 200
            text = await answer.read()
            assert b"tollkeeper" in text
            found += text
    return found


async def dump_of_postgres(database: asyncpg.Connection) -> bytes:
    """Every row of every table, partitions included."""
    dump = io.BytesIO()
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    for row in await database.fetch(tables):
        await database.copy_from_table(row["relname"], output=dump)
    return dump.getvalue()


async def dump_of_redis(installation: Installation) -> bytes:
    """Every key with its value."""
    client = installation.redis
    found: list[object] = []
    async for name in client.scan_iter():
        found.append(name)
        kind = await client.type(name)
        if kind == b"hash":
            found.append(await client.hgetall(name))
        elif kind == b"zset":
            found.append(await client.zrange(name, 0, -1))
        elif kind == b"stream":
            found.append(await client.xrange(name))
        else:
            found.append(await client.get(name))
    return repr(found).encode()


def files_of(data: Path) -> dict[str, bytes]:
    """Everything that was written into the data directory: logs, the append-only file, what commands keep."""
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


async def test_a_token_is_found_nowhere_after_good_refused_and_malformed_requests(
    installation: Installation, upstream: RecordingUpstream, product: Running, data_dir: Path
) -> None:
    workload = await installation.workload("1.00")
    wrong = with_other_secret(workload.token)
    await traffic(installation, workload, wrong)
    await call_control(installation, workload)
    await installation.call("POST", f"/v1/keys/{workload.key}/revoke")
    await say(installation, request(workload, "/free/"))
    await installation.settled(workload.tag)

    def gateway_log() -> bytes:
        return (data_dir / "gateway" / "server.log").read_bytes()

    await wait_until(lambda: workload.key.encode() in gateway_log(), 10, "the access log to be written")
    places = files_of(data_dir) | {
        "metrics": await metrics_of_every_process(installation, product),
        "Postgres": await dump_of_postgres(installation.database),
        "Redis": await dump_of_redis(installation),
        "the upstream": repr([(seen.target, seen.fields) for seen in upstream.of(workload.key)]).encode(),
        "what up said": "\n".join(product.talk).encode(),
    }
    assert any(name.startswith("valkey/appendonlydir") for name in places)
    for name in ("Postgres", "Redis", "the upstream"):
        assert workload.key.encode() in places[name], f"{name}: there is nothing of this key to be searched"
    for name, contents in places.items():
        for secret in (secret_of(workload.token), secret_of(wrong)):
            for form in forms(secret):
                assert form not in contents, f"a secret is in {name}"
        assert PATTERN.search(contents) is None, f"something shaped like a token is in {name}"
        operator = installation.addresses.operator_token.encode()
        assert name in PRIVATE or operator not in contents, f"the operator token is in {name}"


async def test_no_answer_of_the_rest_api_but_the_first_has_the_token(installation: Installation) -> None:
    workload = await installation.workload()
    for path in (
        f"/v1/keys/{workload.key}", f"/v1/service-accounts/{workload.account}/keys?status=all",
        f"/v1/service-accounts/{workload.account}", f"/v1/organizations/{workload.organization}",
    ):  # fmt: skip
        said = repr(await installation.call("GET", path))
        assert workload.key in said or "keys" not in path
        assert secret_of(workload.token) not in said
        assert "argon2" not in said
