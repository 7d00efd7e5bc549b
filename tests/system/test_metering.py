"""What answers say that they used is what they cost, to the microcredit, however they say it and however they end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import openai
import pytest
from websockets.asyncio.client import connect

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.metered_routes import HOLD, chat_cost
from tests.system.model_client import complete, get, named, post, rows_by_name, sdk, stream
from tests.system.model_upstream import ModelUpstream, Play, Usage
from tests.system.test_clients import QUESTION

CODINGS = ("", "gzip", "deflate", "br")
"""What the SDK can read."""

CHAT = {"model": "m", "messages": [QUESTION]}
TOKENS = {"input_tokens": 12_345, "output_tokens": 101}
NOTHING: dict[str, int] = {}


Charge = tuple[str, int, int, dict[str, int], bool]
"""Outcome, status, cost, units, and whether it is estimated."""


async def charges(installation: Installation, workload: Workload) -> dict[str, Charge]:
    """Once all is settled: what each request was charged, by its name."""
    rows = await rows_by_name(installation, workload.tag)
    return {
        name: (row["outcome"], row["status"], row["cost"], json.loads(row["units"]), row["is_estimated"])
        for name, row in rows.items()
    }


def charge_of(usage: Usage) -> Charge:
    """What a whole answer with TOKENS costs."""
    if usage in ("none", "null"):
        return "completed", 200, HOLD, NOTHING, True
    if usage == "zero":
        return "completed", 200, chat_cost(0, 0), {"input_tokens": 0, "output_tokens": 0}, False
    if usage == "partly":
        return "completed", 200, chat_cost(12_345, 0), {"input_tokens": 12_345}, False
    return "completed", 200, chat_cost(12_345, 101), TOKENS, False


def test_the_expected_cost_is_what_it_says() -> None:
    assert chat_cost(12_345, 101) == 100 + 1_852 + 1_263


REPORTS: list[tuple[str, Usage]] = [
    ("last-event", "last"), ("last-event", "every"), ("last-event", "none"), ("last-event", "zero"),
    ("last-event", "null"), ("last-event", "partly"), ("each-event", "increments"), ("each-event", "last"),
]  # fmt: skip
"""Routes, and how upstreams behind them report."""


async def test_the_openai_sdk_is_charged_for_what_is_reported_in_any_coding_streamed_or_not(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    expected: dict[str, Charge] = {}

    async def ask(route: str, usage: Usage) -> set[str]:
        async with sdk(installation, workload, route) as client:
            said = set()
            for coding in CODINGS:
                for way in (complete, stream):
                    name = f"{route}.{usage}.{coding}.{way.__name__}"
                    expected[name] = charge_of(usage)
                    said.add(await way(client, name, Play(usage=usage, coding=coding)))
            return said

    assert set.union(*await asyncio.gather(*(ask(*report) for report in REPORTS))) == {"word " * 6}
    assert await charges(installation, workload) == expected
    assert len(expected) == 64


async def test_a_client_that_hangs_up_after_the_third_event_is_charged_for_what_was_used_till_then(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    units = {"input_tokens": 12_345, "output_tokens": 21}
    reported = ("client_gone", 200, chat_cost(12_345, 21), units, False)
    silent = ("client_gone", 200, HOLD, NOTHING, True)
    ways: list[tuple[str, Usage, Charge]] = [
        ("last-event", "every", reported), ("each-event", "increments", reported),
        ("last-event", "last", silent), ("last-event", "zero", silent),
    ]  # fmt: skip
    expected: dict[str, Charge] = {}

    async def hang_up(route: str, usage: Usage, charge: Charge, coding: str) -> str:
        name = f"{route}.{usage}.{coding}"
        expected[name] = charge
        play = Play(usage=usage, coding=coding, events=10, tokens=(12_345, 70), stays_after=3)
        async with sdk(installation, workload, route) as client:
            return await stream(client, name, play, hang_up_after=3)

    asked = (hang_up(*way, coding) for way in ways for coding in CODINGS)
    assert set(await asyncio.gather(*asked)) == {"word " * 3}
    assert await charges(installation, workload) == expected
    assert len(expected) == 16


async def test_codings_that_the_sdk_cannot_read_are_metered_and_passed_on_unchanged(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    for name, more in (("whole", {}), ("stream", {"stream": True})):
        said = await post(
            installation, workload, "/last-event/chat/completions", name, Play(coding="zstd"), CHAT | more
        )
        assert (said.status, said.fields["Content-Encoding"], said.body[:4]) == (
            200,
            "zstd",
            b"\x28\xb5\x2f\xfd",
        )
    assert await charges(installation, workload) == dict.fromkeys(("whole", "stream"), charge_of("last"))


async def test_a_coding_that_nobody_knows_is_charged_what_was_estimated(installation: Installation) -> None:
    workload = await installation.workload()
    answer = await post(
        installation, workload, "/last-event/chat/completions", "odd", Play(coding="compress"), CHAT
    )
    assert answer.status == 200
    assert await charges(installation, workload) == {"odd": ("completed", 200, HOLD, NOTHING, True)}


# -- messages in the manner of Anthropic


def message_cost(prompt: int, completion: int) -> int:
    return 3 * prompt + 15 * completion


async def test_messages_report_their_input_at_the_start_and_their_output_at_the_end(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    names = [
        f"{'stream' if streams else 'whole'}.{coding}" for streams in (True, False) for coding in CODINGS
    ]
    for name in names:
        play = Play(coding=name.rpartition(".")[2], tokens=(1_000, 33))
        body = {"model": "m", "max_tokens": 100, "messages": [QUESTION], "stream": name.startswith("stream")}
        said = await post(installation, workload, "/messages/messages", name, play, body)
        assert (said.status, said.is_whole) == (200, True)
    units = {"input_tokens": 1_000, "output_tokens": 33}
    expected = ("completed", 200, message_cost(1_000, 33), units, False)
    assert await charges(installation, workload) == dict.fromkeys(names, expected)


async def test_a_message_that_breaks_off_is_charged_for_what_was_reported_or_estimated_if_half_of_it_was(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    body = {"model": "m", "max_tokens": 100, "messages": [QUESTION], "stream": True}
    ways: list[tuple[str, Usage]] = [("told", "last"), ("half-told", "partly")]
    for name, usage in ways:
        play = Play(tokens=(1_000, 33), events=8, dies="midway", usage=usage)
        said = await post(installation, workload, "/messages/messages", name, play, body)
        assert (said.status, said.is_whole) == (200, False)
    units = {"input_tokens": 1_000, "output_tokens": 1}
    assert await charges(installation, workload) == {
        "told": ("upstream_failed", 200, message_cost(1_000, 1), units, False),
        "half-told": ("upstream_failed", 200, HOLD, {"input_tokens": 1_000}, True),
    }


async def test_what_nobody_meters_on_a_metered_route_is_charged_what_was_estimated(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    url = f"ws://127.0.0.1:{installation.addresses.gateway_port}/last-event/socket"
    fields = workload.bearer | named("tunnel", Play(events=3))
    async with connect(url, additional_headers=fields, proxy=None) as client:
        assert [len(message) async for message in client] == [1_024] * 3
    await get(installation, workload, "/last-event/pieces", "bytes", Play(events=3))
    assert await charges(installation, workload) == {
        "tunnel": ("completed", 101, HOLD, NOTHING, True),
        "bytes": ("completed", 200, HOLD, NOTHING, True),
    }


# -- header fields


async def test_a_header_field_says_what_was_used(installation: Installation) -> None:
    workload = await installation.workload()
    said = {"17": "17", "zero": "0", "none": "", "words": "many", "negative": "-3", "list": "3, 4"}
    for name, units in said.items():
        play = Play(units=units, events=0)
        assert (await get(installation, workload, "/header/pieces", name, play)).status == 200
    await get(installation, workload, "/header/pieces", "stream", Play(units="5", events=3))
    estimated = ("completed", 200, 5_000, NOTHING, True)
    assert await charges(installation, workload) == {
        "17": ("completed", 200, 1_000 + 17 * 200, {"units": 17}, False),
        "zero": ("completed", 200, 1_000, {"units": 0}, False),
        "stream": ("completed", 200, 1_000 + 5 * 200, {"units": 5}, False),
        "none": estimated, "words": estimated, "negative": estimated, "list": estimated,
    }  # fmt: skip


# -- rates that depend on the model


async def test_what_is_not_in_the_table_of_rates_is_refused_before_it_reaches_the_upstream(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    async with sdk(installation, workload, "by-model") as client:
        for model in ("small", "large"):
            await complete(client, model, Play(tokens=(1, 500)), model)
        with pytest.raises(openai.BadRequestError) as refused:
            await complete(client, "unknown", Play(), "huge")
        assert (refused.value.code, refused.value.param) == ("unpriced", "/model")
        assert '"huge"' in refused.value.message
    bodies = {
        b'{"messages": []}': "unpriced",
        b"model=small": "unpriced",
        b'{"model": null}': "unpriced",
        b'{"model": "small", "model": "large"}': "bad_request",
        b'{"model": "small", "Model": "large"}': "bad_request",
    }
    for body, code in bodies.items():
        said = await post(installation, workload, "/by-model/chat/completions", body=body)
        assert (said.status, said.document["error"]["code"]) == (400, code), body
    rows = await rows_by_name(installation, workload.tag)
    assert {name: (row["cost"], row["held"]) for name, row in rows.items()} == {
        "small": (500, HOLD),
        "large": (10_000, HOLD),
    }
    assert len(models.of(workload.key)) == 2


async def test_a_second_model_behind_what_was_read_ahead_ends_the_request(
    installation: Installation, models: ModelUpstream
) -> None:
    workload = await installation.workload()
    first = b'{"model": "small", "messages": ["' + b"x" * 20_000

    async def in_two_pieces(rest: bytes, arrived_before: int) -> AsyncIterator[bytes]:
        yield first
        await wait_until(
            lambda: len(models.of(workload.key)) > arrived_before, 15, "the request to reach the upstream"
        )
        yield rest

    path, play = "/by-model/chat/completions", Play(tokens=(1, 500))
    fine = await post(installation, workload, path, "one", play, in_two_pieces(b'"], "n": 1}', 0))
    assert fine.status == 200
    said = await post(installation, workload, path, "two", play, in_two_pieces(b'"], "model": "large"}', 1))
    assert (said.status, said.document["error"]["code"]) == (400, "bad_request")
    assert await charges(installation, workload) == {
        "one": ("completed", 200, 500, {"output_tokens": 500}, False),
        "two": ("client_gone", 400, HOLD, NOTHING, True),
    }
    whole, broken = models.of(workload.key)
    assert (whole.body_bytes, broken.was_cut) == (len(first) + len(b'"], "n": 1}'), True)


async def test_a_default_rate_serves_what_is_not_in_the_table(installation: Installation) -> None:
    workload = await installation.workload()
    play = Play(tokens=(1, 100))
    bodies = {"small": {"model": "small"}, "other": {"model": "huge"}, "silent": {"messages": []}}
    for name, body in bodies.items():
        answer = await post(installation, workload, "/by-model-or-else/chat/completions", name, play, body)
        assert answer.status == 200
    rows = await rows_by_name(installation, workload.tag)
    assert {name: row["cost"] for name, row in rows.items()} == {
        "small": 100,
        "other": 50_000,
        "silent": 50_000,
    }


async def test_rates_may_depend_on_the_model_that_answers(installation: Installation) -> None:
    workload = await installation.workload()
    for name, model in (("small", "small"), ("other", "huge")):
        for streams in (False, True):
            play = Play(tokens=(1, 100), model=model)
            body = CHAT | {"stream": streams}
            said = await post(
                installation, workload, "/by-answer/chat/completions", f"{name}.{streams}", play, body
            )
            assert said.status == 200
    rows = await rows_by_name(installation, workload.tag)
    assert {name: row["cost"] for name, row in rows.items()} == {
        "small.False": 100, "small.True": 100, "other.False": 50_000, "other.True": 50_000
    }  # fmt: skip


# -- failures


async def test_an_upstream_that_answers_an_error_is_charged_as_measured_and_not_as_estimated(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    async with sdk(installation, workload, "last-event") as client:
        errors = {429: openai.RateLimitError, 500: openai.InternalServerError, 400: openai.BadRequestError}
        for status, error in errors.items():
            for ask in (complete, stream):
                with pytest.raises(error, match="not now"):
                    await ask(client, f"{status}.{ask.__name__}", Play(status=status))
    assert await charges(installation, workload) == {
        f"{status}.{name}": ("completed", status, 100, NOTHING, False)
        for status in errors
        for name in ("complete", "stream")
    }


async def test_an_upstream_that_dies_before_its_answer_costs_nothing_unless_the_route_says_so(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    dead = Play(dies="unheard")
    said = await post(installation, workload, "/last-event/chat/completions", "free", dead, CHAT)
    assert said.status == 502
    said = await post(installation, workload, "/charged/chat/completions", "charged", dead, CHAT)
    assert said.status == 502
    assert await charges(installation, workload) == {
        "free": ("upstream_failed", 502, 0, NOTHING, False),
        "charged": ("upstream_failed", 502, 10_000, NOTHING, False),
    }


async def test_an_upstream_that_dies_in_its_answer_costs_what_was_used(installation: Installation) -> None:
    workload = await installation.workload()
    ways: dict[str, tuple[Play, bool]] = {
        "told": (Play(dies="midway", events=9, tokens=(12_345, 90), usage="every"), True),
        "untold": (Play(dies="midway", events=9, usage="last"), True),
        "half a document": (Play(dies="midway"), False),
    }
    for name, (play, streams) in ways.items():
        body = CHAT | {"stream": streams}
        path = "/last-event/chat/completions"
        said = await post(installation, workload, path, name.replace(" ", "-"), play, body)
        assert (said.status, said.is_whole) == (200, False)
    silent = ("upstream_failed", 200, HOLD, NOTHING, True)
    assert await charges(installation, workload) == {
        "told": (
            "upstream_failed", 200, chat_cost(12_345, 50), {"input_tokens": 12_345, "output_tokens": 50}, False
        ),
        "untold": silent,
        "half-a-document": silent,
    }  # fmt: skip
