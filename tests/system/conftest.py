"""The whole product, started once with `tollkeeper up` for all tests of this directory, in front of upstreams that remember."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from aiohttp import web

from control.demo.upstream import build_upstream
from control.embedded import EmbeddedPostgres
from tests.conftest import run_apart
from tests.system.git_host import GitHost
from tests.system.installation import Addresses, Gateway, Installation, another_gateway, opened
from tests.system.loop_thread import LoopThread
from tests.system.metered_routes import routes_to_models
from tests.system.model_upstream import ModelUpstream
from tests.system.recording_upstream import RecordingUpstream
from tests.system.running import Running, remove_data
from tests.system.scripted_upstream import ScriptedUpstream, routes_to, scripted

ROUTES = """
[[route]]
name = "priced"
path = "/priced/"
upstream = ["{recording}"]
price.request = "0.10"

[[route]]
name = "free"
path = "/free/"
upstream = ["{recording}"]
timeouts = {{ connect_s = 2, first_byte_s = 30, between_bytes_s = 30 }}

[[route]]
name = "bytes"
path = "/kib/"
upstream = ["{recording}"]
hold = "0.5"
price.kib_out = "0.001"

[[route]]
name = "quick"
path = "/quick/"
upstream = ["{recording}"]
price.request = "0.10"
timeouts = {{ connect_s = 1, first_byte_s = 0.5, between_bytes_s = 0.5 }}

[[route]]
name = "nobody"
path = "/nobody/"
upstream = ["http://127.0.0.1:9"]
price.request = "0.10"

[[route]]
name = "quota-429"
path = "/quota-429/"
upstream = ["{recording}"]
price.request = "0.10"
quota_status = 429

[[route]]
name = "models"
path = "/v1/"
upstream = ["{models}"]
price.request = "0.10"
errors = "openai"

[[route]]
name = "git"
path = "/git/"
upstream = ["{git}"]
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is said about everything that happened comes after it."""
    items.sort(
        key=lambda item: item.path.name == "test_afterwards.py" and item.path.parent == Path(__file__).parent
    )


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread("upstreams")
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def upstream(loop_thread: LoopThread) -> Iterator[RecordingUpstream]:
    recording = RecordingUpstream(loop_thread)
    yield recording
    recording.close()


def serve(
    thread: LoopThread, application: web.Application, *, notices_loss: bool = False
) -> tuple[web.AppRunner, str]:
    """Serve an aiohttp application in the loop thread: its runner and URL. `notices_loss`: what answers is cancelled when its
    connection ends.
    """

    async def start() -> tuple[web.AppRunner, str]:
        runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=1, handle_signals=False,
            handler_cancellation=notices_loss,
        )  # fmt: skip
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"

    return thread.run(start())


@pytest.fixture(scope="session")
def models_url(loop_thread: LoopThread) -> Iterator[str]:
    runner, url = serve(loop_thread, build_upstream())
    yield url
    loop_thread.run(runner.cleanup())


@pytest.fixture(scope="session")
def models(loop_thread: LoopThread) -> Iterator[ModelUpstream]:
    upstream = ModelUpstream()
    runner, upstream.url = serve(loop_thread, upstream.application(), notices_loss=True)
    yield upstream
    loop_thread.run(runner.cleanup())


@pytest.fixture(scope="session")
def git_host(tmp_path_factory: pytest.TempPathFactory) -> GitHost:
    return GitHost(tmp_path_factory.mktemp("git-host"))


@pytest.fixture(scope="session")
def git_url(loop_thread: LoopThread, git_host: GitHost) -> Iterator[str]:
    runner, url = serve(loop_thread, git_host.application())
    yield url
    loop_thread.run(runner.cleanup())


@pytest.fixture(scope="session")
def data_dir() -> Iterator[Path]:
    """The data directory of the installation; also where further gateways log."""
    directory = Path(tempfile.mkdtemp(prefix="tollkeeper-system-"))
    yield directory
    remove_data(directory)


@pytest.fixture(scope="session")
def routes(
    upstream: RecordingUpstream, models_url: str, git_url: str, models: ModelUpstream, data_dir: Path
) -> Path:
    path = data_dir / "routes.toml"
    table = ROUTES.format(recording=upstream.url, models=models_url, git=git_url)
    path.write_text(table + routes_to_models(models.url))
    return path


@pytest.fixture(scope="session")
def database_dsn(postgres_server: EmbeddedPostgres) -> str:
    """An empty database on the fast Postgres of the tests: what one kept on disk is like, test_up.py sees to."""
    name = f"system_{uuid4().hex}"

    async def create() -> None:
        session = await asyncpg.connect(postgres_server.dsn)
        await session.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        await session.close()

    run_apart(create)
    return f"{postgres_server.dsn.rpartition('/')[0]}/{name}"


@pytest.fixture(scope="session")
def product(routes: Path, data_dir: Path, database_dsn: str) -> Iterator[Running]:
    """`tollkeeper up` with two workers; its one line is not read yet."""
    arguments = [
        "up", "--json", "--data", str(data_dir), "--port", "0", "--control-port", "0", "--management-port", "0",
        "--workers", "2", "--config", str(routes), "--postgres", database_dsn,
    ]  # fmt: skip
    running = Running(arguments, {"TOLLKEEPER_DRAIN_INTERVAL_S": "0.2"})  # many tests wait for their rows
    yield running
    running.close()


@pytest.fixture(scope="session")
def addresses(product: Running) -> Addresses:
    return Addresses(**product.addresses())


@pytest.fixture
async def installation(addresses: Addresses) -> AsyncIterator[Installation]:
    async with opened(addresses) as clients:
        yield clients


StartGateway = Callable[..., Gateway]


@pytest.fixture
def gateway_with(addresses: Addresses, data_dir: Path, routes: Path) -> Iterator[StartGateway]:
    """Starts one more gateway of the installation, with settings of its own, for this test."""
    start = partial(another_gateway, addresses.redis, data_dir / "pepper")
    with ExitStack() as stack:

        def begin(*, limit_files: int | None = None, **settings: str) -> Gateway:
            return stack.enter_context(
                start(data_dir / "gateways.log", routes, limit_files=limit_files, **settings)
            )

        yield begin


@pytest.fixture(scope="session")
def far_listener() -> Iterator[socket.socket]:
    """Where the routes of `tunnel_routes` lead: see `far_end`."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener


@pytest.fixture(scope="session")
def tunnel_routes(far_listener: socket.socket, data_dir: Path) -> Path:
    path = data_dir / "tunnels.toml"
    path.write_text(routes_to(far_listener))
    return path


@pytest.fixture(scope="module")
def tunnel_gateway(addresses: Addresses, data_dir: Path, tunnel_routes: Path) -> Iterator[Gateway]:
    """One more gateway, of all tests of a module, before an upstream of which they say every byte."""
    log = data_dir / "gateways.log"
    with another_gateway(addresses.redis, data_dir / "pepper", log, tunnel_routes) as gateway:
        yield gateway


@pytest.fixture
async def far_end(far_listener: socket.socket) -> AsyncIterator[ScriptedUpstream]:
    async with scripted(far_listener) as upstream:
        yield upstream


@pytest.fixture(autouse=True)
def _no_inherited_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real clients take proxies out of the environment; here nothing may stand between them and the gateway."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
