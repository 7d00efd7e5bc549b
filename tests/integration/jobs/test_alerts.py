"""Alerts from the stream to their receivers: each told once, through double delivery, dead receivers and killed processes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import orjson
import pytest
import structlog
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from control.delivery.mail import MailServer
from control.domain import deliveries
from control.jobs import alerts, drain, publish
from control.jobs.alerts import Told
from control.jobs.context import Context
from control.jobs.drain import Drained
from tests.integration.jobs.alert_world import Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import mailing, receiving, until


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


async def test_a_dead_receiver_loses_none_and_is_asked_ever_more_seldom(alerted: Alerted) -> None:
    async with receiving() as receiver:
        receiver.answer = 500
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in (50, 80, 100)))

        for attempt in range(1, 13):
            assert await alerted.tell() == Told(fanned_out=3 if attempt == 1 else 0, failed=3)
            assert await alerted.tell() == Told(), "nothing is due before its time"
            for row in await alerted.deliveries():
                assert (row["status"], row["attempts"], row["last_error"]) == (
                    "pending",
                    attempt,
                    "it answered 500",
                )
                paused_s = (row["next_attempt_at"] - row["last_attempt_at"]) / timedelta(seconds=1)
                least_s, most_s = deliveries.pause_s(attempt, 1), deliveries.pause_s(attempt, 0)
                assert least_s <= paused_s <= most_s + 30, "the time that the attempt took is on top"
            await alerted.let_it_be_due()
        assert (await alerted.destination(destination)).pending == 3
        assert alerted.metric("alert_deliveries_pending") == 3

        receiver.answer = 204
        assert (await alerted.tell()).delivered == 3

    ids = sorted(row["id"] for row in await alerted.alerts())
    assert sorted(each.id for each in receiver.taken) == ids
    assert {each.id for each in receiver.refused} == set(ids), "one id at every attempt"
    shown = await alerted.destination(destination)
    assert (shown.failing_since, shown.last_error, shown.pending) == (None, None, 0)


async def test_when_a_failing_receiver_is_back_what_waits_for_it_comes_within_a_minute(
    alerted: Alerted,
) -> None:
    async with receiving() as receiver:
        receiver.answer = 503
        await alerted.add(url=receiver.url)
        await alerted.cross(*(alerted.crossing(threshold) for threshold in (50, 80)))
        await alerted.tell()
        await alerted.postgres.execute(
            "UPDATE alert_deliveries SET next_attempt_at = now() + interval '50 minutes'"
        )
        receiver.answer = 200
        await alerted.cross(alerted.crossing(100))
        assert await alerted.tell() == Told(fanned_out=1, delivered=1)

        left_s = await alerted.postgres.fetch(
            "SELECT extract(epoch FROM next_attempt_at - now()) AS s FROM alert_deliveries WHERE status = 'pending'"
        )
    assert len(left_s) == 2
    assert all(row["s"] <= 60 for row in left_s)


async def test_a_receiver_that_asks_for_time_gets_it(alerted: Alerted) -> None:
    async with receiving() as receiver:
        receiver.answer, receiver.headers = 429, {"Retry-After": "600"}
        await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        await alerted.tell()

    (row,) = await alerted.deliveries()
    assert row["next_attempt_at"] - row["last_attempt_at"] >= timedelta(seconds=600)


@pytest.mark.parametrize(
    ("answer", "headers", "words"),
    [
        (500, {}, "it answered 500"),
        (404, {}, "it answered 404"),
        (302, {"Location": "/elsewhere"}, "a redirect, which is not followed"),
        (308, {"Location": "http://127.0.0.1:1/"}, "a redirect, which is not followed"),
        ("hang", {}, "no answer within 0.5 s"),
        ("drop", {}, "closed the connection without an answer"),
    ],
)
async def test_what_a_receiver_did_instead_is_said_in_words(
    world: World, answer: int | str, headers: dict[str, str], words: str
) -> None:
    alerted = await alerted_in(world, timeout_s=0.5)
    async with receiving() as receiver:
        receiver.answer, receiver.headers = answer, headers  # type: ignore[assignment]
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        assert await alerted.tell() == Told(fanned_out=1, failed=1)

    assert len(receiver.refused) == 1, "no redirect is followed, nothing is repeated at once"
    (row,) = await alerted.deliveries()
    assert words in row["last_error"]
    shown = await alerted.destination(destination)
    assert words in (shown.last_error or "")
    assert shown.failing_since is not None
    assert shown.is_enabled


async def test_nobody_there_and_no_such_host_are_told_apart(alerted: Alerted) -> None:
    async with receiving() as receiver:
        gone_url = receiver.url
    nobody = await alerted.add(url=gone_url)
    nowhere = await alerted.add(url="http://no-such-host.invalid/x")
    await alerted.cross(alerted.crossing())

    assert (await alerted.tell()).failed == 2
    assert "could not be connected to" in ((await alerted.destination(nobody)).last_error or "")
    assert "has no address" in ((await alerted.destination(nowhere)).last_error or "")


async def test_after_a_day_of_failures_a_destination_is_disabled_and_gets_everything_once_enabled(
    alerted: Alerted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_log", structlog.get_logger())
    async with receiving() as receiver:
        receiver.answer = 500
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing(50), alerted.crossing(80))
        while (await alerted.destination(destination)).is_enabled:
            assert len(receiver.refused) < 20
            with capture_logs() as lines:
                assert (await alerted.tell()).failed
            if len(receiver.refused) > 2 * deliveries.FAILURES_MIN:
                await alerted.let_a_day_pass()
            await alerted.let_it_be_due()
        shown = await alerted.destination(destination)
        assert (shown.disabled_reason, shown.last_error, shown.pending) == ("failing", "it answered 500", 2)
        (warning,) = [line for line in lines if line["log_level"] == "warning"]
        assert (warning["event"], warning["destination"]) == ("alert_destination_disabled", destination.id)

        asked = len(receiver.refused)
        await alerted.cross(alerted.crossing(100))
        assert await alerted.tell() == Told(fanned_out=1), "nothing is sent to it any more"
        assert alerted.metric("alert_destinations_disabled") == 1
        await alerted.let_a_day_pass()
        assert await alerted.tell() == Told()
        assert len(receiver.refused) == asked

        receiver.answer = 200
        enabled = await alerted.enable(destination)
        assert (enabled.is_enabled, enabled.disabled_reason, enabled.last_error) == (True, None, None)
        assert await alerted.tell() == Told(delivered=3)
        assert await alerted.tell() == Told()
    assert sorted(each.id for each in receiver.taken) == sorted(row["id"] for row in await alerted.alerts())


async def test_a_receiver_that_is_gone_is_disabled_at_once_and_keeps_what_it_did_not_get(
    alerted: Alerted,
) -> None:
    async with receiving() as receiver:
        receiver.answer = 410
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing())
        assert await alerted.tell() == Told(fanned_out=1, failed=1)
        shown = await alerted.destination(destination)
        assert (shown.disabled_reason, shown.pending) == ("gone", 1)
        receiver.answer = 200
        await alerted.enable(destination)
        assert await alerted.tell() == Told(delivered=1)


async def test_one_alert_that_a_healthy_receiver_refuses_for_a_day_is_given_up_and_sent_when_asked_for(
    alerted: Alerted,
) -> None:
    async with receiving() as receiver:
        destination = await alerted.add(url=receiver.url)
        receiver.answer = 400
        await alerted.cross(alerted.crossing(50))
        await alerted.tell()
        await alerted.let_a_day_pass()
        receiver.answer = 200
        await alerted.postgres.execute(
            "UPDATE alert_deliveries SET next_attempt_at = now() + interval '30 seconds'"
        )
        await alerted.cross(alerted.crossing(80))
        assert (await alerted.tell()).delivered == 1
        receiver.answer = 400
        await alerted.let_it_be_due()
        await alerted.tell()

        statuses = sorted(row["status"] for row in await alerted.deliveries())
        assert statuses == ["delivered", "failed"]
        assert alerted.metric("alert_deliveries_total", kind="webhook", result="given_up") == 1
        receiver.answer = 200
        await alerted.enable(destination)
        assert await alerted.tell() == Told(delivered=1)


async def test_what_an_operator_switched_off_is_told_nothing_of_what_comes_meanwhile(
    alerted: Alerted,
) -> None:
    async with receiving() as receiver:
        receiver.answer = 500
        destination = await alerted.add(url=receiver.url)
        await alerted.cross(alerted.crossing(50))
        await alerted.tell()
        await alerted.enable(destination, enabled=False)
        await alerted.cross(alerted.crossing(80))
        await alerted.let_it_be_due()
        assert await alerted.tell() == Told(fanned_out=1)
        receiver.answer = 200
        await alerted.enable(destination)
        assert await alerted.tell() == Told(delivered=1)

    (told,) = receiver.taken
    assert orjson.loads(told.body)["data"]["threshold"] == 50


async def test_two_jobs_at_once_send_nothing_twice(alerted: Alerted, migrated_dsn: str) -> None:
    other = await asyncpg.connect(migrated_dsn)
    async with receiving() as receiver:
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


async def test_slack_gets_words_and_its_url_is_in_no_row_and_no_log(alerted: Alerted) -> None:
    async with receiving("/services/T000/B000/sekretSEKRET") as receiver:
        receiver.answer, receiver.text = 403, "action_prohibited"
        destination = await alerted.add("slack", url=receiver.url)
        await alerted.cross(alerted.crossing())
        with capture_logs() as lines:
            await alerted.tell()
        assert (await alerted.destination(destination)).last_error == "it answered 403 (action_prohibited)"
        receiver.text = "<b>not a word of Slack's, sekret</b>"
        await alerted.let_it_be_due()
        await alerted.tell()
        assert (await alerted.destination(destination)).last_error == "it answered 403"
        receiver.answer = 200
        await alerted.let_it_be_due()
        assert (await alerted.tell()).delivered == 1

    said = orjson.loads(receiver.taken[0].body)
    assert list(said) == ["text"]
    assert "has spent 80 % of its credit limit" in said["text"]
    assert "webhook-signature" not in receiver.taken[0].headers
    dump = str(lines) + str(await alerted.deliveries())
    dump += str(await alerted.postgres.fetch("SELECT * FROM alert_destinations"))
    assert "sekret" not in dump


async def test_an_email_goes_to_all_addresses_and_says_whom_the_server_refused(world: World) -> None:
    async with mailing() as mailbox:
        server = MailServer("127.0.0.1", mailbox.port, "Tollkeeper <alerts@example.com>", False, "auto")
        alerted = await alerted_in(world, server=server)
        destination = await alerted.add(
            "email", addresses=("a@example.com", "b@example.com", "c@example.com")
        )
        mailbox.temporarily_full = True
        await alerted.cross(alerted.crossing())
        await alerted.tell()
        assert (await alerted.destination(destination)).last_error == "the mail server answered 452"

        mailbox.temporarily_full = False
        mailbox.refuses = {"b@example.com"}
        await alerted.let_it_be_due()
        assert (await alerted.tell()).delivered == 1

        mailbox.refuses = {"a@example.com", "b@example.com", "c@example.com"}
        await alerted.cross(alerted.crossing(100))
        await alerted.tell()
        assert "refused every address (550)" in ((await alerted.destination(destination)).last_error or "")

    ((recipients, mail),) = mailbox.taken
    assert recipients == ["a@example.com", "c@example.com"]
    assert (mail["From"], mail["Auto-Submitted"]) == ("Tollkeeper <alerts@example.com>", "auto-generated")
    assert "has spent 80 % of its credit limit" in mail.get_content()
    assert datetime.now(UTC) - mail["Date"].datetime < timedelta(minutes=2)
    delivered = [row for row in await alerted.deliveries() if row["status"] == "delivered"]
    assert [row["last_error"] for row in delivered] == ["refused for b@example.com"]


async def test_without_a_mail_server_an_email_waits_and_says_why(alerted: Alerted) -> None:
    destination = await alerted.add("email", addresses=("a@example.com",))
    await alerted.cross(alerted.crossing())

    assert (await alerted.tell()).failed == 1
    assert "TOLLKEEPER_SMTP_URL" in ((await alerted.destination(destination)).last_error or "")
