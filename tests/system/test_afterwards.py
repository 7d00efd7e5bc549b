"""What holds over everything that all tests of this directory did. Run last; alone, it makes a little traffic of its own."""

from __future__ import annotations

from pathlib import Path

from control.embedded import wait_until
from tests.system.installation import Installation, check_logs, logs_in
from tests.system.recording_upstream import RecordingUpstream
from tests.system.wire import request, wire


async def some_traffic(installation: Installation) -> None:
    workload = await installation.workload()
    assert (await installation.ask(workload, "/free/"))[0] == 200
    async with wire(installation.addresses.gateway_port) as client:
        client.send(request(workload, "/free/", "Content-Length: x"))
        assert (await client.answer()).status == 400


async def test_everything_that_ever_reached_the_upstream_named_exactly_one_principal(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    await some_traffic(installation)
    assert upstream.seen
    assert upstream.errors == []
    for seen in upstream.seen:
        assert seen.one("x-principal").startswith("service-account/org-")
        for name in ("x-principal-id", "x-principal-organization", "x-principal-key-id", "x-request-id"):
            assert seen.one(name)
        for name in ("authorization", "x-api-key", "proxy-authorization", "connection"):
            assert seen.all(name) == []


async def test_no_request_id_was_used_twice_but_for_a_request_that_was_sent_again(
    installation: Installation, upstream: RecordingUpstream
) -> None:
    await some_traffic(installation)
    sent: dict[str, list[str]] = {}
    for seen in upstream.seen:
        sent.setdefault(seen.request_id, []).append(f"{seen.method} {seen.target} {seen.key}")
    assert all(len(set(targets)) == 1 for targets in sent.values())


async def test_no_log_of_any_process_has_a_traceback(installation: Installation, data_dir: Path) -> None:
    await some_traffic(installation)
    assert {"gateway", "control", "jobs"} <= {log.parent.name for log in logs_in(data_dir)}
    check_logs(data_dir)


async def test_all_counters_equal_the_ledger_in_the_end(installation: Installation) -> None:
    await some_traffic(installation)

    async def nothing_is_held_or_waiting() -> bool:
        for shard in range(installation.layout.shards):
            if await installation.redis.zcard(installation.layout.holds(shard)):
                return False
            if await installation.redis.xlen(installation.layout.events(shard)):
                return False
        return True

    await wait_until(nothing_is_held_or_waiting, 40, "every hold to be settled and every event to be drained")
    tags = await installation.database.fetch("SELECT DISTINCT organization FROM usage_events")
    assert tags
    for row in tags:
        await installation.settled(row["organization"])
