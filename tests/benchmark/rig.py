"""What every contender stands on: two cores, a folder, an upstream, a Redis, and somebody to charge."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from control.embedded import EmbeddedRedis, free_port
from gateway.contract import token as tokens
from tests.benchmark import nginx, rules
from tests.benchmark.processes import BenchmarkFailed, Child, accepts, on_core, program
from tests.benchmark.upstream import BODY

# Rewriting the append-only file forks Redis at an unforeseeable moment. The rounds do it between themselves.
_REDIS_SETTINGS = {"auto-aof-rewrite-percentage": "0"}

FILES = "files"
"""The folder in the rig's whose files the upstream serves, under `nginx.FILES`; it is made only where nginx is the upstream."""

UPLOAD_BYTES_MAX = 128 * 2**20


@dataclass(frozen=True, slots=True)
class Rig:
    """Started once a run. `load_core` has the load, the upstream and Redis; `proxy_core` has the contender alone."""

    folder: Path
    load_core: int
    proxy_core: int
    upstream_port: int
    upstream_kind: str
    redis_port: int
    redis_pid: int
    redis_password: str
    redis_url: str
    client: redis.Redis
    pepper: tokens.Pepper
    account: rules.Charged
    """Whom the gateway charges; its token is the one that the other contenders are sent."""

    @property
    def shares_a_core(self) -> bool:
        return self.load_core == self.proxy_core


def _start_upstream(folder: Path, core: int) -> tuple[Child, int, str]:
    port = free_port()
    nginx_program = program("nginx")
    if nginx_program is None:
        command: list[str | Path] = [sys.executable, "-m", "tests.benchmark.upstream", str(port)]
        kind = "a small uvloop server"
    else:
        served = folder / FILES
        served.mkdir()
        server = nginx.upstream_server(port, served, BODY.decode().replace("\n", "\\n"), UPLOAD_BYTES_MAX)
        config = nginx.write_configuration(folder, "upstream", server)
        command = [nginx_program, "-p", folder, "-c", config]
        kind = "nginx"
    child = Child("the upstream", command, core=core, log=folder / "upstream.log")
    try:
        child.wait_ready(lambda: accepts(port))
    except BaseException:
        child.stop()
        raise
    return child, port, kind


@contextmanager
def rig(folder: Path) -> Iterator[Rig]:
    """A rig whose processes end with the block."""
    _allow_open_files()
    cores = sorted(os.sched_getaffinity(0))
    load_core, proxy_core = cores[0], cores[-1]
    upstream, upstream_port, upstream_kind = _start_upstream(folder, load_core)
    server = EmbeddedRedis(folder / "redis", settings=_REDIS_SETTINGS)
    try:
        with on_core(load_core):
            asyncio.run(server.start())
        client = redis.Redis.from_url(server.url, socket_timeout=10, socket_connect_timeout=5)
        rules.load(client)
        pepper = tokens.Pepper(secrets.token_bytes(32))
        tag, key_id, token = rules.mint()
        account = rules.publish(client, tag, key_id, token, tokens.digest(pepper, token.encode()))
        if server.pid is None:
            raise BenchmarkFailed("Redis ended right after its start")
        yield Rig(
            folder=folder,
            load_core=load_core,
            proxy_core=proxy_core,
            upstream_port=upstream_port,
            upstream_kind=upstream_kind,
            redis_port=server.port,
            redis_pid=server.pid,
            redis_password=(folder / "redis" / "password").read_text().strip(),
            redis_url=server.url,
            client=client,
            pepper=pepper,
            account=account,
        )
    finally:
        asyncio.run(server.stop())
        upstream.stop()


def _allow_open_files() -> None:
    """Contenders inherit it: idle connections by the thousand need descriptors on both sides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = nginx.OPEN_FILES if hard == resource.RLIM_INFINITY else min(nginx.OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
