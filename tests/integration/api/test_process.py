"""The control plane as a process: how it starts, what it prints, how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.integration.api.world import PEPPER

PROGRAM = """
import asyncio
from control.app import serve
from control.settings import load_settings
asyncio.run(serve(load_settings()))
"""
BOUND_S = 30


@asynccontextmanager
async def process(postgres_dsn: str, redis_url: str) -> AsyncIterator[Process]:
    env = {
        **os.environ,
        "TOLLKEEPER_POSTGRES_DSN": postgres_dsn,
        "TOLLKEEPER_REDIS_URL": redis_url,
        "TOLLKEEPER_PEPPER": PEPPER.hex(),
        "TOLLKEEPER_CONTROL_LISTEN": "127.0.0.1:0",
    }
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env=env, stdout=PIPE, stderr=PIPE
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def address_of(started: Process) -> str:
    assert started.stderr is not None
    async with asyncio.timeout(BOUND_S):
        async for line in started.stderr:
            said = json.loads(line)
            if said["event"] == "listening":
                return f"http://{said['address'][0]}"
    raise AssertionError("it ended before it listened")


async def test_the_operator_token_is_printed_at_the_first_start_only(
    migrated_dsn: str, redis_url: str
) -> None:
    async with process(migrated_dsn, redis_url) as first:
        address = await address_of(first)
        assert first.stdout is not None
        line = (await first.stdout.readline()).decode()
        found = re.fullmatch(r"Operator token, shown this once: (tko_[0-9A-Za-z]{43})\n", line)
        assert found is not None
        headers = {"Authorization": f"Bearer {found[1]}"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.get(f"{address}/v1/organizations") as answer,
        ):
            assert answer.status == 200
        first.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(first.wait(), BOUND_S) == 0

    async with process(migrated_dsn, redis_url) as second:
        await address_of(second)
        second.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(second.communicate(), BOUND_S)
        assert (second.returncode, out) == (0, b"")


async def test_a_schema_that_was_never_made_is_one_clear_line_and_status_1(
    postgres_dsn: str, redis_url: str
) -> None:
    async with process(postgres_dsn, redis_url) as started:
        _, err = await asyncio.wait_for(started.communicate(), BOUND_S)

    assert started.returncode == 1
    assert [json.loads(line)["reason"] for line in err.splitlines()] == [
        "the schema is not up to date: run `tollkeeper migrate` first"
    ]
