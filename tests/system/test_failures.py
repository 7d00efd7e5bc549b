"""What goes wrong at either end: the client is told, the ledger says so, nothing is billed twice and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest

from control.embedded import wait_until
from tests.system.conftest import StartGateway
from tests.system.installation import Installation, Row, Workload
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import request, wire


async def only_row(installation: Installation, workload: Workload) -> Row:
    """The row of the one request that there was; waits for it."""

    async def is_written() -> bool:
        return bool(await installation.rows(workload.tag))

    await wait_until(is_written, 20, "a row")
    (row,) = await installation.settled(workload.tag)
    return row


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nobody/", 502, "upstream_unreachable"),
        ("/quick/never", 504, "upstream_timeout"),
        ("/quick/die/-1", 502, "upstream_failed"),
        ("/quick/nonsense", 502, "upstream_failed"),
    ],
)
async def test_an_upstream_that_does_not_answer_costs_nothing(
    installation: Installation, path: str, status: int, code: str
) -> None:
    workload = await installation.workload("0.10")
    answered, body = await installation.ask(workload, path)
    assert (answered, json.loads(body)["code"]) == (status, code)
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["held"], row["cost"]) == (
        "upstream_failed",
        status,
        100_000,
        0,
    )


async def test_an_upstream_that_never_answers_is_given_up_on_when_the_route_says(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    began = time.monotonic()
    assert (await installation.ask(workload, "/quick/never"))[0] == 504
    assert 0.5 <= time.monotonic() - began < 3


@pytest.mark.parametrize("play", ["die/500", "die/0", "stall"])
async def test_an_answer_that_breaks_off_is_seen_to_be_broken(installation: Installation, play: str) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, f"/quick/{play}"))
        answer = await client.answer()
        assert answer.status == 200
        assert not answer.is_whole
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("upstream_failed", 200, 100_000)
    assert row["bytes_out"] == len(answer.body)


async def test_a_client_that_hangs_up_in_mid_stream_is_billed_once_and_the_upstream_let_go(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, "/priced/stream/1000/0.05"))
        await client.reader.readuntil(b"data: 2\n\n")
    left = time.monotonic()
    (seen,) = upstream.of(workload.key)
    await wait_until(lambda: seen.closed_at is not None, 5, "the upstream's connection to be closed")
    assert seen.closed_at is not None
    assert seen.closed_at - left < 2
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("client_gone", 200, 100_000)


async def test_a_client_that_hangs_up_before_the_answer_is_billed_once(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, "/priced/never"))
        await wait_until(lambda: len(upstream.of(workload.key)) == 1, 5, "the request to arrive")
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("client_gone", 0, 100_000)


async def test_clients_that_hang_up_at_any_moment_leave_no_hold_behind(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()

    async def hang_up_after(number: int) -> None:
        async with wire(installation.addresses.gateway_port) as client:
            client.send(request(workload, "/priced/chunked/20/5000", method="POST", body=b"x" * 100))
            await client.writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(number * 0.0002):
                    await client.answer()

    await asyncio.gather(*(hang_up_after(number) for number in range(100)))
    rows = await installation.settled(workload.tag)
    assert {seen.request_id for seen in upstream.of(workload.key)} <= {row["request_id"] for row in rows}
    assert {row["outcome"] for row in rows} <= {"completed", "client_gone"}


async def test_a_head_that_does_not_arrive_in_time_is_answered_408(gateway_with: StartGateway) -> None:
    gateway = gateway_with(head_timeout_s="0.5")
    async with wire(gateway.port) as client:
        began = time.monotonic()
        client.send(b"GET /free/ HTTP/1.1\r\nHost: a\r\n")
        assert (await client.answer()).status == 408
        assert 0.5 <= time.monotonic() - began < 3
        assert await client.is_closed()
    async with wire(gateway.port) as client:  # trickling bytes is no way around it
        began = time.monotonic()
        trickle = asyncio.create_task(_trickle(client.writer))
        assert (await client.answer()).status == 408
        assert time.monotonic() - began < 3
        trickle.cancel()


async def _trickle(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /free/ HTTP/1.1\r\nHost: a\r\nX-A: ")
    while True:
        writer.write(b"b")
        await asyncio.sleep(0.05)


async def test_a_body_that_stands_still_is_given_up_on(
    installation: Installation, upstream: RecordingUpstream, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with(body_timeout_s="0.5")
    async with wire(gateway.port) as client:
        client.send(request(workload, "/priced/", "Content-Length: 1000", method="POST") + b"x" * 500)
        assert (await client.answer()).status == 408
        assert await client.is_closed()
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["bytes_in"]) == ("client_gone", 408, 500)
    (seen,) = upstream.of(workload.key)
    assert not seen.body_is_whole


async def test_a_client_that_does_not_read_is_given_up_on(
    installation: Installation, upstream: RecordingUpstream, gateway_with: StartGateway
) -> None:
    workload = await installation.workload()
    gateway = gateway_with(body_timeout_s="0.5")
    async with wire(gateway.port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport can
        client.send(request(workload, "/priced/bytes/100000000"))
        row = await only_row(installation, workload)
    assert row["outcome"] == "client_gone"
    assert row["bytes_out"] < 100_000_000
    (seen,) = upstream.of(workload.key)
    await wait_until(lambda: seen.closed_at is not None, 5, "the upstream's connection to be closed")


async def test_a_malformed_chunk_ends_the_request_at_the_upstream_too(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(
            request(workload, "/priced/", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n"
        )
        await wait_until(lambda: len(upstream.of(workload.key)) == 1, 5, "the request to arrive")
        client.send(b"zz\r\n")
        assert (await client.answer()).status == 400
        assert await client.is_closed()
    (seen,) = upstream.of(workload.key)
    await wait_until(lambda: seen.closed_at is not None, 5, "the upstream's connection to be closed")
    assert not seen.body_is_whole
    row = await only_row(installation, workload)
    assert (row["outcome"], row["status"], row["cost"]) == ("client_gone", 400, 100_000)


async def test_junk_of_any_kind_is_refused_and_leaves_the_gateway_well(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    good = request(workload, "/free/")
    junk = [
        good[:position] + noise + good[position:]
        for position in range(0, len(good), 7)
        for noise in (b"\0", b"\n", b"\xff\xfe")
    ]
    statuses = []
    for data in junk:
        async with wire(installation.addresses.gateway_port) as client:
            client.send(data)
            client.writer.write_eof()
            with contextlib.suppress(asyncio.IncompleteReadError):
                statuses.append((await client.answer()).status)
    assert set(statuses) <= {200, 400, 401, 404}
    assert statuses.count(400) > len(junk) / 2
    assert (await installation.ask(workload, "/free/"))[0] == 200
    for seen in upstream.of(workload.key):
        assert seen.one("x-principal") == workload.principal


async def test_a_half_closed_client_still_gets_its_answer(installation: Installation) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, "/free/sleep/0.2"))
        client.writer.write_eof()
        answer = await client.answer()
        assert (answer.status, answer.is_whole) == (200, True)
        assert await client.is_closed()
