"""The embedded servers: they are real, they keep their data, and none outlives whoever started it."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import psutil
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError

from control.embedded import EmbeddedPostgres, EmbeddedRedis, EmbeddedServerFailed, free_port, wait_until
from tests.conftest import UNSYNCED

ENDS_WITHIN_S = 20.0

# Starts both servers, says where they are, and then waits to be killed.
OWNER = """
import asyncio, json, os, sys
from pathlib import Path
from control.embedded import EmbeddedPostgres, EmbeddedRedis

async def main() -> None:
    base = Path(sys.argv[1])
    redis, postgres = EmbeddedRedis(base / "redis"), EmbeddedPostgres(base / "postgres", settings={"fsync": "off"})
    await redis.start()
    await postgres.start()
    print(json.dumps([redis.pid, postgres.pid]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def base(servers_dir: Path) -> Path:
    directory = servers_dir / uuid4().hex
    directory.mkdir()
    directory.chmod(0o711)
    return directory


@pytest.fixture
def owner(base: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A process that owns both servers, and their process ids."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(base)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    yield process, json.loads(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def start_asleep(uid: int, gid: int) -> subprocess.Popen[bytes]:
    if os.geteuid() != 0:
        return subprocess.Popen(["sleep", "60"])
    return subprocess.Popen(["sleep", "60"], user=uid, group=gid, extra_groups=[])


async def no_process(pids: list[int]) -> None:
    await wait_until(
        lambda: not any(psutil.pid_exists(pid) for pid in pids), ENDS_WITHIN_S, f"the end of {pids}"
    )


async def rows(server: EmbeddedPostgres, sql: str) -> list[asyncpg.Record]:
    session = await asyncpg.connect(server.dsn)
    try:
        return await session.fetch(sql)
    finally:
        await session.close()


@pytest.fixture
async def client(own_redis: EmbeddedRedis) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(own_redis.url) as connected:
        yield connected


async def test_what_redis_was_told_is_there_after_a_stop_and_a_start(
    own_redis: EmbeddedRedis, client: redis.asyncio.Redis
) -> None:
    await client.set("kept", "yes")
    url = own_redis.url
    await own_redis.stop()
    await own_redis.start()
    assert own_redis.url == url
    await client.connection_pool.disconnect()
    assert await client.get("kept") == b"yes"


async def test_redis_comes_back_on_the_same_port_after_a_crash(
    own_redis: EmbeddedRedis, client: redis.asyncio.Redis
) -> None:
    await client.config_set("appendfsync", "always")
    await client.set("kept", "yes")
    first = own_redis.pid
    await own_redis.kill()
    assert not own_redis.is_running
    await own_redis.start()
    assert own_redis.pid != first
    await client.connection_pool.disconnect()
    assert await client.get("kept") == b"yes"


async def test_redis_is_durable_and_never_evicts(client: redis.asyncio.Redis) -> None:
    told = await client.config_get("append*", "maxmemory-policy", "save", "bind")
    assert told["appendonly"] == "yes"
    assert told["appendfsync"] == "everysec"
    assert told["maxmemory-policy"] == "noeviction"
    assert told["save"] == ""
    assert told["bind"] == "127.0.0.1"


async def test_redis_refuses_who_does_not_know_the_password(own_redis: EmbeddedRedis) -> None:
    no_retry = Retry(NoBackoff(), 0)
    async with redis.asyncio.Redis(host="127.0.0.1", port=own_redis.port, retry=no_retry) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()


async def test_postgres_refuses_who_does_not_know_the_password(own_postgres: EmbeddedPostgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host="127.0.0.1",
            port=own_postgres.port,
            user="tollkeeper",
            database="tollkeeper",
            password="guess",
        )


async def test_no_password_stands_in_arguments_logs_or_a_file_that_others_can_read(
    own_redis: EmbeddedRedis, own_postgres: EmbeddedPostgres
) -> None:
    for server in (own_redis, own_postgres):
        secret = (server.data_dir / "password").read_text()
        assert len(secret) >= 32
        assert server.pid is not None
        process = psutil.Process(server.pid)
        guard = process.parent()
        assert guard is not None
        for words in (
            process.cmdline(),
            guard.cmdline(),
            [server.log.read_text()],
            process.environ().values(),
        ):
            assert not any(secret in word for word in words)
        for path in server.data_dir.iterdir():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o077 == 0, f"{path.name} is open to others: {mode:o}"


async def test_postgres_counts_time_in_utc_and_text_in_utf8(own_postgres: EmbeddedPostgres) -> None:
    [row] = await rows(
        own_postgres,
        "SELECT current_setting('TimeZone') AS zone, current_setting('server_encoding') AS encoding, "
        "datlocale AS locale, current_setting('listen_addresses') AS listen, "
        "current_setting('unix_socket_directories') AS sockets FROM pg_database WHERE datname = current_database()",
    )
    assert tuple(row) == ("UTC", "UTF8", "C.UTF-8", "127.0.0.1", "")


async def test_postgres_keeps_rows_over_a_stop_and_a_crash(own_postgres: EmbeddedPostgres) -> None:
    await rows(own_postgres, "CREATE TABLE kept (n int)")
    await rows(own_postgres, "INSERT INTO kept VALUES (1)")
    await own_postgres.stop()
    await own_postgres.start()
    await rows(own_postgres, "INSERT INTO kept VALUES (2)")
    await rows(own_postgres, "CHECKPOINT")
    await own_postgres.kill()
    await own_postgres.start()
    assert [row["n"] for row in await rows(own_postgres, "SELECT n FROM kept ORDER BY n")] == [1, 2]


async def test_a_stale_postmaster_pid_that_names_a_living_process_does_not_block_a_start(
    own_postgres: EmbeddedPostgres,
) -> None:
    pid_file = own_postgres.pgdata / "postmaster.pid"
    left_behind = pid_file.read_text().splitlines()
    await own_postgres.stop()
    owner = own_postgres.pgdata.stat()
    # Some innocent process of the very user that Postgres runs as, which is what Postgres itself falls for.
    with start_asleep(owner.st_uid, owner.st_gid) as innocent:
        try:
            pid_file.write_text("\n".join([str(innocent.pid), *left_behind[1:]]) + "\n")
            os.chown(pid_file, owner.st_uid, owner.st_gid)
            pid_file.chmod(0o600)
            await own_postgres.start()
            assert (await rows(own_postgres, "SELECT 1 AS one"))[0]["one"] == 1
            assert innocent.poll() is None
        finally:
            innocent.kill()


async def test_a_session_left_open_does_not_hold_up_the_stop(own_postgres: EmbeddedPostgres) -> None:
    session = await asyncpg.connect(own_postgres.dsn)
    pid = own_postgres.pid
    assert pid is not None
    await own_postgres.stop()
    assert not psutil.pid_exists(pid)
    session.terminate()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
async def test_no_server_outlives_its_owner(
    owner: tuple[subprocess.Popen[bytes], list[int]], ending: signal.Signals
) -> None:
    process, pids = owner
    guards = [psutil.Process(pid).ppid() for pid in pids]
    process.send_signal(ending)
    await no_process([*pids, *guards])


async def test_a_ctrl_c_in_the_terminal_reaches_the_owner_and_not_the_servers(
    owner: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    process, pids = owner
    of_terminal = os.getpgid(process.pid)
    for pid in pids:
        guard = psutil.Process(pid).ppid()
        assert os.getpgid(pid) != of_terminal
        assert os.getsid(guard) != os.getsid(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
async def test_a_server_ends_when_its_guard_is_killed(
    own_redis: EmbeddedRedis, own_postgres: EmbeddedPostgres
) -> None:
    for server in (own_redis, own_postgres):
        assert server.pid is not None
        guard, pids = psutil.Process(server.pid).ppid(), [server.pid]
        os.kill(guard, signal.SIGKILL)
        await no_process(pids)
        await server.start()
        assert server.is_running


async def test_what_a_killed_owner_leaves_is_taken_over_by_the_next(
    owner: tuple[subprocess.Popen[bytes], list[int]], base: Path
) -> None:
    process, pids = owner
    process.kill()
    process.wait()
    async with (
        EmbeddedRedis(base / "redis"),
        EmbeddedPostgres(base / "postgres", settings=UNSYNCED) as postgres,
    ):
        # The new ones started, so the old ones had ended: two never share a directory.
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert (await rows(postgres, "SELECT 1 AS one"))[0]["one"] == 1
    postgres.remove_data()


async def test_two_processes_cannot_use_one_data_directory(
    owner: tuple[subprocess.Popen[bytes], list[int]], base: Path
) -> None:
    process, _ = owner
    for second in (EmbeddedRedis(base / "redis"), EmbeddedPostgres(base / "postgres")):
        with pytest.raises(EmbeddedServerFailed, match=f"in use by process {process.pid}"):
            await second.start()


async def test_a_taken_port_is_reported_with_the_servers_own_words(base: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for server in (
            EmbeddedRedis(base / "redis", port),
            EmbeddedPostgres(base / "postgres", port, settings=UNSYNCED),
        ):
            with pytest.raises(EmbeddedServerFailed, match="Address already in use"):
                await server.start()
            assert not server.is_running


async def test_a_setting_that_the_server_does_not_know_is_reported_with_the_servers_own_words(
    base: Path,
) -> None:
    with pytest.raises(EmbeddedServerFailed, match="no-such-setting"):
        await EmbeddedRedis(base / "redis", settings={"no-such-setting": "1"}).start()
    with pytest.raises(EmbeddedServerFailed, match="no_such_setting"):
        await EmbeddedPostgres(base / "postgres", settings={**UNSYNCED, "no_such_setting": "1"}).start()


async def test_a_data_directory_whose_path_has_spaces_and_quotes_works(base: Path) -> None:
    odd = base / "a 'path' with \"quotes\" and spaces"
    odd.mkdir()
    odd.chmod(0o711)
    async with (
        EmbeddedRedis(odd / "redis"),
        EmbeddedPostgres(odd / "postgres", settings=UNSYNCED) as postgres,
    ):
        assert (await rows(postgres, "SELECT 1 AS one"))[0]["one"] == 1
    postgres.remove_data()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres runs as somebody else")
class TestAsRoot:
    async def test_postgres_runs_as_somebody_else(self, own_postgres: EmbeddedPostgres) -> None:
        assert own_postgres.pid is not None
        process = psutil.Process(own_postgres.pid)
        assert set(process.uids()) == {own_postgres.pgdata.stat().st_uid}
        assert 0 not in process.uids()
        assert 0 not in process.gids()
        assert own_postgres.pgdata == own_postgres.data_dir / "pgdata"

    async def test_a_data_directory_that_the_server_cannot_reach_is_kept_elsewhere_and_says_where(
        self, base: Path
    ) -> None:
        closed = base / "closed"
        closed.mkdir()
        closed.chmod(0o700)
        async with EmbeddedPostgres(closed / "postgres", settings=UNSYNCED) as server:
            await rows(server, "CREATE TABLE kept (n int)")
            elsewhere = server.pgdata
        assert not elsewhere.is_relative_to(closed)
        assert (closed / "postgres" / "data-path").read_text().strip() == str(elsewhere)
        async with EmbeddedPostgres(closed / "postgres", settings=UNSYNCED) as again:
            assert await rows(again, "SELECT * FROM kept") == []
        again.remove_data()
        assert not elsewhere.exists()

    async def test_data_that_has_gone_from_elsewhere_is_not_silently_replaced_by_nothing(
        self, base: Path
    ) -> None:
        data_dir = base / "postgres"
        data_dir.mkdir()
        (data_dir / "data-path").write_text(str(base / "gone"))
        with pytest.raises(EmbeddedServerFailed, match="is gone"):
            await EmbeddedPostgres(data_dir).start()


async def test_waiting_ends_with_the_name_of_what_was_waited_for() -> None:
    with pytest.raises(TimeoutError, match="a pig with wings"):
        await wait_until(lambda: False, 0.05, "a pig with wings")


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", free_port()))
