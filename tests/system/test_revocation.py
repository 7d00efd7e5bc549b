"""P3: when the API has answered that a key or account is off, no request that starts later passes; and back on is at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from control.embedded import wait_until
from tests.system.installation import Installation, Workload
from tests.system.recording_upstream import RecordingUpstream

LOOPS = 8


@dataclass(slots=True)
class Load:
    """Requests that keep coming: when each started, and what became of it."""

    started: dict[str, float] = field(default_factory=dict)
    status: dict[str, int] = field(default_factory=dict)
    stopping: bool = False

    def since(self, moment: float) -> list[str]:
        """Those that started after the moment and have been answered."""
        return [name for name, at in self.started.items() if at > moment and name in self.status]

    async def until(self, count: int, moment: float) -> None:
        """Wait for so many that started after the moment."""
        await wait_until(lambda: len(self.since(moment)) >= count, 15, f"{count} more requests")


@asynccontextmanager
async def load(installation: Installation, workload: Workload) -> AsyncIterator[Load]:
    """LOOPS clients, each with a connection of its own, so that both workers are asked."""
    running = Load()

    async def loop(number: int) -> None:
        count = 0
        while not running.stopping:
            count += 1
            name = f"{number}-{count}"
            running.started[name] = time.monotonic()
            running.status[name], _ = await installation.ask(workload, f"/free/echo/{name}")

    tasks = [asyncio.create_task(loop(number)) for number in range(LOOPS)]
    try:
        yield running
    finally:
        running.stopping = True
        await asyncio.gather(*tasks)


Switch = Callable[[Installation, Workload], Awaitable[object]]


def post(noun: str, verb: str) -> Switch:
    async def switch(installation: Installation, workload: Workload) -> object:
        entity = {"keys": workload.key, "service-accounts": workload.account}[noun]
        return await installation.call("POST", f"/v1/{noun}/{entity}/{verb}")

    return switch


def delete(noun: str) -> Switch:
    async def switch(installation: Installation, workload: Workload) -> object:
        entity = {"keys": workload.key, "service-accounts": workload.account}[noun]
        return await installation.call("DELETE", f"/v1/{noun}/{entity}")

    return switch


def organization(status: str) -> Switch:
    async def switch(installation: Installation, workload: Workload) -> object:
        return await installation.call(
            "PATCH", f"/v1/organizations/{workload.organization}", {"status": status}
        )

    return switch


async def nothing_passes_after(
    off: Switch, installation: Installation, workload: Workload, upstream: RecordingUpstream, running: Load
) -> None:
    began = time.monotonic()
    await running.until(100, began)
    assert {running.status[name] for name in running.since(began)} == {200}
    await off(installation, workload)
    answered = time.monotonic()
    await running.until(200, answered)
    late = set(running.since(answered))
    assert {running.status[name] for name in late} == {401}
    arrived = {seen.target.rpartition("/")[2] for seen in upstream.of(workload.key)}
    assert not arrived & late, "a request that started after the API's answer reached the upstream"


@pytest.mark.parametrize(
    ("off", "on"),
    [
        pytest.param(post("keys", "disable"), post("keys", "enable"), id="key"),
        pytest.param(
            post("service-accounts", "deactivate"), post("service-accounts", "activate"), id="account"
        ),
        pytest.param(organization("inactive"), organization("active"), id="organization"),
    ],
)
async def test_what_is_switched_off_is_off_at_once_and_on_again_at_once(
    installation: Installation, upstream: RecordingUpstream, off: Switch, on: Switch
) -> None:
    workload = await installation.workload()
    async with load(installation, workload) as running:
        await nothing_passes_after(off, installation, workload, upstream, running)
        await on(installation, workload)
        answered = time.monotonic()
        await running.until(50, answered)
        assert {running.status[name] for name in running.since(answered)} == {200}
    await installation.settled(workload.tag)


@pytest.mark.parametrize(
    "off",
    [
        pytest.param(post("keys", "revoke"), id="revoke"),
        pytest.param(delete("keys"), id="delete-key"),
        pytest.param(delete("service-accounts"), id="delete-account"),
    ],
)
async def test_what_is_revoked_or_deleted_never_passes_again(
    installation: Installation, upstream: RecordingUpstream, off: Switch
) -> None:
    workload = await installation.workload()
    async with load(installation, workload) as running:
        await nothing_passes_after(off, installation, workload, upstream, running)
    rows = await installation.settled(workload.tag)
    assert {row["request_id"] for row in rows} == {seen.request_id for seen in upstream.of(workload.key)}


async def test_a_key_that_was_revoked_stays_off_when_its_account_is_activated_again(
    installation: Installation,
) -> None:
    workload = await installation.workload()
    assert (await installation.ask(workload, "/free/"))[0] == 200
    await installation.call("POST", f"/v1/keys/{workload.key}/revoke")
    await installation.call("POST", f"/v1/service-accounts/{workload.account}/deactivate")
    await installation.call("POST", f"/v1/service-accounts/{workload.account}/activate")
    assert (await installation.ask(workload, "/free/"))[0] == 401
