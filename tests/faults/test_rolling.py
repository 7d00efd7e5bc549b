"""Restarts, reloads and the stop of a gateway that is in use: nobody's request fails, and every one has its row."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from control.embedded import wait_until
from tests.certificates import Authority, client_context, make_authority, write_file, write_pair
from tests.faults.load import kept_load
from tests.faults.stack import Stack
from tests.system.installation import Gateway, Installation, Workload, another_gateway
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import Answer, Wire, event_count, metric, request, wire

LOADED_S = 30.0
STEP_TIMEOUT_S = 40.0
WORKERS = 2

ROUTES = """
[[route]]
name = "priced"
path = "/priced/"
upstream = "{upstream}"
price.request = "0.10"

[[route]]
name = "new-{number}"
path = "/new-{number}/"
upstream = "{upstream}"
"""


@dataclass(slots=True)
class Site:
    """A gateway that speaks TLS, with the files that it is told to read."""

    gateway: Gateway
    directory: Path
    log: Path
    authority: Authority
    upstream: RecordingUpstream

    @property
    def tls(self) -> ssl.SSLContext:
        return client_context(self.authority)

    def write_routes(self, number: int) -> None:
        """The table of which one route is new each time."""
        write_file(
            self.directory / "routes.toml", ROUTES.format(upstream=self.upstream.url, number=number).encode()
        )

    def logged(self, event: str) -> int:
        return self.log.read_bytes().count(f'"{event}"'.encode())

    async def counted(self, event: str) -> int:
        return await event_count(self.gateway.management_port, event)

    async def until_counted(self, event: str, count: int) -> None:
        async def is_so() -> bool:
            return await self.counted(event) >= count

        await wait_until(is_so, STEP_TIMEOUT_S, f"{event} {count}")

    async def pids(self) -> set[int]:
        """Of the workers; of whom one may end while they are counted."""
        while True:
            with suppress(psutil.NoSuchProcess):
                return {worker.pid for worker in await asyncio.to_thread(self.gateway.workers)}

    async def asked(self, workload: Workload, path: str) -> Answer:
        async with wire(self.gateway.port, tls=self.tls) as client:
            client.send(request(workload, path))
            return await client.answer()

    async def refuses(self) -> bool:
        """Whether nobody takes connections any more."""
        try:
            (await Wire.open(self.gateway.port)).close()
        except ConnectionRefusedError:
            return True
        return False

    async def readiness(self) -> Answer:
        async with wire(self.gateway.management_port) as client:
            client.send(b"GET /readyz HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n")
            return await client.answer()


@pytest.fixture
def site(stack: Stack, fault_upstream: RecordingUpstream, tmp_path: Path) -> Iterator[Site]:
    authority = make_authority("rolling")
    pair = write_pair(tmp_path, "gateway", authority)
    log = stack.directory / "rolling.log"
    log.unlink(missing_ok=True)
    routes = write_file(
        tmp_path / "routes.toml", ROUTES.format(upstream=fault_upstream.url, number=0).encode()
    )
    with another_gateway(
        stack.redis.url, stack.directory / "pepper", log, routes, workers=str(WORKERS),
        tls_certificate=str(pair.certificate), tls_key=str(pair.key), drain_timeout_s="5",
    ) as started:  # fmt: skip
        yield Site(started, tmp_path, log, authority, fault_upstream)


# -- what is done to it under load; each returns when it is done


async def roll(site: Site) -> None:
    before, done = await site.pids(), site.logged("rolling_restart_done")
    site.gateway.process.send_signal(signal.SIGUSR2)
    await wait_until(
        lambda: site.logged("rolling_restart_done") > done, STEP_TIMEOUT_S, "the rolling restart"
    )

    async def are_others() -> bool:
        now = await site.pids()
        return len(now) == WORKERS and not now & before

    await wait_until(are_others, STEP_TIMEOUT_S, "the old workers to end")


async def stop_a_worker(site: Site) -> None:
    before = await site.pids()
    stopped = random.choice(sorted(before))
    os.kill(stopped, signal.SIGTERM)

    async def is_replaced() -> bool:
        now = await site.pids()
        return len(now) == WORKERS and stopped not in now and (await site.readiness()).status == 200

    await wait_until(is_replaced, STEP_TIMEOUT_S, "a worker in place of the one that was stopped")


async def change_routes(site: Site, workload: Workload, number: int) -> None:
    """First a table that is not good, which changes nothing; then one with a new route."""
    refused = await site.counted("reload_refused")
    write_file(site.directory / "routes.toml", b'[[route]]\nname = "broken"\npath = "/priced/"\n')
    await site.until_counted("reload_refused", refused + 1)
    assert (await site.asked(workload, "/priced/")).status == 200
    assert (await site.asked(workload, f"/new-{number}/")).status == 404
    site.write_routes(number)

    async def is_served() -> bool:
        # Both workers have it: a connection goes to either.
        answers = await asyncio.gather(*(site.asked(workload, f"/new-{number}/") for _ in range(8)))
        return all(answer.status == 200 for answer in answers)

    await wait_until(is_served, STEP_TIMEOUT_S, "the new route to be served")


async def change_certificate(site: Site) -> None:
    new = write_pair(site.directory, "gateway", site.authority).issued.der

    async def is_shown() -> bool:
        async def shown() -> bytes:
            async with wire(site.gateway.port, tls=site.tls) as client:
                found: bytes = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
                return found

        return set(await asyncio.gather(*(shown() for _ in range(8)))) == {new}

    await wait_until(is_shown, STEP_TIMEOUT_S, "the new certificate to be shown")


async def hang_up_signal(site: Site) -> None:
    reloaded = await site.counted("reloaded")
    site.gateway.process.send_signal(signal.SIGHUP)
    await site.until_counted("reloaded", reloaded + 1)


@asynccontextmanager
async def readiness_of(site: Site, said: list[Answer]) -> AsyncIterator[None]:
    """Note what /readyz says meanwhile."""

    async def watch() -> None:
        while True:
            said.append(await site.readiness())
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.slow
async def test_no_request_fails_while_workers_routes_and_certificates_are_replaced(
    installation: Installation, site: Site, fault_upstream: RecordingUpstream
) -> None:
    workload, other = await installation.workload(), await installation.workload()
    rounds, round_s, until = 0, 0.0, time.monotonic() + LOADED_S
    rolling: list[Answer] = []
    stopping: list[Answer] = []
    async with kept_load(site.gateway.port, workload, "/priced/sleep/0.02", tls=site.tls) as running:
        while not rounds or time.monotonic() + round_s < until:
            rounds, began = rounds + 1, time.monotonic()
            async with readiness_of(site, rolling):
                await roll(site)
            async with readiness_of(site, stopping):
                await stop_a_worker(site)
            await change_routes(site, other, rounds)
            await change_certificate(site)
            await hang_up_signal(site)
            round_s = time.monotonic() - began
        await asyncio.sleep(until - time.monotonic())
    assert set(running.counted()) == {200}
    rows = await installation.settled(workload.tag)
    assert len(rows) == len(running.outcomes)
    assert {row["outcome"] for row in rows} == {"completed"}
    assert sum(row["cost"] for row in rows) == 100_000 * len(rows)
    seen = [each.request_id for each in fault_upstream.of(workload.key)]
    assert sorted(seen) == sorted(row["request_id"] for row in rows)
    assert site.logged("worker_died") == 0
    assert {answer.status for answer in rolling} == {200}
    for answer in stopping:
        assert answer.status == 200 or b"worker" in answer.body, answer.body
    sample = 'tollkeeper_requests_total{outcome="completed",route="priced",status_class="2xx"}'
    counted = await metric(site.gateway.management_port, sample)
    assert counted == len(rows) + rounds, "of what replaced workers have counted, some is missing"


async def test_a_gateway_that_stops_finishes_what_it_has_begun_and_cuts_what_takes_too_long(
    installation: Installation, site: Site, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    quick, endless, stream, late, idle = "sleep/1", "sleep/60", "stream/6000/0.01", "echo", "echo/idle"
    plays = [quick] * 4 + [endless] * 4 + [stream, late, idle]
    clients = [(play, await Wire.open(site.gateway.port, tls=site.tls)) for play in plays]
    for play, client in clients:
        client.send(request(workload, f"/priced/{play}"))
    for play, client in clients:
        if play in (late, idle):
            assert (await client.answer()).status == 200
    await wait_until(lambda: len(fault_upstream.of(workload.key)) == len(plays), 10, "the requests to arrive")

    site.gateway.process.send_signal(signal.SIGTERM)
    await wait_until(lambda: site.logged("gateway_stopping") == 1, 10, "the stop to begin")
    answers = []
    for play, client in clients:
        if play == late:  # on its way when the stop began
            client.send(request(workload, "/priced/"))
    await wait_until(site.refuses, 10, "new connections to be refused")
    assert (await site.readiness()).status == 503
    for play, client in clients:
        if play == idle:
            assert await client.is_closed()
        else:
            answer = await client.answer()
            answers.append((play, answer.status, answer.is_whole, answer.all("connection")))
            if play == stream:  # a stream of events is told so in a last one
                assert b"event: error" in answer.body[-2_000:]
                assert b"The gateway is stopping." in answer.body[-2_000:]
            if play == late:  # answered before its worker was told to stop, or since: it ends in any case
                assert answers.pop()[1:] in ((200, True, []), (200, True, ["close"]))
                assert await client.is_closed()
    assert answers == [
        *[(quick, 200, True, ["close"])] * 4, *[(endless, 503, True, ["close"])] * 4, (stream, 200, True, []),
    ]  # fmt: skip
    assert await asyncio.to_thread(site.gateway.process.wait, 20) == 0
    for _, client in clients:
        client.close()
    rows = await installation.settled(workload.tag)
    assert Counter((row["outcome"], row["status"]) for row in rows) == {
        ("completed", 200): 7, ("cut", 503): 4, ("cut", 200): 1,
    }  # fmt: skip
    assert site.logged("worker_died") == 0
