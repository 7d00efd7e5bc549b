"""Alerts from the stream to their receivers: each told once, through double delivery, dead receivers and killed processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import asyncpg
import orjson
import pytest
from standardwebhooks import Webhook

from control.domain import deliveries
from control.jobs import alerts, drain, publish
from control.jobs.alerts import Told
from control.jobs.context import Context
from control.jobs.drain import Drained
from tests.integration.jobs.alert_world import Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import receiving, until


@pytest.fixture
async def alerted(world: World) -> Alerted:
    return await alerted_in(world)


async def test_a_crossing_is_one_alert_however_often_it_is_drained_or_found_again(alerted: Alerted) -> None:
    crossing = alerted.crossing(80)
    await alerted.world.append(alerted.workload, crossing.encode())
    await alerted.world.append(alerted.workload, crossing.encode())
    assert await drain.run_once(alerted.world.context) == Drained(alerts=1)

    found_again = alerted.crossing(80, spent=4_500_000, at_ms=1_900_000_009_000)
    others = [alerted.crossing(100), alerted.crossing(80, limit=9_000_000), alerted.crossing(80, window_ms=5)]
    await alerted.cross(crossing, found_again, *others)

    rows = await alerted.alerts()
    assert len(rows) == 4
    assert alerted.metric("alerts_total") == 4
    (first,) = [
        row
        for row in rows
        if (row["threshold"], row["limit_microcredits"], row["window_ms"]) == (80, 5_000_000, 0)
    ]
    assert (first["spent_microcredits"], first["name"]) == (4_100_000, f"key of {alerted.workload.name}")
    assert (first["account"], first["account_name"]) == (alerted.workload.account, alerted.workload.name)
    assert (first["organization_name"], first["reset_period"]) == ("organization-0", "daily")


async def test_two_drains_at_once_make_one_alert_of_a_crossing(alerted: Alerted, migrated_dsn: str) -> None:
    other = await asyncpg.connect(migrated_dsn)
    for threshold in range(1, 101):
        await alerted.world.append(alerted.workload, alerted.crossing(threshold).encode())

    context = alerted.world.context
    both = await asyncio.gather(drain.run_once(context), drain.run_once(replace(context, postgres=other)))
    await other.close()

    assert sum(done.alerts for done in both) == 100
    assert len(await alerted.alerts()) == 100


async def test_a_crossing_of_what_the_rules_do_not_have_is_an_alert_all_the_same(alerted: Alerted) -> None:
    await alerted.cross(
        alerted.crossing(80, id="nobodyNobodyXYZA"), alerted.crossing(90, level="account", id="sa_x")
    )

    assert [(row["name"], row["reset_period"]) for row in await alerted.alerts()] == [(None, "never")] * 2


async def test_an_impossible_crossing_is_set_aside_and_blocks_nothing(alerted: Alerted) -> None:
    wrong = [alerted.crossing(80, spent=2**60), alerted.crossing(70_000), alerted.crossing(80, at_ms=10**18)]
    for crossing in [*wrong, alerted.crossing(100)]:
        await alerted.world.append(alerted.workload, crossing.encode())

    assert await drain.run_once(alerted.world.context) == Drained(rejected=3, alerts=1)
    assert await alerted.world.undrained() == 0


async def test_a_request_that_takes_a_key_over_a_threshold_is_told_once(world: World) -> None:
    alerted = Alerted(world, await world.add_workload("daily", limit=1_000))
    await publish.run_once(world.context)
    async with receiving() as receiver:
        await alerted.add(url=receiver.url)
        for _ in range(10):
            await world.request(alerted.workload, 100, hold=100)
        await drain.run_once(world.context)
        await alerted.tell()

    said = [orjson.loads(each.body)["data"] for each in receiver.taken]
    assert sorted((each["threshold"], each["spent"], each["id"]) for each in said) == [
        (80, "0.0008", alerted.workload.key),
        (100, "0.001", alerted.workload.key),
    ]


async def test_an_alert_reaches_every_destination_that_wants_it_signed_and_once(alerted: Alerted) -> None:
    async with receiving() as receiver:
        eager = await alerted.add(url=receiver.url)
        late = await alerted.add(url=receiver.url + "?late", min_threshold=100)
        off = await alerted.add(url=receiver.url + "?off")
        await alerted.enable(off, enabled=False)
        await alerted.cross(alerted.crossing(80), alerted.crossing(100))

        assert await alerted.tell() == Told(fanned_out=2, delivered=3)
        assert await alerted.tell() == Told()

    assert len(receiver.taken) == 3
    ids = {row["id"]: row["threshold"] for row in await alerted.alerts()}
    for each in receiver.taken:
        said = None
        for destination in (eager, late):
            try:
                said = Webhook(alerted.secrets[destination.id]).verify(each.body, each.headers)
            except Exception:  # noqa: BLE001, S112 - the other one's secret
                continue
        assert said is not None
        assert (said["type"], said["data"]["threshold"]) == ("alert.threshold_crossed", ids[each.id])
        assert said["data"]["resets_at"] == "1970-01-02T00:00:00.000Z"
    assert alerted.metric("alert_deliveries_total", kind="webhook", result="delivered") == 3
    assert (await alerted.destination(eager)).delivered_at is not None
    assert {row["destination"] for row in await alerted.deliveries()} == {eager.id, late.id}


async def test_two_jobs_at_once_send_nothing_twice(alerted: Alerted, migrated_dsn: str) -> None:
    other = await asyncpg.connect(migrated_dsn)
    async with receiving() as receiver:
        receiver.takes_s = 0.02  # so that both look for more while some are on their way
        for number in range(5):
            await alerted.add(url=f"{receiver.url}?{number}")
        await alerted.cross(*(alerted.crossing(threshold) for threshold in range(1, 41)))
        context = alerted.world.context
        both = await asyncio.gather(
            alerted.tell(), alerts.run_once(replace(context, postgres=other), alerted.post)
        )
    await other.close()

    assert sum(told.delivered for told in both) == len(receiver.taken) == 200
    assert receiver.most_at_once <= 2 * deliveries.CLAIM_MAX


async def test_one_receiver_is_not_flooded_and_takes_no_others_turn(world: World) -> None:
    alerted = await alerted_in(world, timeout_s=0.5)
    async with receiving() as hanging, receiving() as well:
        hanging.answer = "hang"
        await alerted.add(url=hanging.url)
        await alerted.add(url=well.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in range(1, 31)))
        telling = asyncio.create_task(alerted.tell())
        await until(lambda: len(well.taken) == 30)
        assert hanging.most_at_once <= deliveries.PER_DESTINATION_MAX
        assert well.most_at_once <= deliveries.PER_DESTINATION_MAX
        world.context.stopping.set()
        await asyncio.wait_for(telling, 30)
    assert len(hanging.refused) < 30, "a failing one is tried with one thing at a time"


async def test_a_claim_reads_as_little_however_much_waits(alerted: Alerted) -> None:
    """Also before anybody has counted the rows for the planner."""
    postgres = alerted.postgres
    for number in range(3):
        await alerted.add(url=f"http://127.0.0.1:1/{number}")
    await alerted.make_alerts("due", 10_000)
    await postgres.execute(
        "INSERT INTO alert_deliveries (alert, destination, next_attempt_at)"
        " SELECT a.id, t.id, now() FROM alerts a CROSS JOIN alert_destinations t"
    )
    for _ in range(2):
        (plan,) = orjson.loads(
            await postgres.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {deliveries._CLAIM}",
                deliveries.PER_DESTINATION_MAX,
                deliveries.CLAIM_MAX,
                0,
            )
        )
        assert plan["Plan"]["Actual Rows"] == 3 * deliveries.PER_DESTINATION_MAX
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 1_000
        await postgres.execute("ANALYZE")


async def test_a_job_that_ends_between_sending_and_writing_down_sends_again_under_the_same_id(
    alerted: Alerted, migrated_dsn: str
) -> None:
    other = await asyncpg.connect(migrated_dsn)
    context = Context(other, alerted.world.redis, alerted.world.layout)
    async with receiving() as receiver:
        receiver.answer = "hang"
        await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        doomed = asyncio.create_task(alerts.run_once(context, alerted.post))
        await until(lambda: len(receiver.refused) == 1)
        other.terminate()  # as a killed process: nothing more is written
        receiver.answer = 200
        receiver.released.set()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await doomed
        await alerted.let_it_be_due()
        assert await alerted.tell() == Told(), "it is leased: somebody may still be at it"
        await alerted.postgres.execute("UPDATE alert_deliveries SET leased_until = now()")
        assert await alerted.tell() == Told(delivered=1)

    assert {each.id for each in receiver.all} == {(await alerted.alerts())[0]["id"]}


async def test_a_destination_that_is_deleted_takes_what_waits_for_it_along(alerted: Alerted) -> None:
    async with receiving() as receiver:
        receiver.answer = 500
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        await alerted.tell()
        await alerted.postgres.execute("DELETE FROM alert_destinations WHERE id = $1", destination.id)
        await alerted.let_it_be_due()

        assert await alerted.tell() == Told()
    assert await alerted.deliveries() == []
    assert len(await alerted.alerts()) == 1


async def test_no_secret_is_in_the_table_and_a_moved_one_does_not_open(alerted: Alerted) -> None:
    slack_url = "https://hooks.slack.example/services/T000/B000/sekretSEKRETsekretSEKRET"
    async with receiving() as receiver:
        first = await alerted.add(url=receiver.url)
        second = await alerted.add(url=receiver.url)
        await alerted.add("slack", url=slack_url)
        dump = str(await alerted.postgres.fetch("SELECT * FROM alert_destinations")).encode()
        dump += b"".join(
            row["sealed"] for row in await alerted.postgres.fetch("SELECT sealed FROM alert_destinations")
        )
        secrets = [secret.removeprefix("whsec_").encode() for secret in alerted.secrets.values()]
        for secret in [*secrets, b"whsec_", b"sekret", b"B000"]:
            assert secret not in dump

        await alerted.postgres.execute(
            "UPDATE alert_destinations SET sealed = (SELECT sealed FROM alert_destinations WHERE id = $1) WHERE id = $2",
            first.id,
            second.id,
        )
        await alerted.postgres.execute("DELETE FROM alert_destinations WHERE kind = 'slack'")
        await alerted.cross(alerted.crossing())
        assert await alerted.tell() == Told(fanned_out=1, delivered=1, failed=1)
    assert "the pepper was changed" in ((await alerted.destination(second)).last_error or "")
