"""Several targets of one route: which one is asked, what is tried again, and how one that fails is left out and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from control.embedded import wait_until
from tests.faults.load import kept_load
from tests.system.conftest import StartGateway
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway
from tests.system.loop_thread import LoopThread
from tests.system.recording_upstream import RecordingUpstream, Seen, Stage
from tests.system.wire import Answer, event_count, metric, request, wire

NOBODY = "127.0.0.1:9"

ROUTES = """
[[route]]
name = "mortal"
path = "/mortal/"
upstream = ["{a}", "{b}", "{mortal}"]
price.request = "0.10"
ejection = {{ for_s = 0.5, for_max_s = 1.0, slow_start_s = 0.5 }}

[[route]]
name = "uneven"
path = "/uneven/"
upstream = ["{a}/-/sleep/0.3", "{b}/-/sleep/0.01"]
strip_path = true

[[route]]
name = "half"
path = "/half/"
upstream = ["http://{nobody}", "{a}"]
ejection.after_failures = 1000

[[route]]
name = "single"
path = "/single/"
upstream = "{a}"

[[route]]
name = "fresh"
path = "/fresh/"
upstream = "{mortal}"

[[route]]
name = "pair"
path = "/pair/"
upstream = ["{a}", "{b}"]
timeouts = {{ first_byte_s = 0.3, between_bytes_s = 0.5 }}
ejection.after_failures = 1000

[[route]]
name = "checked"
path = "/checked/"
upstream = ["{ill}", "{a}"]
ejection.slow_start_s = 0
health = {{ path = "/health", every_s = 0.1, unhealthy_after = 2, healthy_after = 2 }}

[[route]]
name = "slowly"
path = "/slowly/"
upstream = ["{ill}", "{b}"]
ejection.slow_start_s = 60
health = {{ path = "/health", every_s = 0.1, unhealthy_after = 2, healthy_after = 2 }}

