"""An upstream's name: its addresses are followed when they change, and kept when nobody can say any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.embedded import free_port, wait_until
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway
from tests.system.loop_thread import LoopThread
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import request, wire

NAME = "moving.tollkeeper.test"
HOSTS = Path("/etc/hosts")
FIRST, SECOND = "127.0.0.2", "127.0.0.3"

Resolve = Callable[..., None]


@pytest.fixture
def resolve() -> Iterator[Resolve]:
    """Has the name stand for these addresses; in the end it is unknown, as before."""
    before = HOSTS.read_bytes()
    try:
        HOSTS.open("r+b").close()
    except OSError:
        pytest.skip(f"{HOSTS} cannot be written")

    def write(*addresses: str) -> None:
        # What is there is written over by the same bytes: at no moment is another name missing.
        with HOSTS.open("r+b") as file:
            file.write(before + b"".join(f"{address} {NAME}\n".encode() for address in addresses))
            file.truncate()

    yield write
    write()


@pytest.fixture
def upstreams(loop_thread: LoopThread) -> Iterator[dict[str, RecordingUpstream]]:
    port = free_port()
    running = {
        address: RecordingUpstream(loop_thread, host=address, port=port) for address in (FIRST, SECOND)
    }
    yield running
    for each in running.values():
        each.close()


@pytest.fixture
def log(data_dir: Path) -> Path:
    return data_dir / "upstream-names.log"


@pytest.fixture
def gateway(
    addresses: Addresses, data_dir: Path, log: Path, upstreams: dict[str, RecordingUpstream], tmp_path: Path
) -> Iterator[Gateway]:
    routes = tmp_path / "routes.toml"
    url = f"http://{NAME}:{upstreams[FIRST].port}"
    routes.write_text(f'[[route]]\nname = "named"\npath = "/named/"\nupstream = "{url}"\n')
    with another_gateway(addresses.redis, data_dir / "pepper", log, routes, dns_ttl_s="0.2") as started:
        yield started


async def ask(gateway: Gateway, workload: Workload, count: int = 1) -> None:
    """So many requests, all at once; each has to be answered."""

    async def one() -> int:
        async with wire(gateway.port) as client:
            client.send(request(workload, "/named/sleep/0.05"))
            return (await client.answer()).status

    assert await asyncio.gather(*(one() for _ in range(count))) == [200] * count


async def test_a_names_addresses_are_followed(
    installation: Installation,
    gateway: Gateway,
    upstreams: dict[str, RecordingUpstream],
    resolve: Resolve,
    log: Path,
) -> None:
    workload = await installation.workload()

    def seen(address: str) -> int:
        return len(upstreams[address].of(workload.key))

    async def reaches(address: str) -> bool:
        before = seen(address)
        await ask(gateway, workload, 4)
        return seen(address) > before

    resolve(FIRST)
    await ask(gateway, workload, 4)
    assert (seen(FIRST), seen(SECOND)) == (4, 0)

    resolve(SECOND)
    await wait_until(lambda: reaches(SECOND), 20, "the new address to be used")
    before = seen(FIRST)
    for _ in range(3):
        await ask(gateway, workload, 4)
    assert seen(FIRST) == before, "a kept connection to the old address was used again"

    resolve()
    await wait_until(lambda: b'"name_not_resolved"' in log.read_bytes(), 20, "the name to be unknown")
    before = seen(SECOND)
    upstreams[SECOND].hang_up()
    await ask(gateway, workload, 8)
    assert seen(SECOND) >= before + 8, "an upstream has vanished with its name server"

    async def reaches_both() -> bool:
        upstreams[SECOND].hang_up()
        return await reaches(FIRST)

    resolve(FIRST, SECOND)
    await wait_until(reaches_both, 20, "both addresses to be used")
    upstreams[FIRST].close()
    await ask(gateway, workload, 8)
