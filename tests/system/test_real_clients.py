"""The OpenAI SDK, git and readers of event streams: what they get straight, they get through the gateway, and as soon."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from aiohttp import web

from tests.system.conftest import serve
from tests.system.git_host import GitHost
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway
from tests.system.loop_thread import LoopThread
from tests.system.test_clients import QUESTION, git
from tests.system.wire import request, wire

MIB = 1 << 20
ADDED_DELAY_MAX_S = 0.002

# -- the OpenAI SDK


def comparable(answer: Any) -> dict[str, Any]:
    """What an answer of the SDK holds, but for what the upstream makes anew each time."""
    return {name: value for name, value in answer.model_dump().items() if name not in ("id", "created")}


@dataclass(frozen=True, slots=True)
class Models:
    """The SDK on one way to the models, and what it does with them."""

    base_url: str
    token: str

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=self.token, base_url=self.base_url, max_retries=0, timeout=30)

    async def completion(self) -> list[dict[str, Any]]:
        async with self.client() as client:
            return [comparable(await client.chat.completions.create(model="m", messages=[QUESTION]))]

    async def chunks(self) -> list[dict[str, Any]]:
        async with self.client() as client:
            stream = await client.chat.completions.create(
                model="m", messages=[QUESTION], stream=True, stream_options={"include_usage": True}
            )
            return [comparable(chunk) async for chunk in stream]

    async def chunks_of_the_plain_client(self) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            with openai.OpenAI(
                api_key=self.token, base_url=self.base_url, max_retries=0, timeout=30
            ) as client:
                stream = client.chat.completions.create(model="m", messages=[QUESTION], stream=True)
                return [comparable(chunk) for chunk in stream]

        return await asyncio.to_thread(read)

    async def lines(self) -> list[str]:
        """The stream as it is on the wire."""
        async with self.client() as client:
            create = client.chat.completions.with_streaming_response.create
            async with create(model="m", messages=[QUESTION], stream=True) as answer:
                lines = [answer.headers["content-type"]]
                async for line in answer.iter_lines():
                    event = line.removeprefix("data: ")
                    shown = json.loads(event) if event.startswith("{") else {"line": line}
                    lines.append(json.dumps({**shown, "id": "", "created": 0}))
                return lines

    async def mistakes(self) -> list[tuple[str, int, object]]:
        """What the upstream refuses, as the SDK says it."""
        found = []
        async with self.client() as client:
            for mistake in (
                client.chat.completions.create(model="m", messages=cast("list[Any]", "none")),
                client.models.list(),
                client.embeddings.create(model="m", input="x"),
            ):
                with pytest.raises(openai.APIStatusError) as error:
                    await mistake
                found.append((type(error.value).__name__, error.value.status_code, error.value.body))
        return found


@pytest.mark.parametrize("what", ["completion", "chunks", "chunks_of_the_plain_client", "lines", "mistakes"])
async def test_the_openai_sdk_gets_the_same(installation: Installation, models_url: str, what: str) -> None:
    workload = await installation.workload()
    straight = Models(f"{models_url}/v1", "tk_none")
    through = Models(f"{installation.addresses.gateway}/v1", workload.token)
    expected, found = await asyncio.gather(getattr(straight, what)(), getattr(through, what)())
    assert found == expected
    assert len(found) >= {"completion": 1, "mistakes": 3}.get(what, 14)


# -- git

FILES = 50
UNPACKED = {"core.compression": "0", "pack.window": "0", "gc.auto": "0", "receive.autogc": "false"}
"""git does not try to make random bytes smaller."""
PRINCIPAL = "service-account/none/straight"


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository of the host, by one way."""

    workload: Workload
    url: str
    options: tuple[str, ...]

    async def __call__(self, cwd: Path, *arguments: str) -> str:
        settings = [word for name, value in UNPACKED.items() for word in ("-c", f"{name}={value}")]
        return await git(self.workload, cwd, *settings, *self.options, *arguments)


@pytest.fixture
async def by_ways(
    installation: Installation, git_host: GitHost, git_url: str
) -> tuple[Repository, Repository]:
    """Two empty repositories: one asked for straight, as by an upstream's neighbour, and one through the gateway."""
    workload = await installation.workload()
    names = [f"{workload.key}-{number}.git" for number in range(2)]
    for name in names:
        await git(workload, git_host.root, "init", "--bare", name)
        for setting, value in (UNPACKED | {"http.receivepack": "true"}).items():
            await git(workload, git_host.root / name, "config", setting, value)
    return (
        Repository(
            workload, f"{git_url}/git/{names[0]}", ("-c", f"http.extraHeader=X-Principal: {PRINCIPAL}")
        ),
        Repository(workload, f"{installation.addresses.gateway}/git/{names[1]}", ()),
    )


