"""Upgraded connections of any protocol: two streams of bytes, counted and priced, that last as long as their key may."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from control.embedded import wait_until
from tests.system.conftest import StartGateway
from tests.system.installation import Gateway, Installation, Row, Workload
from tests.system.scripted_upstream import IDLE_S, ScriptedUpstream, reset, tunnel
from tests.system.wire import Wire

CUT_WITHIN_S = 5.0
MIB = 1 << 20


async def only_row(installation: Installation, workload: Workload) -> Row:
    (row,) = await installation.settled(workload.tag)
    return row


async def read_all(end: Wire) -> bytes:
    async with asyncio.timeout(15):
        return await end.reader.read(-1)


async def test_bytes_pass_both_ways_unchanged_whatever_they_look_like(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()
    there = b"GET /tunnel/second HTTP/1.1\r\nHost: a\r\n\r\n\0\r\n0\r\n\r\n" + random.Random(1).randbytes(
        200_000
    )
    back = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 500 X\r\n\r\n" + random.Random(
        2
    ).randbytes(300_000)
    async with tunnel(tunnel_gateway, far_end, workload, "/tunnel/") as (near, far):
        near.send(there)
        far.send(back)
        assert await far.reader.readexactly(len(there)) == there
        assert await near.reader.readexactly(len(back)) == back
        for number in range(256):  # byte by byte, question and answer
            near.send(bytes((number,)))
            assert await far.reader.readexactly(1) == bytes((number,))
            far.send(bytes((255 - number,)))
            assert await near.reader.readexactly(1) == bytes((255 - number,))
        far.writer.close()
        assert await near.is_closed()
    row = await only_row(installation, workload)
    assert far_end.connections == 1
    assert (row["status"], row["bytes_in"], row["bytes_out"]) == (101, len(there) + 256, len(back) + 256)


async def test_a_tunnel_costs_what_it_moved_in_both_directions(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload("1")
    async with tunnel(tunnel_gateway, far_end, workload, "/tunnel/priced") as (near, far):
        assert await installation.counters("key", workload.key) == (0, 0, 500_000)
        near.send(b"a" * 3 * 1024)
        await far.reader.readexactly(3 * 1024)
        far.send(b"b" * 20 * 1024)
        await near.reader.readexactly(20 * 1024)
        near.writer.write_eof()
        assert await far.is_closed()
        far.close()
        assert await near.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["method"], row["path"]) == (
        "completed",
        101,
        "GET",
        "/tunnel/priced",
    )
    assert (row["bytes_in"], row["bytes_out"]) == (3 * 1024, 20 * 1024)
    assert row["cost"] == 10_000 + 3 * 1_000 + 20 * 100


@dataclass(slots=True)
class Flow:
    """A stream of `size` random bytes from one end to the other, as fast as it is taken."""

    writer: Wire
    reader: Wire
    seed: int
    size: int = 64 * MIB
    sent: int = 0
    received: int = 0
    sent_digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    received_digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    async def write(self) -> None:
        generator = random.Random(self.seed)
        while self.sent < self.size:
            piece = generator.randbytes(MIB // 4)
            self.writer.send(piece)
            await self.writer.writer.drain()
            self.sent_digest.update(piece)
            self.sent += len(piece)

    async def read(self) -> None:
        while self.received < self.size:
            piece = await self.reader.reader.read(MIB)
            assert piece, f"ended after {self.received} bytes"
            self.received_digest.update(piece)
            self.received += len(piece)

    async def stands_still(self) -> None:
        """Wait until the writer is held up: nothing was taken from it for half a second, and it is not done."""
        last, since = -1, time.monotonic()

        def is_held_up() -> bool:
            nonlocal last, since
            if self.sent != last:
                last, since = self.sent, time.monotonic()
            return time.monotonic() - since > 0.5

        await wait_until(is_held_up, 30, "the writer to be held up")
        assert self.sent < self.size, "everything was taken, though nobody read"


@pytest.mark.parametrize("directions", ["to the upstream", "to the client", "both at once"])
async def test_a_slow_reader_holds_the_writer_up_and_loses_nothing(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream, directions: str
) -> None:
    workload = await installation.workload()
    (worker,) = tunnel_gateway.workers()
    async with tunnel(tunnel_gateway, far_end, workload, "/tunnel/") as (near, far):
        flows = [Flow(near, far, 1)] if directions != "to the client" else []
        flows += [Flow(far, near, 2)] if directions != "to the upstream" else []
        before = worker.memory_info().rss
        writing = [asyncio.create_task(flow.write()) for flow in flows]
        for flow in flows:
            await flow.stands_still()
        assert worker.memory_info().rss - before < 16 * MIB
        async with asyncio.timeout(60):
            await asyncio.gather(*writing, *(flow.read() for flow in flows))
        assert worker.memory_info().rss - before < 16 * MIB
        for flow in flows:
            assert flow.received_digest.digest() == flow.sent_digest.digest()
        near.writer.write_eof()
        assert await far.is_closed()
        far.writer.close()
        assert await near.is_closed()
    row = await only_row(installation, workload)
    assert row["bytes_in"] == sum(flow.size for flow in flows if flow.writer is near)
    assert row["bytes_out"] == sum(flow.size for flow in flows if flow.writer is far)
    assert row["outcome"] == "completed"


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_an_end_that_sends_no_more_still_receives(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream, first: str
) -> None:
    workload = await installation.workload()
    last_words, rest = random.Random(3).randbytes(MIB), random.Random(4).randbytes(MIB)
    async with tunnel(tunnel_gateway, far_end, workload, "/tunnel/") as (near, far):
        ended, other = (near, far) if first == "client" else (far, near)
        ended.send(last_words)
        ended.writer.write_eof()
        assert await read_all(other) == last_words
        for start in range(0, len(rest), MIB // 4):
            other.send(rest[start : start + MIB // 4])
            assert await ended.reader.readexactly(MIB // 4) == rest[start : start + MIB // 4]
        other.writer.write_eof()
        assert await ended.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["bytes_in"], row["bytes_out"]) == ("completed", MIB, MIB)


async def test_a_silent_tunnel_ends_and_one_that_moves_either_way_does_not(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    silent, sending, receiving = [await installation.workload() for _ in range(3)]
    async with (
        tunnel(tunnel_gateway, far_end, silent, "/impatient/a") as (quiet_near, quiet_far),
        tunnel(tunnel_gateway, far_end, sending, "/impatient/b") as (sending_near, sending_far),
        tunnel(tunnel_gateway, far_end, receiving, "/impatient/c") as (receiving_near, receiving_far),
    ):
        began = time.monotonic()
        silence = asyncio.gather(quiet_near.is_closed(), quiet_far.is_closed())
        count = 0
        while not silence.done() or time.monotonic() - began < 2.5 * IDLE_S:
            assert time.monotonic() - began < 15 * IDLE_S
            count += 1
            sending_near.send(b"a")
            receiving_far.send(b"b")
            assert await sending_far.reader.readexactly(1) == b"a"
            assert await receiving_near.reader.readexactly(1) == b"b"
            await asyncio.sleep(IDLE_S / 10)
        assert all(await silence)
        for far in (sending_far, receiving_far):
            far.writer.close()
        assert await sending_near.is_closed()
        assert await receiving_near.is_closed()
    ended = await only_row(installation, silent)
    assert (ended["outcome"], ended["status"]) == ("completed", 101)
    assert ended["total_ms"] >= IDLE_S * 1000
    assert (await only_row(installation, sending))["bytes_in"] == count
    assert (await only_row(installation, receiving))["bytes_out"] == count


async def deadline_ms(installation: Installation, workload: Workload) -> float:
    """When the only hold of a workload runs out, by Redis."""
    name = installation.layout.holds(installation.layout.shard_of(workload.tag))
    found = await installation.redis.zrange(name, 0, -1, withscores=True)
    holds = cast("list[tuple[bytes, float]]", found)
    (deadline,) = [score for hold, score in holds if f"|{workload.tag}|".encode() in hold]
    return deadline


async def extended(installation: Installation, workload: Workload) -> None:
    """Wait until the only hold of a workload is extended."""
    first = await deadline_ms(installation, workload)

    async def is_later() -> bool:
        return await deadline_ms(installation, workload) > first

    await wait_until(is_later, 10, "the hold to be extended")


async def test_the_hold_is_extended_while_the_tunnel_lives(
    installation: Installation, far_end: ScriptedUpstream, gateway_with: StartGateway, tunnel_routes: Path
) -> None:
    workload = await installation.workload("1")
    gateway = gateway_with(config=str(tunnel_routes), hold_ttl_s="2")
    async with tunnel(gateway, far_end, workload, "/tunnel/") as (near, far):
        first = await deadline_ms(installation, workload)

        async def has_outlived_it() -> bool:
            return (
                time.time() * 1000 > first + 2_000
                and await deadline_ms(installation, workload) > first + 3_000
            )

        await wait_until(has_outlived_it, 15, "the hold to be extended beyond its first deadline")
        near.send(b"still here")
        assert await far.reader.readexactly(10) == b"still here"
        assert await installation.counters("key", workload.key) == (0, 0, 500_000)
        far.writer.close()
        assert await near.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["bytes_in"], row["cost"]) == ("completed", 10, 10_010)


Off = Callable[[Installation, Workload], Awaitable[object]]
WAYS_TO_END_IT: dict[str, Off] = {
    "the key is revoked": lambda here, it: here.call("POST", f"/v1/keys/{it.key}/revoke"),
    "the key is disabled": lambda here, it: here.call("POST", f"/v1/keys/{it.key}/disable"),
    "the account is deactivated": lambda here, it: here.call("POST", f"/v1/service-accounts/{it.account}/deactivate"),
    "the account is deleted": lambda here, it: here.call("DELETE", f"/v1/service-accounts/{it.account}"),
    "the organization is switched off": lambda here, it: here.call(
        "PATCH", f"/v1/organizations/{it.organization}", {"status": "inactive"}
    ),
}  # fmt: skip


async def test_a_tunnel_is_cut_within_five_seconds_of_the_end_of_its_key_account_or_organization(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    async def is_cut_after_s(off: Off, workload: Workload) -> float:
        async with tunnel(tunnel_gateway, far_end, workload, f"/tunnel/{workload.key}") as (near, far):
            await extended(
                installation, workload
            )  # it has just asked whether it may: it asks again in a while

            async def talk() -> None:
                while True:
                    near.send(b"a")
                    await far.reader.readexactly(1)
                    await asyncio.sleep(0.05)

            talking = asyncio.create_task(talk())
            await off(installation, workload)
            answered = time.monotonic()
            assert await near.is_closed()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await talking
            return time.monotonic() - answered

    workloads = [await installation.workload() for _ in WAYS_TO_END_IT]
    bystander = await installation.workload()
    async with asyncio.timeout(60), tunnel(tunnel_gateway, far_end, bystander, "/tunnel/") as (near, far):
        after_s = await asyncio.gather(*map(is_cut_after_s, WAYS_TO_END_IT.values(), workloads))
        assert max(after_s) < CUT_WITHIN_S, dict(zip(WAYS_TO_END_IT, after_s, strict=True))
        near.send(b"a")
        assert await far.reader.readexactly(1) == b"a"
        near.close()
    for workload in workloads:
        row = await only_row(installation, workload)
        assert (row["outcome"], row["status"]) == ("cut", 101)
        assert row["cost"] == 10_000 + -(-row["bytes_in"] * 1_000 // 1024)
        assert row["bytes_in"] > 0


async def test_a_client_that_is_reset_ends_the_tunnel_at_the_upstream(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()
    async with tunnel(tunnel_gateway, far_end, workload, "/tunnel/") as (near, far):
        near.send(b"a" * 1024)
        await far.reader.readexactly(1024)
        reset(near)
        assert await far.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("client_gone", 101, 11_000)


async def test_an_upstream_that_is_reset_ends_the_tunnel_at_the_client(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()
    async with tunnel(tunnel_gateway, far_end, workload, "/tunnel/") as (near, far):
        far.send(b"b" * 10 * 1024)
        await near.reader.readexactly(10 * 1024)
        reset(far)
        assert await near.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("upstream_failed", 101, 11_000)


async def test_two_hundred_tunnels_at_once_keep_their_bytes_apart(
    installation: Installation, tunnel_gateway: Gateway, far_end: ScriptedUpstream
) -> None:
    workload = await installation.workload()

    async def one(number: int) -> None:
        async with tunnel(tunnel_gateway, far_end, workload, f"/tunnel/{number}") as (near, far):
            mine = random.Random(number).randbytes(20_000)
            near.send(mine)
            assert await far.reader.readexactly(len(mine)) == mine
            far.send(mine[::-1])
            assert await near.reader.readexactly(len(mine)) == mine[::-1]
            far.writer.close()
            assert await near.is_closed()

    await asyncio.gather(*map(one, range(200)))
    rows = await installation.settled(workload.tag)
    assert [(row["outcome"], row["bytes_in"], row["bytes_out"]) for row in rows] == [
        ("completed", 20_000, 20_000)
    ] * 200


@pytest.mark.parametrize("goes", ["by itself", "when it must"])
async def test_a_gateway_that_is_stopped_lets_a_tunnel_go_on_until_its_deadline(
    installation: Installation,
    far_end: ScriptedUpstream,
    gateway_with: StartGateway,
    tunnel_routes: Path,
    goes: str,
) -> None:
    workload = await installation.workload()
    deadline_s = 20.0 if goes == "by itself" else 1.5
    gateway = gateway_with(config=str(tunnel_routes), drain_timeout_s=str(deadline_s))
    async with tunnel(gateway, far_end, workload, "/tunnel/") as (near, far):
        gateway.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        await wait_until(lambda: is_refused(gateway.port), 10, "new connections to be refused")
        near.send(b"a")
        assert await far.reader.readexactly(1) == b"a"
        far.send(b"b")
        assert await near.reader.readexactly(1) == b"b"
        if goes == "by itself":
            far.writer.write_eof()
            assert await near.is_closed()
            near.writer.close()
        assert await near.is_closed()
        assert await far.is_closed()
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
        assert (time.monotonic() - began < deadline_s) == (goes == "by itself")
    row = await only_row(installation, workload)
    outcome = "completed" if goes == "by itself" else "cut"
    assert (row["outcome"], row["status"], row["bytes_in"], row["bytes_out"]) == (outcome, 101, 1, 1)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False
