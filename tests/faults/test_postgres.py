"""The gateway needs Redis only: Postgres may be away, and what happened meanwhile is written later."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.faults.load import load
from tests.faults.stack import Stack
from tests.faults.test_killed import every_request_has_its_row
from tests.system.installation import Installation, opened
from tests.system.recording_upstream import RecordingUpstream

AWAY_S = 5.0


@pytest.mark.slow
async def test_nobody_notices_that_postgres_is_away_and_the_rows_come_later(
    stack: Stack, installation: Installation, fault_upstream: RecordingUpstream
) -> None:
    workload = await installation.workload()
    async with load(installation, workload) as running:
        await stack.postgres.stop()
        stopped = time.monotonic()
        await asyncio.sleep(AWAY_S)
        await running.until(200, 100)
        during = running.since(stopped)
        await stack.postgres.start()
        await running.until(200, 100)
    assert set(running.counted()) == {200}
    assert len(during) > 200
    assert max(each.ended - each.began for each in during) < 1
    async with opened(stack.addresses) as again:
        rows = await every_request_has_its_row(again, workload, fault_upstream)
    assert len(rows) == len(running.outcomes)


async def test_what_the_rest_api_cannot_save_it_does_not_say_is_done(
    stack: Stack, installation: Installation
) -> None:
    workload = await installation.workload()
    await stack.postgres.stop()
    try:
        headers = {"Authorization": f"Bearer {stack.addresses.operator_token}"}
        url = f"{stack.addresses.control}/v1/keys/{workload.key}/disable"
        async with installation.http.post(url, headers=headers) as answer:
            assert answer.status == 503
            assert (await answer.json(content_type=None))["status"] == 503
        assert (await installation.ask(workload, "/free/"))[0] == 200
    finally:
        await stack.postgres.start()
    async with opened(stack.addresses) as again:
        await again.call("POST", f"/v1/keys/{workload.key}/disable")
        assert (await again.ask(workload, "/free/"))[0] == 401
