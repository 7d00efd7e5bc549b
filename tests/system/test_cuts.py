"""Answers that outgrow their hold: it grows while there is room; where there is none they end, in words where that can be."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterable
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from control.embedded import wait_until
from tests.system.installation import Installation, Row, Workload
from tests.system.model_client import get, named, post, refusals_counted, rows_by_name, sdk, stream
from tests.system.model_upstream import ModelUpstream, Play, Visit
from tests.system.test_clients import QUESTION

EVENT = 1_000
"""What an event costs on "growing"."""

STEP = 10 * EVENT
"""By how much a hold grows there, if there is room."""

SECOND = 100_000
"""What a second costs on the routes that are priced by time: what cut in time may cost too much."""

CUT_WITHIN_S = 1.0

READ_AT_ONCE_MAX = 262_144
"""Bytes that the gateway reads of a connection at one time."""

CODINGS = ("gzip", "br", "zstd")

LONG = Play(usage="every", tokens=(1, 400), events=400, interval_s=0.02)
ASKED = {"model": "m", "messages": [], "stream": True}
WHY = "The credits ran out while the answer was under way"


async def cut_row(installation: Installation, workload: Workload, limit: int, step: int) -> Row:
    """The row of a workload's only request, which was cut: it cost no more than a step above the limit, and holds nothing."""
    (row,) = await installation.settled(workload.tag)
    assert row["outcome"] == "cut"
    assert limit - step < row["held"] <= limit
    assert limit < row["cost"] <= limit + step
    live = await installation.live("key", workload.key)
    assert (live.spent, live.held, live.in_flight) == (row["cost"], 0, 0)
    return row


def was_cut_in_time(visit: Visit, affordable: int) -> bool:
    """Whether the upstream lost its reader within a second of sending more than so many pieces."""
    assert visit.was_cut
    assert visit.ended_at is not None
    return visit.ended_at - visit.sent_at[affordable] < CUT_WITHIN_S


async def said_before_error(events: AsyncIterable[ChatCompletionChunk]) -> tuple[list[str], openai.APIError]:
    """Read a stream to the error that it ends in: what was said till then, and the error."""
    said: list[str] = []
    try:
        async for event in events:
            said += [choice.delta.content or "" for choice in event.choices]
    except openai.APIError as error:
        return said, error
    pytest.fail("the stream is whole")


