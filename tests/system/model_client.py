"""Workloads that talk to models: by the OpenAI SDK, and byte by byte. The ledger has each request by the name that it gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai

from control.embedded import wait_until
from gateway.contract.ids import OrganizationTag
from tests.system.installation import Installation, Row, Workload
from tests.system.model_upstream import Play
from tests.system.test_clients import QUESTION

REFUSALS_COUNTED_TIMEOUT_S = 20.0
UNNAMED = Play()


def sdk(
    installation: Installation, workload: Workload, route: str, *, retries: int = 0
) -> openai.AsyncOpenAI:
    """The SDK before one route."""
    base_url = f"{installation.addresses.gateway}/{route}"
    return openai.AsyncOpenAI(api_key=workload.token, base_url=base_url, max_retries=retries, timeout=30)


def named(name: str, play: Play = UNNAMED) -> dict[str, str]:
    """Fields of a request that is to be answered so, and found by this name."""
    return {"X-Request-Id": name, **play.fields}


async def complete(client: openai.AsyncOpenAI, name: str, play: Play, model: str = "m") -> str:
    """One answer that comes whole: what it says."""
    answer = await client.chat.completions.create(
        model=model, messages=[QUESTION], extra_headers=named(name, play)
    )
    return answer.choices[0].message.content or ""


async def stream(client: openai.AsyncOpenAI, name: str, play: Play, *, hang_up_after: int = 0) -> str:
    """One answer that comes in events: what it says. With `hang_up_after` so many of them, the connection is ended."""
    said = ""
    events = await client.chat.completions.create(
        model="m", messages=[QUESTION], stream=True, stream_options={"include_usage": True},
        extra_headers=named(name, play),
    )  # fmt: skip
    async with events:
        number = 0
        async for event in events:
            number += 1
            said += "".join(choice.delta.content or "" for choice in event.choices)
            if number == hang_up_after:
                break
    return said


@dataclass(frozen=True, slots=True)
class Said:
    """One answer as it was on the wire."""

    status: int
    fields: Mapping[str, str]
    body: bytes
    is_whole: bool
    """False if the connection ended before the answer did."""

    @property
    def document(self) -> Any:
        return json.loads(self.body)


async def post(
    installation: Installation,
    workload: Workload,
    path: str,
    name: str = "",
    play: Play = UNNAMED,
    body: object = None,
    *,
    gateway: str | None = None,
    method: str = "POST",
) -> Said:
    """One request on a connection of its own, with a JSON body, or bytes as they are; codings are left on."""
    fields = (named(name, play) if name else play.fields) | {"Content-Type": "application/json"}
    data = body if isinstance(body, bytes) or hasattr(body, "__aiter__") else json.dumps(body).encode()
    if method == "GET":
        data = None
    url = f"{gateway or installation.addresses.gateway}{path}"
    async with (
        aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=60)) as http,
        http.request(method, url, data=data, headers=workload.bearer | fields) as answer,
    ):
        received, is_whole = b"", True
        try:
            async for piece in answer.content.iter_any():
                received += piece
        except aiohttp.ClientPayloadError:
            is_whole = False
        return Said(answer.status, dict(answer.headers), received, is_whole)


async def get(
    installation: Installation, workload: Workload, path: str, name: str = "", play: Play = UNNAMED
) -> Said:
    return await post(installation, workload, path, name, play, method="GET")


async def rows_by_name(installation: Installation, tag: OrganizationTag) -> dict[str, Row]:
    """Once all is settled: the ledger's row of each request, by the name that it gave."""
    rows = await installation.settled(tag)
    found = {row["client_request_id"]: row for row in rows}
    assert len(found) == len(rows), "requests of one name"
    return found


async def refusals_counted(
    installation: Installation, tag: OrganizationTag, expected: Mapping[tuple[str, str, bool], int]
) -> None:
    """Wait until the ledger has exactly these refusals, by reason, level, and whether they were only observed."""
    found: dict[tuple[str, str, bool], int] = {}

    async def are_there() -> bool:
        nonlocal found
        found = await installation.refusals(tag)
        return sum(found.values()) >= sum(expected.values())

    try:
        await wait_until(are_there, REFUSALS_COUNTED_TIMEOUT_S, "the refusals to be counted")
    finally:
        assert found == expected
