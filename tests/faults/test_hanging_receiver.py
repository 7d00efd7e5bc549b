"""A receiver of alerts that hangs is one organization's trouble: the jobs start as quickly as ever, and say so."""

from __future__ import annotations

from control.embedded import wait_until
from tests.faults.stack import Stack
from tests.integration.receivers import receiving
from tests.system.installation import Installation


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
        await stack.start_process("jobs")
        assert receiver.inside > 0, "not ready until the receiver was given up on"
        await installation.call("DELETE", f"{destinations}/{destination['id']}")