def fill(folder: Path, seed: int, count: int) -> None:
    generator = random.Random(seed)
    for number in range(count):
        (folder / f"{seed}-{number}").write_bytes(generator.randbytes(MIB))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


async def commit(repository: Repository, folder: Path, message: str) -> None:
    await repository(folder, "add", ".")
    await repository(folder, "commit", "--quiet", "--message", message)


async def test_git_pushes_clones_and_fetches_50_mib_as_without_a_gateway(
    installation: Installation, git_host: GitHost, by_ways: tuple[Repository, Repository], tmp_path: Path
) -> None:
    straight, through = by_ways
    origin = tmp_path / "origin"
    await straight(tmp_path, "init", "--quiet", "origin")
    await asyncio.to_thread(fill, origin, 1, FILES)
    await commit(straight, origin, "Add 50 MiB")
    for way in by_ways:
        await way(origin, "push", way.url, "HEAD:refs/heads/main")
    for name, way in (("straight", straight), ("through", through)):
        await way(tmp_path, "clone", "--quiet", way.url, name)
    await asyncio.to_thread(fill, origin, 2, 3)
    await commit(straight, origin, "Add 3 MiB")
    for name, way in (("straight", straight), ("through", through)):
        await way(origin, "push", way.url, "HEAD:refs/heads/main", "HEAD:refs/heads/second")
        await way(origin, "push", way.url, ":refs/heads/second")
        await way(tmp_path / name, "fetch", "--quiet", "origin")
        await way(tmp_path / name, "merge", "--quiet", "--ff-only", "origin/main")

    async def said(way: Repository, cwd: Path, *arguments: str) -> str:
        return (await way(cwd, *arguments)).replace(way.url, "…")

    for question in (
        ("ls-remote", "origin"),
        ("rev-list", "--objects", "--all"),
        ("status", "--porcelain", "--branch"),
    ):
        expected = await said(straight, tmp_path / "straight", *question)
        assert await said(through, tmp_path / "through", *question) == expected
        assert expected
    written = await asyncio.to_thread(files_of, origin)
    assert len(written) == FILES + 3
    for name in ("straight", "through"):
        assert await asyncio.to_thread(files_of, tmp_path / name) == written
    assert git_host.credentials == []
    rows = await installation.settled(through.workload.tag)
    assert {row["outcome"] for row in rows} == {"completed"}
    assert sum(row["bytes_in"] for row in rows) > (FILES + 3) * MIB
    assert sum(row["bytes_out"] for row in rows) > (FILES + 3) * MIB


# -- event streams

EVENTS = 200
INTERVAL_S = 0.01
ROUTE = """
[[route]]
name = "events"
path = "/events"
upstream = ["{url}"]
"""


async def events(request: web.Request) -> web.StreamResponse:
    """Each says when it was sent, by the clock of this machine."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for _ in range(EVENTS):
        await answer.write(b"data: %d\n\n" % time.monotonic_ns())
        await asyncio.sleep(INTERVAL_S)
    return answer


@pytest.fixture(scope="module")
def events_url(loop_thread: LoopThread) -> Iterator[str]:
    application = web.Application()
    application.router.add_get("/events", events)
    runner, url = serve(loop_thread, application)
    yield url
    loop_thread.run(runner.cleanup())


@pytest.fixture(scope="module")
def gateway(addresses: Addresses, data_dir: Path, events_url: str) -> Iterator[Gateway]:
    routes = data_dir / "events.toml"
    routes.write_text(ROUTE.format(url=events_url))
    with another_gateway(addresses.redis, data_dir / "pepper", data_dir / "gateways.log", routes) as started:
        yield started


async def delays_s(port: int, workload: Workload) -> list[float]:
    """How long after its sending each event arrived."""
    delays = []
    async with asyncio.timeout(60), wire(port) as client:
        client.send(request(workload, "/events"))
        for _ in range(EVENTS):
            await client.reader.readuntil(b"data: ")
            sent_ns = int(await client.reader.readuntil(b"\n\n"))
            delays.append((time.monotonic_ns() - sent_ns) / 1e9)
    return delays


async def test_each_event_of_a_stream_arrives_as_soon_as_without_a_gateway(
    installation: Installation, gateway: Gateway, events_url: str
) -> None:
    workload = await installation.workload()
    straight_port = int(events_url.rpartition(":")[2])
    added = []
    for _ in range(3):  # a machine that is busy with other things may need another try
        straight, through = await asyncio.gather(
            delays_s(straight_port, workload), delays_s(gateway.port, workload)
        )
        assert len(through) == len(straight) == EVENTS
        added.append(statistics.median(through) - statistics.median(straight))
        if added[-1] < ADDED_DELAY_MAX_S:
            break
    assert min(added) < ADDED_DELAY_MAX_S, added
