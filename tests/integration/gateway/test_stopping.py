"""Real gateways that are stopped, and workers that cannot be started: soon over, and nobody left waiting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psutil
import pytest

from control.embedded import wait_until
from gateway.settings import load_settings
from gateway.supervisor import Supervisor

SOON_S = 10.0
"""Far less than the drain timeout of these gateways, and enough on a busy machine."""


@asynccontextmanager
async def gateway(
    redis_url: str, **settings: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A gateway, and what it says when it listens. Its workers may still be starting."""
    given = {
        "listen": "127.0.0.1:0", "management_listen": "127.0.0.1:0", "redis_url": redis_url, "pepper": "00" * 32,
        "upstream": "http://127.0.0.1:9", "drain_timeout_s": "30", **settings,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "gateway", stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        env={**os.environ, **{f"TOLLKEEPER_{name.upper()}": value for name, value in given.items()}},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        said: dict[str, Any] = {}
        while said.get("event") != "gateway_listening":
            said = json.loads(await asyncio.wait_for(process.stderr.readline(), SOON_S))
        yield process, said
    finally:
        if process.returncode is None:
            for child in psutil.Process(process.pid).children():
                child.kill()
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.1])
async def test_a_gateway_that_is_told_to_stop_while_it_starts_stops_soon(
    redis_url: str, after_s: float
) -> None:
    async with gateway(redis_url, workers="2") as (process, _):
        await asyncio.sleep(after_s)  # not for luck: any moment of starting will do
        process.terminate()
        async with asyncio.timeout(SOON_S):
            _, errors = await process.communicate()
        assert process.returncode == 0
        assert b"worker_killed" not in errors
        assert b"Unknown child process" not in errors


async def test_whoever_connects_to_a_gateway_that_stops_is_turned_away(redis_url: str) -> None:
    async with gateway(redis_url) as (process, said):
        address = "127.0.0.1", said["port"]
        with socket.create_connection(
            address, SOON_S
        ) as busy:  # accepted by a worker: a request is on its way
            busy.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\nGET /y HTTP/1.1\r\nHos")
            assert await asyncio.to_thread(busy.recv, 100)
            process.terminate()

            def is_turned_away() -> bool:
                try:
                    socket.create_connection(address, SOON_S).close()
                except ConnectionRefusedError:
                    return True
                return False

            await wait_until(is_turned_away, SOON_S, "a connection that is refused")
            assert process.returncode is None, "what is under way is still waited for"


async def test_a_worker_that_does_not_answer_makes_stopping_no_longer_however_often_it_was_asked(
    redis_url: str,
) -> None:
    async with gateway(redis_url, drain_timeout_s="0") as (process, said):
        supervisor = psutil.Process(process.pid)
        await wait_until(lambda: bool(supervisor.children()), SOON_S, "a worker")
        (worker,) = supervisor.children()
        host, _, port = said["management"].rpartition(":")

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer

        worker.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        answers = await asyncio.gather(*(ask() for _ in range(20)))
        assert {answer.split(b" ", 2)[1] for answer in answers} == {b"503"}
        assert time.monotonic() - began < SOON_S


async def test_a_worker_that_could_not_be_started_is_tried_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = asyncio.create_subprocess_exec, [OSError(11, "Resource temporarily unavailable")] * 2

    async def sometimes(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if failures:
            raise failures.pop()
        return await real(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", sometimes)
    for name, value in (("PEPPER", "00" * 32), ("UPSTREAM", "http://127.0.0.1:9"), ("REDIS_URL", redis_url)):
        monkeypatch.setenv(f"TOLLKEEPER_{name}", value)
    load = partial(load_settings, {"listen": "127.0.0.1:0", "management_listen": "127.0.0.1:0"})
    over = Supervisor(load(), dict(os.environ), load)
    running = asyncio.create_task(over.run())
    await wait_until(
        lambda: bool(over._places) and over._places[0].worker is not None,
        SOON_S,
        "a worker that was started",
    )
    assert failures == []
    over._stopping.set()
    async with asyncio.timeout(SOON_S):
        assert await running == 0
