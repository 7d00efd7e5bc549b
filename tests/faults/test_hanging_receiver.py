"""A receiver of alerts that hangs is one organization's trouble: the jobs start as quickly as ever, and say so."""

from __future__ import annotations

import asyncio

from control.embedded import wait_until
from tests.faults.stack import Stack
from tests.integration.receivers import receiving
from tests.system.installation import Installation

READY_S_MAX = 15.0
"""What a start takes on a busy machine; a receiver is waited for up to half a minute."""


async def test_jobs_that_start_are_ready_though_a_receiver_hangs(
    stack: Stack, installation: Installation
) -> None:
    workload = await installation.workload("0.10")
    async with receiving() as receiver:
        receiver.answer = "hang"
        where = {"kind": "webhook", "url": receiver.url}
        destinations = f"/v1/organizations/{workload.organization}/alerts/destinations"
        destination = await installation.call("POST", destinations, where)
        assert (await installation.ask(workload, "/priced/"))[0] == 200
        await wait_until(lambda: receiver.inside > 0, 20, "the alert to be told")
        await stack.kill_process("jobs")
        await wait_until(lambda: not receiver.inside, 20, "the receiver to notice")
        await installation.database.execute(  # as if the lease of the killed process were over
            "UPDATE alert_deliveries SET leased_until = now() WHERE leased_until > now()"
        )
        starting = asyncio.create_task(stack.start_process("jobs"))
        try:
            await wait_until(lambda: receiver.inside > 0, 20, "the alert to be told again")
            done, _ = await asyncio.wait((starting,), timeout=READY_S_MAX)
            assert done, "not ready until the receiver has answered, or was given up on"
        finally:
            await starting
        assert receiver.inside > 0, "the receiver was given up on meanwhile"
        await installation.call("DELETE", f"{destinations}/{destination['id']}")
