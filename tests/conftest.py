"""Real servers for every test: one Valkey and one Postgres for the whole run, emptied or made anew for each
test.

A test that only uses a server asks for ``redis_url``, ``redis_client``, ``postgres_dsn`` (an empty database)
or ``migrated_dsn`` (the product's schema). A test that stops, kills or configures one asks for ``own_redis``
or ``own_postgres``, which are started for it alone.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import redis
import redis.asyncio

from control.embedded import EmbeddedPostgres, EmbeddedRedis
from control.migrate import migrate

# What a crash of the machine would lose is no part of a test; what a crash of the server would lose is, and
# is kept.
UNSYNCED = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


ONE_INSTALLATION = ("system", "faults")
"""Directories whose tests share an installation: each is run by one process from its first test to its last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests belong together when a run is spread over processes (`-n`); the others go wherever there is time."""
    here = Path(__file__).parent
    for item in items:
        directory = item.path.relative_to(here).parts[0]
        if directory in ONE_INSTALLATION:
            item.add_marker(pytest.mark.xdist_group(directory))
        else:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def run_apart(work: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run a coroutine to its end in a thread of its own: pytest's event loops come and go, session fixtures
    stay.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(work())).result()


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """Where the servers of this run keep their files; not under pytest's own directory, which Postgres's user
    cannot reach.
    """
    directory = Path(tempfile.mkdtemp(prefix="tollkeeper-tests-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def redis_server(servers_dir: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(servers_dir / "redis")
    run_apart(server.start)
    yield server
    run_apart(server.stop)


@pytest.fixture(scope="session")
def postgres_server(servers_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(servers_dir / "postgres", settings=UNSYNCED)
    run_apart(server.start)
    yield server
    run_apart(server.stop)
    server.remove_data()


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The address of a Redis that holds nothing."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    return redis_server.url


@pytest.fixture
async def redis_client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of a Redis that holds nothing; replies are bytes."""
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=False)
    yield client
    await client.aclose()


async def _execute(dsn: str, sql: str) -> None:
    session = await asyncpg.connect(dsn)
    try:
        await session.execute(sql)
    finally:
        await session.close()


def _database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    run_apart(lambda: _execute(server.dsn, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield f"{server.dsn.rpartition('/')[0]}/{name}"
    run_apart(lambda: _execute(server.dsn, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def postgres_dsn(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The address of an empty database that is this test's own."""
    yield from _database(postgres_server, "template0")


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a database with the product's schema, made once and copied for each test."""
    name = "migrated_template"
    run_apart(lambda: _execute(postgres_server.dsn, f"CREATE DATABASE {name} TEMPLATE template0"))
    run_apart(lambda: migrate(f"{postgres_server.dsn.rpartition('/')[0]}/{name}"))
    return name


@pytest.fixture
def migrated_dsn(postgres_server: EmbeddedPostgres, migrated_template: str) -> Iterator[str]:
    """The address of a database of this test's own with the product's schema and no rows."""
    yield from _database(postgres_server, migrated_template)


@pytest.fixture
async def own_redis(servers_dir: Path) -> AsyncIterator[EmbeddedRedis]:
    """A running Redis that this test alone uses and may stop, kill and start."""
    directory = servers_dir / f"redis-{uuid4().hex}"
    async with EmbeddedRedis(directory) as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture
async def own_postgres(servers_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A running Postgres that this test alone uses and may stop, kill and start."""
    async with EmbeddedPostgres(servers_dir / f"postgres-{uuid4().hex}", settings=UNSYNCED) as server:
        yield server
    server.remove_data()
