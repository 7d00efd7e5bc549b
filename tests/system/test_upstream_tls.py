"""TLS to upstreams: who has to prove what before a byte of a request is sent."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from control.embedded import wait_until
from tests.certificates import make_authority, server_context, write_file, write_pair
from tests.system.installation import Addresses, Gateway, Installation, another_gateway
from tests.system.loop_thread import LoopThread
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import Answer, request, wire

ROUTES = """
[[route]]
name = "by-the-system"
path = "/by-the-system/"
upstream = "{proved}"

[[route]]
name = "proved"
path = "/proved/"
upstream = "{proved}"
tls.ca = "upstream-ca.pem"

[[route]]
name = "trusting"
path = "/trusting/"
upstream = "{named}"
tls.verify = false

[[route]]
name = "named"
path = "/named/"
upstream = "{named}"
tls = {{ ca = "upstream-ca.pem", server_name = "inside.example" }}

[[route]]
name = "misnamed"
path = "/misnamed/"
upstream = "{named}"
tls.ca = "upstream-ca.pem"

[[route]]
name = "mutual"
path = "/mutual/"
upstream = "{mutual}"
tls = {{ ca = "upstream-ca.pem", certificate = "gateway-as-client.pem", key = "gateway-as-client.key" }}

[[route]]
name = "one-sided"
path = "/one-sided/"
upstream = "{mutual}"
tls.ca = "upstream-ca.pem"

[[route]]
name = "several"
path = "/several/"
upstream = ["{proved}", "{proved_by_name}"]
tls.ca = "upstream-ca.pem"

[[route]]
name = "not-tls"
path = "/not-tls/"
upstream = "{not_tls}"
tls.verify = false
timeouts.connect_s = 0.5

[[route]]
name = "changing"
path = "/changing/"
upstream = "{proved}"
tls.ca = "changing-ca.pem"
"""


@dataclass(slots=True)
class Upstreams:
    """Services that speak TLS, all with certificates of one authority."""

    proved: RecordingUpstream
    named: RecordingUpstream
    mutual: RecordingUpstream
    names_asked_for: list[str | None] = field(default_factory=list)
    """By those who connected to `named`."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upstream-tls")


@pytest.fixture(scope="module")
def upstreams(loop_thread: LoopThread, directory: Path) -> Iterator[Upstreams]:
    authority = make_authority("upstreams")
    write_file(directory / "upstream-ca.pem", authority.pem)
    write_pair(directory, "gateway-as-client", authority, ("gateway",), client=True)
    write_file(directory / "changing-ca.pem", make_authority("somebody else").pem)
    pair = write_pair(directory, "upstream", authority)
    naming = server_context(write_pair(directory, "named", authority, ("inside.example",)))
    running = Upstreams(
        RecordingUpstream(loop_thread, tls=server_context(pair)),
        RecordingUpstream(loop_thread, tls=naming),
        RecordingUpstream(loop_thread, tls=server_context(pair, client_authority=authority)),
    )
    naming.sni_callback = lambda _, name, __: running.names_asked_for.append(name)
    yield running
    for each in (running.proved, running.named, running.mutual):
        each.close()


@pytest.fixture(scope="module")
def gateway(
    addresses: Addresses, data_dir: Path, directory: Path, upstream: RecordingUpstream, upstreams: Upstreams
) -> Iterator[Gateway]:
    routes = directory / "routes.toml"
    routes.write_text(
        ROUTES.format(
            proved=upstreams.proved.url, named=upstreams.named.url, mutual=upstreams.mutual.url,
            proved_by_name=upstreams.proved.url.replace("127.0.0.1", "localhost"),
            not_tls=upstream.url.replace("http:", "https:"),
        )
    )  # fmt: skip
    log = data_dir / "upstream-tls.log"
    with another_gateway(addresses.redis, data_dir / "pepper", log, routes) as started:
        yield started


async def asked(gateway: Gateway, data: bytes) -> Answer:
    """The answer to one request on a connection of its own."""
    async with wire(gateway.port) as client:
        client.send(data)
        return await client.answer()


@pytest.mark.parametrize("route", ["proved", "named", "trusting", "mutual", "several"])
async def test_an_upstream_that_proves_who_it_is_gets_the_request(
    installation: Installation, upstreams: Upstreams, gateway: Gateway, route: str
) -> None:
    workload = await installation.workload()
    async with wire(gateway.port) as client:
        for _ in range(4):
            client.send(request(workload, f"/{route}/", method="POST", body=b"abc"))
            assert (await client.answer()).status == 200
    reached = {"named": upstreams.named, "trusting": upstreams.named, "mutual": upstreams.mutual}
    seen = reached.get(route, upstreams.proved).of(workload.key)
    assert [each.body_bytes for each in seen] == [3] * 4
    if route == "named":
        assert upstreams.names_asked_for[-1] == "inside.example"
    if route == "several":
        assert len({each.one("host").partition(":")[0] for each in seen}) == 2


@pytest.mark.parametrize(
    ("route", "status", "code", "phase"),
    [
        ("by-the-system", 502, "upstream_unreachable", "connect"),
        ("misnamed", 502, "upstream_unreachable", "connect"),
        ("changing", 502, "upstream_unreachable", "connect"),
        ("not-tls", 504, "upstream_timeout", "connect"),
        ("one-sided", 502, "upstream_failed", "answer"),  # in TLS 1.3 it says so only after the handshake
    ],
)
async def test_an_upstream_that_does_not_gets_nothing(
    installation: Installation,
    upstreams: Upstreams,
    gateway: Gateway,
    route: str,
    status: int,
    code: str,
    phase: str,
) -> None:
    workload = await installation.workload()
    answer = await asked(gateway, request(workload, f"/{route}/", method="POST", body=b"abc"))
    said = json.loads(answer.body)
    assert (answer.status, said["code"], said["phase"]) == (status, code, phase)
    assert (said["route"], said["target"]) == (route, 1)
    for each in (upstreams.proved, upstreams.named, upstreams.mutual):
        assert each.of(workload.key) == []


async def test_an_upstreams_authority_is_read_again_when_its_file_changes(
    installation: Installation, gateway: Gateway, directory: Path
) -> None:
    workload = await installation.workload()
    stranger = (directory / "changing-ca.pem").read_bytes()

    async def has_status(status: int) -> bool:
        return (await asked(gateway, request(workload, "/changing/"))).status == status

    try:
        write_file(directory / "changing-ca.pem", (directory / "upstream-ca.pem").read_bytes())
        gateway.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: has_status(200), 20, "the new authority to be trusted")
    finally:
        write_file(directory / "changing-ca.pem", stranger)
        gateway.process.send_signal(signal.SIGHUP)
        await wait_until(lambda: has_status(502), 20, "the new authority to be trusted no more")
