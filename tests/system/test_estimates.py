"""What is held for a request before it is forwarded: the whole of what it may cost, or it is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import openai
import pytest

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.model_client import named, post, refusals_counted, rows_by_name, sdk
from tests.system.model_upstream import ModelUpstream, Play
from tests.system.test_clients import QUESTION
from tests.system.wire import request, wire

PATH = "/estimated/chat/completions"
BASE = 1_000
A_TOKEN = 10
A_KIB = 100
MISSING = 4_000 * A_TOKEN
"""What is held where the request does not say how many tokens it asks for."""
CAP = 500_000

PLAY = Play(tokens=(1, 7))


def held_for(tokens: int, body_bytes: int) -> int:
    """Microcredits for a request that asks for so many tokens and announces so many bytes."""
    return BASE + A_TOKEN * tokens + -(-body_bytes * A_KIB // 1024)


async def test_the_sdk_is_held_for_the_tokens_that_it_asks_for_and_charged_for_those_it_gets(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    async with sdk(installation, workload, "estimated") as client:
        create = client.chat.completions.create
        await create(model="m", messages=[QUESTION], max_tokens=250, extra_headers=named("old", PLAY))
        await create(
            model="m", messages=[QUESTION], max_completion_tokens=60, extra_headers=named("new", PLAY)
        )
        await create(
            model="m", messages=[QUESTION], max_completion_tokens=60, max_tokens=9_000, extra_headers=named("both", PLAY)
        )  # fmt: skip
        await create(model="m", messages=[QUESTION], extra_headers=named("none", PLAY))
    asked = {"old": 250, "new": 60, "both": 9_000, "none": 4_000}
    sizes = [visit.body_bytes for visit in models.of(workload.key)]
    rows = await rows_by_name(installation, workload.tag)
    assert {name: (row["held"], row["cost"], row["bytes_in"]) for name, row in rows.items()} == {
        name: (held_for(tokens, size), 7 * A_TOKEN, size)
        for (name, tokens), size in zip(asked.items(), sizes, strict=True)
    }


async def test_a_hold_is_whole_or_the_request_is_refused_and_it_never_shrinks_to_what_is_left(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload("0.02")
    async with sdk(installation, workload, "estimated") as client:
        create = client.chat.completions.create
        with pytest.raises(openai.APIStatusError) as refused:
            await create(model="m", messages=[QUESTION], max_tokens=1_900)
        assert refused.value.status_code == 402
        told = refused.value.body["metadata"]  # type: ignore[index]
        assert (told["limit"], told["spent"], told["held"], told["remaining"]) == ("0.02", "0", "0", "0.02")
        assert float(told["estimate"]) > 0.02
        assert "ask for less at once" in refused.value.message
        await create(model="m", messages=[QUESTION], max_tokens=1_800, extra_headers=named("less", PLAY))
    assert len(models.of(workload.key)) == 1
    rows = await rows_by_name(installation, workload.tag)
    assert [(name, row["cost"]) for name, row in rows.items()] == [("less", 70)]
    await refusals_counted(installation, workload.tag, {("budget_exceeded", "key", False): 1})


async def test_what_a_request_says_of_its_tokens_must_be_a_count_and_be_said_once(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    held = {
        "whole": b'{"max_tokens": 12}', "as a float": b'{"max_tokens": 1.2e1}', "null": b'{"max_tokens": null}',
        "elsewhere": b'{"x": {"max_tokens": 5}}', "zero": b'{"max_tokens": 0}', "too many": b'{"max_tokens": 1000000}',
    }  # fmt: skip
    for name, body in held.items():
        said = await post(installation, workload, PATH, name.replace(" ", "-"), PLAY, body)
        assert said.status == 200, name
    refused = [
        b'{"max_tokens": -1}', b'{"max_tokens": 1.5}', b'{"max_tokens": "9"}', b'{"max_tokens": true}',
        b'{"max_tokens": 9007199254740993}', b'{"max_tokens": 1, "max_tokens": 2}', b'{"max_tokens": 1, "Max_Tokens": 2}',
        b'{"max_tokens": 1, "max\\u005ftokens": 2}',
    ]  # fmt: skip
    for body in refused:
        said = await post(installation, workload, PATH, "refused", PLAY, body)
        assert (said.status, said.document["error"]["code"]) == (400, "bad_request"), body
    rows = await rows_by_name(installation, workload.tag)
    tokens = {"whole": 12, "as a float": 12, "null": 4_000, "elsewhere": 4_000, "zero": 0, "too many": 10**6}
    assert {name: row["held"] for name, row in rows.items()} == {
        name.replace(" ", "-"): min(held_for(tokens[name], len(body)), CAP) for name, body in held.items()
    }
    assert len(models.of(workload.key)) == len(held)
    await refusals_counted(installation, workload.tag, {("bad_request", "", False): len(refused)})


async def slowly(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0.02)


async def test_a_body_that_comes_in_pieces_is_waited_for_up_to_the_bound_and_passed_on_whole(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    small = [b'{"messages": ["', b"x" * 30_000, b'"], "max_', b'tokens": ', b"1", b"23", b"}"]
    large = [b'{"messages": ["', *[b"x" * 30_000] * 20, b'"], "max_tokens": 123}']
    for name, pieces in (("small", small), ("large", large)):
        assert (await post(installation, workload, PATH, name, PLAY, slowly(pieces))).status == 200
    announced = b"".join(large)
    assert (await post(installation, workload, PATH, "announced", PLAY, announced)).status == 200
    seen = {visit.sha256: visit.body_bytes for visit in models.of(workload.key)}
    assert list(seen.values()) == [len(b"".join(small)), len(announced)]
    rows = await rows_by_name(installation, workload.tag)
    assert {name: row["held"] for name, row in rows.items()} == {
        "small": held_for(123, len(b"".join(small))), "large": held_for(4_000, 65_536),
        "announced": held_for(4_000, len(announced)),
    }  # fmt: skip


async def test_nothing_is_held_while_a_body_is_waited_for_and_a_client_that_goes_then_is_no_row(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    async with wire(installation.addresses.gateway_port) as client:
        fields = ("Content-Length: 1000", "Content-Type: application/json", "Expect: 100-continue")
        client.send(request(workload, PATH, *fields, method="POST"))
        assert (await client.answer(skip_interim=False)).status == 100
        client.send(b'{"max_tokens": 5')
        assert await client.still_open()
        live = await installation.live("key", workload.key)
        assert (live.held, live.in_flight, models.of(workload.key)) == (0, 0, [])
        client.send(b"}" + b" " * 983)
        assert (await client.answer()).status == 200
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, PATH, *fields, method="POST"))
        assert (await client.answer(skip_interim=False)).status == 100
    rows = await installation.settled(workload.tag)
    assert [row["held"] for row in rows] == [held_for(5, 1000)]


async def test_an_estimate_is_what_is_charged_where_no_usage_is_reported(installation: Installation) -> None:
    workload = await installation.workload()
    body = json.dumps({"messages": [], "max_tokens": 300}).encode()
    said = await post(installation, workload, PATH, "silent", Play(usage="none"), body)
    assert said.status == 200
    rows = await rows_by_name(installation, workload.tag)
    row = rows["silent"]
    assert (row["cost"], row["held"], row["is_estimated"]) == (*[held_for(300, len(body))] * 2, True)


async def hold_at_once(installation: Installation, workload: Workload, count: int) -> list[int]:
    body = json.dumps({"messages": [], "max_tokens": 900}).encode()
    said = await asyncio.gather(
        *(
            post(installation, workload, PATH, f"n{number}", Play(wait_s=0.5, tokens=(1, 1)), body)
            for number in range(count)
        )
    )
    return [one.status for one in said]


async def test_of_many_at_once_as_many_pass_as_their_estimates_leave_room_for(
    installation: Installation,
) -> None:
    workload = await installation.workload("0.05")  # each holds 0.010004
    statuses = await hold_at_once(installation, workload, 12)
    assert sorted(statuses) == [200] * 4 + [402] * 8
    assert len(await installation.settled(workload.tag)) == 4
    assert (await hold_at_once(installation, workload, 1)) == [200]

    async def is_free() -> bool:
        return (await installation.live("key", workload.key)).held == 0

    await wait_until(is_free, 10, "the holds to come back")
