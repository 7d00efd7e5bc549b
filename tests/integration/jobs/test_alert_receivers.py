"""Receivers of alerts that do not take them: what is said, when they are asked again, when that ends; and each kind of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from control.delivery import mail
from control.delivery.mail import MailServer
from control.domain import deliveries
from control.jobs import alerts
from control.jobs.alerts import Told
from tests.integration.jobs.alert_world import Alerted, alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import mailing, receiving


@pytest.fixture
async def alerted(world: World) -> Alerted:
    return await alerted_in(world)


async def test_a_delivery_that_breaks_the_sender_fails_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one is said of it, and the others are told."""
    async with mailing() as mailbox, receiving() as receiver:
        server = MailServer("127.0.0.1", mailbox.port, "alerts@example.com", False, "auto")
        alerted, other = await alerted_in(world, server=server), await alerted_in(world)
        broken = await alerted.add("email", addresses=("a@example.com",))
        await other.add(url=receiver.url)
        await alerted.cross(alerted.crossing(), other.crossing())

        def compose(*arguments: object) -> None:
            raise KeyError("sekret")

        monkeypatch.setattr(mail, "compose", compose)
        with capture_logs() as lines:
            assert await alerted.tell() == Told(fanned_out=2, delivered=1, failed=1)

    shown = await alerted.destination(broken)
    assert shown.last_error == "it could not be sent, which is a defect of Tollkeeper (KeyError)"
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["alert_not_sendable"]
    assert "sekret" not in str(lines)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\r\n", "\x0b"])
async def test_a_name_that_breaks_lines_breaks_no_mail(world: World, separator: str) -> None:
    """The API refuses such names; rows may have them from before, or from another hand."""
    async with mailing() as mailbox:
        server = MailServer("127.0.0.1", mailbox.port, "alerts@example.com", False, "auto")
        alerted = await alerted_in(world, server=server)
        name = f"prod{separator}Bcc: everybody@example.com"
        await alerted.postgres.execute("UPDATE keys SET name = $2 WHERE id = $1", alerted.workload.key, name)
        await alerted.add("email", addresses=("a@example.com",))
        await alerted.cross(alerted.crossing())
        assert (await alerted.tell()).delivered == 1
    ((recipients, sent),) = mailbox.taken
    assert recipients == ["a@example.com"]
    assert "prod Bcc: everybody@example.com" in sent["Subject"]
    assert sent["Bcc"] is None


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
        for _ in range(deliveries.FAILURES_MIN):
            await alerted.tell()
            await alerted.let_it_be_due()
        assert (await alerted.destination(destination)).is_enabled
        await alerted.let_a_day_pass()
        with capture_logs() as lines:
            await alerted.tell()
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
        shown = await alerted.destination(destination)
        assert (shown.failing_since, shown.paused_until, shown.is_enabled) == (None, None, True), "it is well"
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