async def test_a_stream_is_extended_while_there_is_room_and_its_last_event_is_an_error_of_the_sdk(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload("0.035")
    async with sdk(installation, workload, "growing") as client:
        events = await client.chat.completions.create(
            model="m", messages=[QUESTION], stream=True, extra_headers=LONG.fields
        )
        said, error = await said_before_error(events)
    assert error.message.startswith(WHY)
    assert f"the credit limit of the key {workload.key} leaves" in error.message
    assert "of 0.035 credits" in error.message
    assert "Whoever manages the key can raise the limit" in error.message
    assert (error.code, error.type) == ("budget_exceeded", "insufficient_quota")
    row = await cut_row(installation, workload, 35_000, STEP)
    used = row["cost"] // EVENT
    assert json.loads(row["units"]) == {"output_tokens": used}
    assert said == ["word "] * used
    (visit,) = models.of(workload.key)
    assert was_cut_in_time(visit, 35)


async def test_a_stream_as_fast_as_it_can_go_is_cut_before_it_is_whole(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload("0.035")
    fast = Play(usage="every", tokens=(1, 20_000), events=20_000)
    said = await post(installation, workload, "/growing/chat/completions", "cut", fast, ASKED)
    assert said.body.endswith(b"}}\n\n")
    assert WHY.encode() in said.body[-2_000:]
    (row,) = await installation.settled(workload.tag)
    assert row["outcome"] == "cut"
    assert row["cost"] // EVENT <= said.body.count(b"word ") <= row["cost"] // EVENT + 1
    (visit,) = models.of(workload.key)
    assert visit.was_cut


async def test_the_last_event_is_an_error_of_the_sdk_though_another_was_under_way(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.015")
    async with sdk(installation, workload, "growing") as client:
        events = await client.chat.completions.create(
            model="m", messages=[QUESTION], stream=True, extra_headers=replace(LONG, straddles=True).fields
        )
        said, error = await said_before_error(events)
    assert error.message.startswith(WHY)
    assert set(said) == {"word "}
    await cut_row(installation, workload, 15_000, STEP)


async def test_a_stream_for_which_there_is_room_is_whole_however_often_it_outgrows_its_hold(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.2")
    async with sdk(installation, workload, "growing") as client:
        play = Play(usage="every", tokens=(1, 95), events=95, interval_s=0.01)
        assert await stream(client, "whole", play) == "word " * 95
    rows = await rows_by_name(installation, workload.tag)
    assert (rows["whole"]["outcome"], rows["whole"]["cost"]) == ("completed", 95_000)
    assert 95_000 - STEP < rows["whole"]["held"] < 95_000 + STEP


async def test_a_raised_limit_is_room_for_a_stream_under_way(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload("0.08")
    play = Play(usage="every", tokens=(1, 120), events=120, interval_s=0.01)
    async with sdk(installation, workload, "growing") as client:
        events = await client.chat.completions.create(
            model="m", messages=[QUESTION], stream=True, extra_headers=named("raised", play)
        )
        said = 0
        async for event in events:
            said += len(event.choices)
            if said == 20:
                await installation.call("PATCH", f"/v1/keys/{workload.key}", {"credit_limit": "0.2"})
    assert said == 121
    rows = await rows_by_name(installation, workload.tag)
    assert (rows["raised"]["outcome"], rows["raised"]["cost"]) == ("completed", 120_000)


async def test_the_level_without_room_is_named(installation: Installation) -> None:
    limited = []
    for level in ("account", "organization"):
        limits = {level: "0.015"}
        organization = await installation.organization(limits.get("organization"))
        account = await installation.account(organization, limits.get("account"))
        limited.append((level, await installation.key(organization, account)))

    async def last_event(workload: Workload) -> dict[str, Any]:
        said = await post(installation, workload, "/growing/chat/completions", "cut", LONG, ASKED)
        assert (said.status, said.is_whole) == (200, True)
        last = json.loads(said.body.strip().rpartition(b"\n\n")[2].removeprefix(b"data: "))
        told: dict[str, Any] = last["error"]["metadata"]
        return told

    for told, (level, workload) in zip(
        await asyncio.gather(*(last_event(workload) for _, workload in limited)), limited, strict=True
    ):
        assert (told["level"], told["id"], told["limit"]) == (level, getattr(workload, level), "0.015")
        (row,) = await installation.settled(workload.tag)
        assert (row["outcome"], row["cost"] <= 15_000 + STEP) == ("cut", True)


async def test_a_level_that_observes_cuts_nothing(installation: Installation) -> None:
    workload = await installation.workload("0.015", enforcement="observe")
    play = Play(usage="every", tokens=(1, 60), events=60, interval_s=0.005)
    async with sdk(installation, workload, "growing") as client:
        assert await stream(client, "whole", play) == "word " * 60
    rows = await rows_by_name(installation, workload.tag)
    assert (rows["whole"]["outcome"], rows["whole"]["cost"]) == ("completed", 60_000)


async def test_what_one_request_may_cost_at_most_ends_it_too(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    async with sdk(installation, workload, "capped") as client:
        events = await client.chat.completions.create(
            model="m", messages=[QUESTION], stream=True, extra_headers=LONG.fields
        )
        _, error = await said_before_error(events)
    assert error.code == "cap_reached"
    assert "may cost 0.025 credits at most" in error.message
    (row,) = await installation.settled(workload.tag)
    assert (row["outcome"], row["cost"], row["held"]) == ("cut", 25_000, 25_000)
    (visit,) = models.of(workload.key)
    assert was_cut_in_time(visit, 25)


async def test_messages_end_with_an_event_called_error(installation: Installation) -> None:
    workload = await installation.workload("0.02")
    play = Play(events=1_000, interval_s=0.02)
    said = await post(installation, workload, "/growing-messages/messages", "cut", play, ASKED)
    assert said.is_whole
    *_, last = said.body.strip().split(b"\n\n")
    kind, data = last.split(b"\n")
    assert kind == b"event: error"
    told = json.loads(data.removeprefix(b"data: "))
    assert (told["type"], told["error"]["type"], told["error"]["code"]) == (
        "error", "insufficient_quota", "budget_exceeded",
    )  # fmt: skip
    await cut_row(installation, workload, 20_000, SECOND)


# -- where nothing can be said


async def test_a_stream_that_stalls_within_an_event_is_broken_off(installation: Installation) -> None:
    workload = await installation.workload("0.02")
    play = Play(events=10, interval_s=0.01, straddles=True, stays_after=4)
    said = await post(installation, workload, "/growing-messages/messages", "cut", play, ASKED)
    assert (said.status, said.is_whole) == (200, False)
    assert b"budget_exceeded" not in said.body  # it would be read as the rest of what is under way
    await cut_row(installation, workload, 20_000, SECOND)


async def test_a_coded_stream_ends_in_a_broken_chunk(installation: Installation) -> None:
    workloads = [await installation.workload("0.015") for _ in CODINGS]
    plays = [replace(LONG, coding=coding) for coding in CODINGS]
    path = "/growing/chat/completions"
    said = await asyncio.gather(
        *(
            post(installation, who, path, "cut", play, ASKED)
            for who, play in zip(workloads, plays, strict=True)
        )
    )
    assert [(one.status, one.is_whole) for one in said] == [(200, False)] * len(CODINGS)
    for workload in workloads:
        await cut_row(installation, workload, 15_000, STEP)


async def test_a_download_ends_in_a_broken_answer_within_a_step_of_its_limit(
    installation: Installation, models: ModelUpstream
) -> None:
    workloads = [await installation.workload("3.5") for _ in range(2)]  # 35 KiB each
    plays = [Play(events=400, interval_s=0.02, has_length=has_length) for has_length in (False, True)]
    said = await asyncio.gather(
        *(
            get(installation, who, "/download/pieces", "cut", play)
            for who, play in zip(workloads, plays, strict=True)
        )
    )
    for one, workload in zip(said, workloads, strict=True):
        assert (one.status, one.is_whole) == (200, False)
        row = await cut_row(installation, workload, 3_500_000, 1_000_000)
        assert row["bytes_out"] == len(one.body)
        assert row["cost"] == -(-row["bytes_out"] * 100_000 // 1024)
        (visit,) = models.of(workload.key)
        assert was_cut_in_time(visit, 35)


async def test_a_download_as_fast_as_it_can_go_is_cut_within_what_is_read_at_once(
    installation: Installation,
) -> None:
    workload = await installation.workload("100")  # 1000 KiB
    fast = Play(events=4_000, size=65_536)
    said = await get(installation, workload, "/download/pieces", "cut", fast)
    assert not said.is_whole
    (row,) = await installation.settled(workload.tag)
    assert (row["outcome"], row["bytes_out"]) == ("cut", len(said.body))
    assert row["bytes_out"] < 1_000 * 1024 + READ_AT_ONCE_MAX


async def test_a_long_poll_that_costs_more_than_there_is_is_refused_in_the_middle(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload("0.08")
    began = time.monotonic()
    said = await get(installation, workload, "/clock/pieces", "cut", Play(wait_s=15, events=0))
    took_s = time.monotonic() - began
    assert (said.status, said.document["code"], said.document["level"]) == (402, "budget_exceeded", "key")
    assert 0.8 <= took_s < 0.8 + CUT_WITHIN_S
    row = await cut_row(installation, workload, 80_000, SECOND)
    assert (row["status"], row["is_estimated"]) == (402, False)
    await refusals_counted(installation, workload.tag, {})
    (visit,) = models.of(workload.key)
    assert visit.was_cut


async def test_a_route_that_says_429_says_so_in_the_middle_too(installation: Installation) -> None:
    workload = await installation.workload("0.03")
    said = await get(installation, workload, "/chat-429/pieces", "cut", Play(wait_s=15, events=0))
    assert (said.status, said.fields.get("x-should-retry")) == (429, "false")
    assert said.document["error"]["code"] == "budget_exceeded"


async def test_an_answer_that_is_priced_by_the_second_is_broken_off(installation: Installation) -> None:
    workload = await installation.workload("0.05")
    said = await get(installation, workload, "/clock/pieces", "cut", Play(events=100, interval_s=0.2))
    assert (said.status, said.is_whole) == (200, False)
    await cut_row(installation, workload, 50_000, SECOND)


FRAME_HEAD = bytes((0x82, 126, 0x03, 0xE8))
"""Of a binary message of 1000 bytes."""


async def to_the_end(client: ClientConnection) -> tuple[int, ConnectionClosed]:
    """How many messages came, and how it ended."""
    received = 0
    while True:
        try:
            assert len(await client.recv()) == 1_000
        except ConnectionClosed as end:
            return received, end
        received += 1


@pytest.mark.parametrize("route", ["download", "clock"])
async def test_a_websocket_is_told_why_with_1008(installation: Installation, route: str) -> None:
    limit, step = (3_500_000, 1_000_000) if route == "download" else (60_000, 100_000)
    workload = await installation.workload(str(limit / 1_000_000))
    url = f"ws://127.0.0.1:{installation.addresses.gateway_port}/{route}/socket"
    fields = workload.bearer | named("cut", Play(events=1_000, interval_s=0.02, size=1_000))
    async with connect(url, additional_headers=fields, proxy=None, compression=None) as client:
        received, end = await to_the_end(client)
    assert end.rcvd is not None
    assert (end.rcvd.code, end.rcvd.reason.startswith(WHY)) == (1008, True)
    row = await cut_row(installation, workload, limit, step)
    assert row["status"] == 101
    framed = received * (1_000 + len(FRAME_HEAD))
    assert row["bytes_out"] == framed


async def test_a_stream_that_is_cut_leaves_the_connection_fit_for_the_next_request(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.015")
    url = f"{installation.addresses.gateway}/growing/chat/completions"
    async with installation.http.post(url, headers=workload.bearer | LONG.fields, json=ASKED) as answer:
        assert b"budget_exceeded" in await answer.read()
    await installation.call("PATCH", f"/v1/keys/{workload.key}", {"credit_limit": None})
    status, _ = await installation.ask(workload, "/flat/pieces")
    assert status == 200

    async def is_settled() -> bool:
        return (await installation.live("key", workload.key)).held == 0

    await wait_until(is_settled, 10, "the requests to be settled")