[[route]]
name = "alone"
path = "/alone/"
upstream = "{ill}"
health = {{ path = "/health", every_s = 0.1, unhealthy_after = 2, healthy_after = 2 }}
"""


class Target(RecordingUpstream):
    """Also answers health checks as it is told to, and hangs up on `/<route>/stale` where its connection was used before."""

    is_ill = False

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if seen.target == "/health":
            Stage(seen, [], reader, writer).send("503 Ill" if self.is_ill else "200 Well")
            return True
        if seen.target.split("/")[2] == "stale":
            await Stage(seen, [], reader, writer).read_body()
            if sum(other.connection == seen.connection for other in self.seen) > 1:
                return False
            Stage(seen, [], reader, writer).send("200 OK")
            return True
        return await super()._answer(seen, reader, writer)


@dataclass(slots=True)
class Targets:
    a: Target
    b: Target
    ill: Target
    mortal: Target

    def close(self) -> None:
        for each in (self.a, self.b, self.ill, self.mortal):
            each.close()


@pytest.fixture(scope="module")
def targets(loop_thread: LoopThread) -> Iterator[Targets]:
    running = Targets(*(Target(loop_thread) for _ in range(4)))
    yield running
    running.close()


@pytest.fixture(scope="module")
def log(data_dir: Path) -> Path:
    return data_dir / "targets.log"


@pytest.fixture(scope="module")
def routes_of_targets(targets: Targets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets") / "routes.toml"
    path.write_text(
        ROUTES.format(
            a=targets.a.url, b=targets.b.url, ill=targets.ill.url, mortal=targets.mortal.url, nobody=NOBODY,
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def gateway(addresses: Addresses, data_dir: Path, log: Path, routes_of_targets: Path) -> Iterator[Gateway]:
    with another_gateway(addresses.redis, data_dir / "pepper", log, routes_of_targets) as started:
        yield started


async def asked(gateway: Gateway, data: bytes) -> Answer:
    """The answer to one request on a connection of its own."""
    async with wire(gateway.port) as client:
        client.send(data)
        return await client.answer()


async def until_up(gateway: Gateway, route: str, target: RecordingUpstream, wanted: bool) -> None:
    """Wait until a target is said to take requests, or not to."""
    sample = f'tollkeeper_target_up{{route="{route}",target="127.0.0.1:{target.port}"}}'

    async def is_so() -> bool:
        return await metric(gateway.management_port, sample) == wanted

    await wait_until(is_so, 20, f"{sample} {int(wanted)}")


def logged(log: Path, event: str, target: RecordingUpstream) -> list[dict[str, Any]]:
    """What was said of a target, oldest first."""
    lines = [json.loads(line) for line in log.read_bytes().splitlines() if f'"{event}"'.encode() in line]
    return [line for line in lines if line["target"] == f"127.0.0.1:{target.port}"]


# -- a target that dies


async def test_a_target_that_dies_costs_only_what_it_was_sent_and_comes_back(
    installation: Installation, loop_thread: LoopThread, gateway: Gateway, targets: Targets, log: Path
) -> None:
    workload = await installation.workload()
    async with kept_load(gateway.port, workload, "/mortal/sleep/0.02") as running:
        await wait_until(lambda: len(targets.mortal.of(workload.key)) > 20, 20, "its share of the requests")
        killed_at = datetime.now(UTC)
        targets.mortal.close()
        gone = asyncio.get_running_loop().time()
        await until_up(gateway, "mortal", targets.mortal, False)
        await running.until(200, 300)
        (first, *_) = logged(log, "target_ejected", targets.mortal)
        assert 0 <= (datetime.fromisoformat(first["timestamp"]) - killed_at).total_seconds() < 1
        targets.mortal = Target(loop_thread, port=targets.mortal.port)
        await wait_until(lambda: len(targets.mortal.of(workload.key)) > 20, 20, "its share of the requests")
        await until_up(gateway, "mortal", targets.mortal, True)
    failed = [outcome for outcome in running.outcomes if outcome.status != 200]
    for outcome in failed:
        assert outcome.answer is not None
        said = json.loads(outcome.answer.body)
        assert (outcome.status, said["code"], said["phase"], said["target"]) == (
            502,
            "upstream_failed",
            "answer",
            3,
        )
        assert outcome.began < gone, "it was sent to a target that was dead by then"
    rows = await installation.settled(workload.tag)
    assert len(rows) == len(running.outcomes)
    assert sum(row["cost"] for row in rows) == 100_000 * (len(rows) - len(failed))
    print(len(rows), len(failed))


async def test_a_slow_target_gets_fewer_requests(
    installation: Installation, gateway: Gateway, targets: Targets
) -> None:
    workload = await installation.workload()
    async with kept_load(gateway.port, workload, "/uneven", loops=6) as running:
        await running.until(200, 100)
    slow, quick = len(targets.a.of(workload.key)), len(targets.b.of(workload.key))
    assert 0 < slow * 3 < quick


# -- what is tried again


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_what_cannot_be_connected_to_is_tried_at_another_target_body_and_all(
    installation: Installation, gateway: Gateway, targets: Targets, framing: str
) -> None:
    workload = await installation.workload()
    body = b"0123456789" * 20_000
    data = request(workload, "/half/", method="POST", body=body)
    if framing == "chunked":
        data = request(workload, "/half/", "Transfer-Encoding: chunked", method="POST")
        data += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    before = await event_count(gateway.management_port, "connect_retried")
    for _ in range(10):
        assert (await asked(gateway, data)).status == 200
    assert [seen.body_bytes for seen in targets.a.of(workload.key)] == [len(body)] * 10
    assert await event_count(gateway.management_port, "connect_retried") > before


@pytest.mark.parametrize(
    ("method", "body", "is_repeated"),
    [
        ("GET", b"", True), ("HEAD", b"", True), ("DELETE", b"", True), ("PUT", b"", True),
        ("POST", b"", False), ("POST", b"abc", False), ("PUT", b"abc", False), ("GET", b"abc", False),
        ("PATCH", b"", False),
    ],
)  # fmt: skip
async def test_only_what_cannot_run_twice_to_harm_is_repeated_after_a_kept_connection_ended(
    installation: Installation,
    gateway: Gateway,
    targets: Targets,
    method: str,
    body: bytes,
    is_repeated: bool,
) -> None:
    workload = await installation.workload()
    async with wire(gateway.port) as client:
        client.send(request(workload, "/single/echo"))
        assert (await client.answer()).status == 200
        client.send(request(workload, "/single/stale", method=method, body=body))
        answer = await client.answer(to_head=method == "HEAD")
    seen = [each for each in targets.a.of(workload.key) if each.target == "/single/stale"]
    assert (answer.status, len(seen)) == ((200, 2) if is_repeated else (502, 1))
    assert {each.request_id for each in seen} == {answer["x-request-id"]}
    rows = await installation.settled(workload.tag)
    assert [row["status"] for row in rows] == [200, answer.status]


async def test_a_new_connection_that_ends_without_an_answer_is_no_reason_to_ask_again(
    installation: Installation, gateway: Gateway, targets: Targets
) -> None:
    workload = await installation.workload()
    targets.mortal.hang_up()

    async def has_none() -> bool:
        sample = f'tollkeeper_target_connections{{route="fresh",target="127.0.0.1:{targets.mortal.port}"}}'
        return await metric(gateway.management_port, sample) == 0

    await wait_until(has_none, 10, "no connection to be kept")
    answer = await asked(gateway, request(workload, "/fresh/die/-1"))
    assert (answer.status, json.loads(answer.body)["code"]) == (502, "upstream_failed")
    assert len(targets.mortal.of(workload.key)) == 1


# -- what the client is told


@pytest.mark.parametrize(
    ("play", "status", "code", "phase"),
    [
        ("die/-1", 502, "upstream_failed", "answer"),
        ("nonsense", 502, "upstream_failed", "answer"),
        ("never", 504, "upstream_timeout", "first_byte"),
        ("sink/2", 504, "upstream_timeout", "sending"),
    ],
)
async def test_a_failure_names_the_route_the_target_and_the_phase(
    installation: Installation,
    gateway: Gateway,
    targets: Targets,
    play: str,
    status: int,
    code: str,
    phase: str,
) -> None:
    workload = await installation.workload()
    body = b"x" * (32 * 1024**2 if phase == "sending" else 10)
    answer = await asked(gateway, request(workload, f"/pair/{play}", method="POST", body=body))
    said = json.loads(answer.body)
    position = 1 if targets.a.of(workload.key) else 2
    assert (answer.status, said["code"], said["phase"]) == (status, code, phase)
    assert (said["route"], said["target"]) == ("pair", position)
    assert said["error"]["metadata"]["target"] == position
    assert len(targets.a.of(workload.key)) + len(targets.b.of(workload.key)) == 1


async def test_too_many_who_wait_for_a_connection_are_told_so(
    installation: Installation, gateway_with: StartGateway, routes_of_targets: Path, targets: Targets
) -> None:
    workload = await installation.workload()
    gateway = gateway_with(
        config=str(routes_of_targets), upstream_connections_max="1", upstream_waiting_max="1"
    )

    async def one_waits() -> bool:
        return await metric(gateway.management_port, "tollkeeper_upstream_waiting") == 1

    patient = [asyncio.create_task(asked(gateway, request(workload, "/single/never"))) for _ in range(2)]
    await wait_until(one_waits, 10, "a request to wait")
    answer = await asked(gateway, request(workload, "/single/"))
    for each in patient:
        each.cancel()
    await asyncio.gather(*patient, return_exceptions=True)
    said = json.loads(answer.body)
    assert (answer.status, said["code"], answer["retry-after"]) == (503, "overloaded", "1")
    assert (said["route"], said["phase"]) == ("single", "connect")
    assert len(targets.a.of(workload.key)) == 1


# -- health checks


@contextmanager
def ill(*targets: Target) -> Iterator[None]:
    """Inside, they fail their health checks."""
    for target in targets:
        target.is_ill = True
    try:
        yield
    finally:
        for target in targets:
            target.is_ill = False


async def shares(gateway: Gateway, workload: Workload, path: str, *targets: Target) -> list[int]:
    """How many of some requests each target gets."""
    before = [len(target.of(workload.key)) for target in targets]
    async with kept_load(gateway.port, workload, path, loops=24) as running:
        await running.until(200, 100)
    assert set(running.counted()) == {200}
    return [len(target.of(workload.key)) - count for target, count in zip(targets, before, strict=True)]


async def test_an_ill_target_is_left_out_until_it_is_well(
    installation: Installation, gateway: Gateway, targets: Targets, log: Path
) -> None:
    workload = await installation.workload()
    await until_up(gateway, "checked", targets.ill, True)
    with ill(targets.ill):
        await until_up(gateway, "checked", targets.ill, False)
        assert await shares(gateway, workload, "/checked/echo", targets.ill) == [0]
        assert logged(log, "target_unhealthy", targets.ill)[-1]["why"] == "status 503"
    await until_up(gateway, "checked", targets.ill, True)
    one, other = await shares(gateway, workload, "/checked/sleep/0.1", targets.ill, targets.a)
    assert min(one, other) * 2 > max(one, other)
    assert len(logged(log, "target_well", targets.ill)) >= 1


async def test_where_nobody_is_well_nobody_is_asked(
    installation: Installation, gateway: Gateway, targets: Targets
) -> None:
    workload = await installation.workload()
    with ill(targets.ill, targets.a):
        for route, target in (("checked", targets.ill), ("checked", targets.a), ("alone", targets.ill)):
            await until_up(gateway, route, target, False)
        for route in ("checked", "alone"):
            answer = await asked(gateway, request(workload, f"/{route}/"))
            said = json.loads(answer.body)
            assert (answer.status, said["code"], answer["retry-after"]) == (503, "upstream_unhealthy", "1")
            assert (said["route"], said["phase"]) == (route, "connect")
    await until_up(gateway, "checked", targets.a, True)
    await until_up(gateway, "alone", targets.ill, True)
    assert (await asked(gateway, request(workload, "/alone/"))).status == 200
    rows = await installation.settled(workload.tag)
    assert [row["outcome"] for row in rows] == ["upstream_failed", "upstream_failed", "completed"]


async def test_a_target_that_is_back_gets_its_share_slowly(
    installation: Installation, gateway: Gateway, targets: Targets
) -> None:
    workload = await installation.workload()
    with ill(targets.ill):
        await until_up(gateway, "slowly", targets.ill, False)
    await until_up(gateway, "slowly", targets.ill, True)
    one, other = await shares(gateway, workload, "/slowly/sleep/0.1", targets.ill, targets.b)
    assert 0 < one * 4 < other
