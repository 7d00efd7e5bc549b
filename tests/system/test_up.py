"""`tollkeeper up`: the whole product with one command, stopped by Ctrl-C, found again by the next start."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from control.demo.upstream import start_upstream
from control.embedded import EmbeddedRedis, wait_until
from tests.system.running import TOLLKEEPER, Running, environment, remove_data, started

FREE_PORTS = ("--port", "0", "--control-port", "0", "--management-port", "0")


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory that the servers' own user can reach, removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="tollkeeper-up-"))
    yield directory
    remove_data(directory)


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    runner, url = await start_upstream()
    yield url
    await runner.cleanup()


def command(data: Path, *arguments: str) -> Any:
    """What a command of the CLI prints with --json; it finds address and token in the data directory."""
    done = subprocess.run(
        [*TOLLKEEPER, *arguments, "--json", "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def new_token(data: Path, limit: str = "none") -> str:
    """The token of a new key of a new service account."""
    command(data, "orgs", "create", "acme")
    command(data, "accounts", "create", "acme", "worker")
    made = command(data, "keys", "create", "acme/worker", "--name", "prod", "--limit", limit)
    return str(made["token"])


async def ask(url: str, token: str) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as http, http.get(f"{url}/anything/x", headers=headers) as answer:
        body: dict[str, Any] = await answer.json(content_type=None)
        return answer.status, body


def children(process: Running) -> list[psutil.Process]:
    return psutil.Process(process.process.pid).children(recursive=True)


async def wait_until_gone(processes: list[psutil.Process], timeout_s: float) -> None:
    await wait_until(
        lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes),
        timeout_s,
        "the processes to end",
    )


@pytest.mark.slow
async def test_a_second_start_finds_the_data_of_the_first_and_nothing_is_left_running(
    data: Path, upstream: str
) -> None:
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as first:
        addresses = first.addresses()
        assert set(addresses) == {"gateway", "control", "management", "operator_token", "redis", "postgres"}
        token = new_token(data)
        status, seen = await ask(addresses["gateway"], token)
        assert status == 200
        assert seen["headers"]["X-Principal"] == "service-account/acme/worker"
        running = children(first)
        assert len(running) >= 8
        assert first.stop(signal.SIGINT) == 0, first.talk
        await wait_until_gone(running, 1)
        assert len(first.lines) == 1, "more than one line on standard output"

    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as second:
        again = second.addresses()
        assert again["operator_token"] == addresses["operator_token"]
        status, _ = await ask(again["gateway"], token)
        assert status == 200

        async def both_are_in_the_ledger() -> bool:
            rows = command(data, "usage", "acme", "--group-by", "account")["data"]
            return [row["requests"] for row in rows] == [2]

        await wait_until(both_are_in_the_ledger, 15, "both requests to be in the ledger")
        assert second.stop(signal.SIGTERM) == 0, second.talk


@pytest.mark.slow
async def test_when_up_is_killed_nothing_that_it_started_stays_and_the_next_start_works(
    data: Path, upstream: str
) -> None:
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as first:
        first.addresses()
        token = new_token(data)
        running = children(first)
        first.process.send_signal(signal.SIGKILL)
        first.wait()
        await wait_until_gone(running, 20)
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as second:
        assert (await ask(second.addresses()["gateway"], token))[0] == 200


@pytest.mark.slow
async def test_a_request_in_flight_at_ctrl_c_is_answered_whole_and_is_in_the_ledger(
    data: Path, upstream: str
) -> None:
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as first:
        gateway = first.addresses()["gateway"]
        headers = {"Authorization": f"Bearer {new_token(data)}"}
        address = f"{gateway}/stream?events=8&interval=0.25"
        async with aiohttp.ClientSession() as http, http.get(address, headers=headers) as answer:
            beginning = await answer.content.readline()
            first.process.send_signal(signal.SIGINT)
            text = (beginning + await answer.read()).decode()
        assert "event 8 of 8" in text
        assert first.wait() == 0, first.talk
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as second:
        second.addresses()

        async def is_in_the_ledger() -> bool:
            return [row["outcome"] for row in command(data, "ledger", "acme")["data"]] == ["completed"]

        await wait_until(is_in_the_ledger, 15, "the request to be in the ledger")


@pytest.mark.slow
async def test_a_second_ctrl_c_does_not_wait_for_requests_in_flight(data: Path, upstream: str) -> None:
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as running:
        gateway = running.addresses()["gateway"]
        headers = {"Authorization": f"Bearer {new_token(data)}"}
        everything = children(running)
        address = f"{gateway}/stream?events=100&interval=1"
        async with aiohttp.ClientSession() as http, http.get(address, headers=headers) as answer:
            await answer.content.readline()
            running.process.send_signal(signal.SIGINT)
            await wait_until(lambda: "Stopping" in "".join(running.talk), 5, "the first to be noticed")
            running.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(running.wait, 8) == 0, running.talk
            await wait_until_gone(everything, 1)


@pytest.mark.slow
async def test_ctrl_c_while_it_is_starting_ends_what_has_begun(data: Path, upstream: str) -> None:
    arguments = ("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS)
    for begun in ("valkey/lock", "gateway/server.log"):
        with started(*arguments) as running:
            await wait_until((data / begun).exists, 30, f"{begun} to be there")
            everything = children(running)
            assert running.stop() == 0, running.talk
            assert running.lines == []
            await wait_until_gone(everything, 5)
    with started(*arguments) as running:
        running.addresses()


@pytest.mark.slow
async def test_when_a_part_ends_up_says_which_stops_the_rest_and_fails(data: Path, upstream: str) -> None:
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as running:
        running.addresses()
        everything = children(running)
        (jobs,) = (each for each in everything if each.cmdline()[-3:] == ["-m", "control.cli", "jobs"])
        jobs.kill()
        assert running.wait() == 1
        assert any("jobs has ended on its own" in line for line in running.talk), running.talk
        await wait_until_gone(everything, 1)


@pytest.mark.slow
async def test_two_cannot_run_in_one_data_directory(data: Path, upstream: str) -> None:
    with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as first:
        first.addresses()
        with started("up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS) as second:
            assert second.wait() == 1
            assert f"in use by another `tollkeeper` (process {first.process.pid})" in " ".join(second.talk)
        assert first.process.poll() is None


@pytest.mark.slow
async def test_it_uses_a_redis_and_a_postgres_of_ones_own_and_leaves_them_running(
    data: Path, upstream: str, own_redis: EmbeddedRedis, postgres_dsn: str
) -> None:
    servers = ("--redis", own_redis.url, "--postgres", postgres_dsn)
    with started(
        "up", "--json", "--data", str(data), "--upstream", upstream, *FREE_PORTS, *servers
    ) as running:
        addresses = running.addresses()
        assert (addresses["redis"], addresses["postgres"]) == (own_redis.url, postgres_dsn)
        assert (await ask(addresses["gateway"], new_token(data)))[0] == 200
        assert running.stop() == 0, running.talk
    assert own_redis.is_running
    assert not (data / "valkey").exists()
    assert not (data / "postgres").exists()


async def test_routes_that_cannot_be_read_are_told_before_anything_stays(data: Path) -> None:
    routes = data / "routes.toml"
    routes.write_text('[[route]]\nname = "x"\npath = "/"\nupstream = ["gopher://x"]\n')
    with started("up", "--json", "--data", str(data / "d"), "--config", str(routes), *FREE_PORTS) as running:
        assert running.wait() == 1
        assert any("gopher" in line for line in running.talk), running.talk
        assert running.lines == []
    remove_data(data / "d")


def test_a_port_that_is_taken_is_told_with_the_option_that_changes_it(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(
            "up", "--data", str(data), "--upstream", "http://127.0.0.1:1", "--port", str(port)
        ) as running:
            assert running.wait() == 1
            assert f"Port {port} is taken: choose another with --port" in " ".join(running.talk)


@pytest.mark.parametrize("arguments", [[], ["--upstream", "http://127.0.0.1:1", "--config", os.devnull]])
def test_it_wants_either_an_upstream_or_a_route_table(data: Path, arguments: list[str]) -> None:
    with started("up", "--data", str(data), *arguments) as running:
        assert running.wait() == 2
        assert running.lines == []
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "address", "status", "words"),
    [
        ("--redis", "redis://:sekret@127.0.0.1:{port}/0", 3, "Redis cannot be used"),
        ("--redis", "redis://:sek/ret@127.0.0.1/0", 2, "this is not a Redis URL"),
        ("--postgres", "postgresql://u:sekret@127.0.0.1:{port}/db", 3, "Postgres cannot be used"),
        ("--postgres", "postgresql://u:sek/ret@127.0.0.1/db", 2, "this is not a Postgres DSN"),
    ],
)
def test_a_server_of_ones_own_that_cannot_be_used_is_told_at_once_without_its_password(
    data: Path, option: str, address: str, status: int, words: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens here
        given = address.format(port=closed.getsockname()[1])
        with started(
            "up", "--data", str(data), "--upstream", "http://127.0.0.1:1", option, given, *FREE_PORTS
        ) as running:
            assert running.wait(15) == status
    assert any(words in line for line in running.talk), running.talk
    assert not any("sek" in line for line in running.talk), running.talk
