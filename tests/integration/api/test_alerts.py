"""Alerts over REST: destinations and their secrets, the list, and the test that says what each receiver did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import structlog
from pytest_aiohttp.plugin import AiohttpClient
from redis.asyncio import Redis
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from control.app import build_app, ensure_operator_token, open_services
from control.domain.destinations import DESTINATIONS_MAX
from control.jobs import alerts, drain
from control.jobs.alerts import Post, Told
from control.jobs.context import Context
from control.settings import ControlSettings
from gateway.contract.ids import Level
from gateway.contract.usage_event import AlertCrossing
from tests.integration.api.world import LAYOUT, Api, Gateway, Json
from tests.integration.receivers import Mailbox, Receiver, mailing, receiving

PATH = "/v1/organizations/acme/alerts"
SLACK_PATH = "/services/T000/B000/sekretSEKRETlast"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as each:
        yield each


@pytest.fixture
async def acme(api: Api) -> Json:
    return await api.organization("acme")


async def _add(api: Api, body: Json) -> Json:
    answer = await api.post(f"{PATH}/destinations", body)
    assert answer.status == 201, answer.body
    return dict(answer.body)


async def _webhook(api: Api, receiver: Receiver, **more: Any) -> Json:
    return await _add(api, {"kind": "webhook", "url": receiver.url, **more})


async def _let_it_be_tested(database: asyncpg.Connection) -> None:
    await database.execute("UPDATE alert_destinations SET tested_at = tested_at - interval '1 minute'")


async def test_a_webhooks_secret_is_shown_once_and_signs_what_it_is_sent(
    api: Api, acme: Json, receiver: Receiver, database: asyncpg.Connection
) -> None:
    created = await _webhook(api, receiver, name="on call")
    secret = created.pop("secret")
    assert secret.startswith("whsec_")
    assert len(secret) > 40

    listed = (await api.get(f"{PATH}/destinations")).body
    assert listed == {"data": [created], "next": None}
    assert created == {
        "id": created["id"],
        "organization": acme["id"],
        "kind": "webhook",
        "name": "on call",
        "url": receiver.url,
        "min_threshold": 1,
        "enabled": True,
        "disabled_at": None,
        "disabled_reason": None,
        "failing_since": None,
        "paused_until": None,
        "last_error": None,
        "last_delivered_at": None,
        "pending": 0,
        "created_by": "operator",
        "created_at": created["created_at"],
        "updated_at": created["updated_at"],
    }
    tested = (await api.post(f"{PATH}/test")).body
    (row,) = tested["data"]
    assert (row["destination"], row["delivered"], row["status"], row["error"]) == (
        created["id"],
        True,
        200,
        None,
    )
    assert row["milliseconds"] >= 0
    (received,) = receiver.taken
    said = Webhook(secret).verify(received.body, received.headers)
    assert (said["type"], said["data"]["organization"], received.id) == (
        "alert.test",
        acme["id"],
        tested["message_id"],
    )

    dump = str(await database.fetch("SELECT * FROM alert_destinations"))
    assert secret.removeprefix("whsec_") not in dump


async def test_a_new_secret_is_in_force_at_once_and_the_old_one_is_not(
    api: Api, acme: Json, receiver: Receiver
) -> None:
    created = await _webhook(api, receiver)
    path = f"{PATH}/destinations/{created['id']}"

    rotated = (await api.patch(path, {"rotate_secret": True})).body
    assert rotated["secret"] != created["secret"]
    await api.post(f"{PATH}/test")
    received = receiver.taken[0]
    Webhook(rotated["secret"]).verify(received.body, received.headers)
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(created["secret"]).verify(received.body, received.headers)
    assert "secret" not in (await api.patch(path, {"name": "other"})).body


async def test_a_slack_url_is_never_shown_whole_again_nor_logged(
    api: Api, acme: Json, database: asyncpg.Connection
) -> None:
    async with receiving(SLACK_PATH) as slack:
        with capture_logs() as lines:
            created = await _add(api, {"kind": "slack", "url": slack.url})
            tested = (await api.post(f"{PATH}/test")).body
            slack.answer, slack.text = 404, "no_service"
            await _let_it_be_tested(database)
            refused = (await api.post(f"{PATH}/test")).body["data"]
    assert tested["data"][0]["delivered"]
    assert (refused[0]["status"], refused[0]["error"]) == (404, "it answered 404 (no_service)")
    assert created["url_hint"] == slack.url.removesuffix(SLACK_PATH) + "/…last"
    assert "url" not in created
    shown = str([created, tested, refused, (await api.get(f"{PATH}/destinations")).body, lines])
    shown += str(await database.fetch("SELECT * FROM alert_destinations"))
    assert "sekret" not in shown


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({}, "missing_field", "kind: is missing"),
        ({"kind": "pager"}, "invalid_field", "kind"),
        ({"kind": "webhook"}, "missing_field", "url: is missing"),
        ({"kind": "email"}, "missing_field", "addresses: is missing"),
        ({"kind": "email", "addresses": []}, "invalid_field", "addresses"),
        ({"kind": "email", "addresses": ["a@b"] * 21}, "invalid_field", "addresses"),
        ({"kind": "email", "addresses": ["a@b", "a@b"]}, "invalid_field", "twice"),
        ({"kind": "email", "addresses": ["a@b\nBcc: c@d"]}, "invalid_field", "not a mail address"),
        (
            {"kind": "webhook", "url": "https://h/", "addresses": ["a@b"]},
            "invalid_field",
            "addresses: is not for",
        ),
        ({"kind": "webhook", "url": "https://user:sekret@h/"}, "invalid_field", "no user and password"),
        ({"kind": "webhook", "url": "ftp://h/"}, "invalid_field", "such as https://"),
        ({"kind": "slack", "url": "sekret"}, "invalid_field", "such as https://"),
        ({"kind": "webhook", "url": "https://h/" + "a" * 2048}, "invalid_field", "at most 2048"),
        ({"kind": "webhook", "url": "https://h/", "min_threshold": 0}, "invalid_field", "min_threshold"),
        ({"kind": "webhook", "url": "https://h/", "min_threshold": 1001}, "invalid_field", "min_threshold"),
        ({"kind": "webhook", "url": "https://h/", "name": "a" * 201}, "invalid_field", "name"),
        ({"kind": "webhook", "url": "https://h/", "secret": "mine"}, "unknown_field", "secret"),
    ],
)
async def test_a_destination_that_makes_no_sense_is_refused(
    api: Api, acme: Json, body: Json, code: str, words: str
) -> None:
    answer = await api.post(f"{PATH}/destinations", body)

    assert (answer.status, answer.code) == (400, code)
    assert words in answer.body["detail"]
    assert "sekret" not in str(answer.body)


async def test_an_email_destination_needs_a_mail_server(api: Api, acme: Json) -> None:
    answer = await api.post(f"{PATH}/destinations", {"kind": "email", "addresses": ["oncall@example.com"]})

    assert (answer.status, answer.code) == (409, "mail_not_configured")
    assert "TOLLKEEPER_SMTP_URL" in answer.body["detail"]


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    async with mailing() as each:
        yield each


async def test_a_test_reaches_a_mailbox(
    control_settings: ControlSettings, mailbox: Mailbox, gateway: Gateway, aiohttp_client: AiohttpClient
) -> None:
    mail = {"smtp_url": f"smtp://127.0.0.1:{mailbox.port}", "smtp_from": "alerts@example.com"}
    said = control_settings.model_dump(exclude_unset=True) | mail
    async with open_services(ControlSettings.model_validate(said)) as deps:
        async with deps.reading() as conn:
            token = await ensure_operator_token(conn)
        assert token is not None
        api = Api(await aiohttp_client(build_app(deps)), token, deps)
        await api.organization("acme")
        created = await _add(api, {"kind": "email", "addresses": ["oncall@example.com", "lead@example.com"]})
        tested = (await api.post(f"{PATH}/test")).body["data"]

    assert created["addresses"] == ["oncall@example.com", "lead@example.com"]
    assert [(row["delivered"], row["status"]) for row in tested] == [(True, 250)]
    ((recipients, sent),) = mailbox.taken
    assert recipients == ["oncall@example.com", "lead@example.com"]
    assert "This is a test" in sent.get_content()


async def test_a_test_says_what_each_receiver_did_and_changes_nothing(
    api: Api, acme: Json, receiver: Receiver, database: asyncpg.Connection
) -> None:
    async with receiving() as failing, receiving() as gone:
        failing.answer, gone.answer = 500, 410
        created = [await _webhook(api, each) for each in (receiver, failing, gone)]
        tested = (await api.post(f"{PATH}/test")).body["data"]

    rows = {row["destination"]: (row["delivered"], row["status"], row["error"]) for row in tested}
    assert rows == {
        created[0]["id"]: (True, 200, None),
        created[1]["id"]: (False, 500, "it answered 500"),
        created[2]["id"]: (False, 410, "it answered 410"),
    }
    shown = (await api.get(f"{PATH}/destinations")).body["data"]
    assert all(row["enabled"] and row["failing_since"] is None for row in shown)


async def test_a_destination_is_not_tested_again_at_once_and_one_may_be_tested_by_itself(
    api: Api, acme: Json, receiver: Receiver, database: asyncpg.Connection
) -> None:
    first, second = await _webhook(api, receiver), await _webhook(api, receiver)
    await api.patch(f"{PATH}/destinations/{second['id']}", {"enabled": False})
    assert len((await api.post(f"{PATH}/test")).body["data"]) == 1
    again = await api.post(f"{PATH}/test")
    assert (again.status, again.code, again.headers["Retry-After"]) == (429, "tested_too_often", "5")
    alone = await api.post(f"{PATH}/test?destination={second['id']}")
    assert [row["destination"] for row in alone.body["data"]] == [second["id"]], "also one that is disabled"
    await _let_it_be_tested(database)
    both = await asyncio.gather(*(api.post(f"{PATH}/test") for _ in range(4)))
    assert sorted(answer.status for answer in both) == [200, 429, 429, 429]
    assert len(receiver.taken) == 3

    await api.delete(f"{PATH}/destinations/{first['id']}")
    nobody = await api.post(f"{PATH}/test")
    assert (nobody.status, nobody.code) == (409, "no_destinations")
    missing = await api.post(f"{PATH}/test?destination={first['id']}")
    assert (missing.status, missing.code) == (404, "destination_not_found")


async def test_destinations_of_one_organization_are_not_anothers(
    api: Api, acme: Json, receiver: Receiver
) -> None:
    created = await _webhook(api, receiver)
    await api.organization("other")
    other = "/v1/organizations/other/alerts"

    assert (await api.get(f"{other}/destinations")).body["data"] == []
    for answer in (
        await api.patch(f"{other}/destinations/{created['id']}", {"enabled": False}),
        await api.delete(f"{other}/destinations/{created['id']}"),
        await api.post(f"{other}/test?destination={created['id']}"),
    ):
        assert (answer.status, answer.code) == (404, "destination_not_found")
    assert (await api.get("/v1/organizations/nobody/alerts")).status == 404


async def test_an_organization_has_a_bounded_number_of_destinations(
    api: Api, acme: Json, receiver: Receiver
) -> None:
    body = {"kind": "webhook", "url": receiver.url}
    answers = await asyncio.gather(
        *(api.post(f"{PATH}/destinations", body) for _ in range(DESTINATIONS_MAX + 5))
    )

    refused = [answer for answer in answers if answer.status != 201]
    assert {(answer.status, answer.code) for answer in refused} == {(409, "too_many_destinations")}
    assert len(refused) == 5
    first = (await api.get(f"{PATH}/destinations?limit=15")).body
    rest = (await api.get(f"{PATH}/destinations?limit=15&cursor={first['next']}")).body
    assert len({row["id"] for row in first["data"] + rest["data"]}) == DESTINATIONS_MAX


async def test_what_may_be_changed_of_a_destination(api: Api, acme: Json, receiver: Receiver) -> None:
    created = await _webhook(api, receiver)
    path = f"{PATH}/destinations/{created['id']}"

    amended = (await api.patch(path, {"name": "night shift", "min_threshold": 100, "enabled": False})).body
    assert (amended["name"], amended["min_threshold"], amended["enabled"]) == ("night shift", 100, False)
    assert amended["disabled_reason"] == "operator"
    assert (await api.patch(path, {"enabled": True})).body["disabled_at"] is None
    for body, code in (
        ({"url": "https://h/"}, "unknown_field"),
        ({"kind": "slack"}, "unknown_field"),
        ({"enabled": "yes"}, "invalid_field"),
        ({"rotate_secret": False}, "invalid_field"),
    ):
        answer = await api.patch(path, body)
        assert (answer.status, answer.code) == (400, code)
    slack = await _add(api, {"kind": "slack", "url": "https://hooks.slack.example/x"})
    wrong = await api.patch(f"{PATH}/destinations/{slack['id']}", {"rotate_secret": True})
    assert (wrong.status, wrong.fields) == (400, ["rotate_secret"])


async def test_alerts_are_listed_newest_first_with_how_far_each_destination_is_told(
    api: Api, acme: Json, receiver: Receiver, redis_client: Redis, database: asyncpg.Connection
) -> None:
    tag = acme["id"].removeprefix("org_")
    account = await api.account()
    key = (await api.key(account))["key"]
    await _webhook(api, receiver, name="all of them")
    await _webhook(api, receiver, name="the limit only", min_threshold=100)
    context = Context(database, redis_client, LAYOUT)
    post = Post.of(api.deps.settings)
    crossed: list[tuple[Level, str, int]] = [
        ("key", key["id"], 80),
        ("account", account["id"], 80),
        ("organization", tag, 100),
    ]
    for number, (level, entity, threshold) in enumerate(crossed):
        crossing = AlertCrossing(
            organization=tag, level=level, id=entity, window_ms=0, threshold=threshold, limit=10_000_000,
            spent=9_500_000 + number, at_ms=1_900_000_000_000 + number,
        )  # fmt: skip
        await redis_client.xadd(LAYOUT.events(LAYOUT.shard_of(tag)), {"e": crossing.encode()})
    await drain.run_once(context)
    assert await alerts.run_once(context, post) == Told(fanned_out=3, delivered=4)

    answer = (await api.get(PATH)).body
    rows = answer["data"]
    assert answer["next"] is None
    assert [(row["level"], row["id"], row["name"]) for row in rows] == [
        ("organization", acme["id"], "acme"),
        ("account", account["id"], "nightly-report"),
        ("key", key["id"], "production"),
    ]
    assert (rows[2]["limit"], rows[2]["spent"], rows[2]["remaining"]) == ("10", "9.5", "0.5")
    assert (rows[2]["account"], rows[2]["account_name"]) == (account["id"], "nightly-report")
    told = [[(each["destination_name"], each["status"]) for each in row["deliveries"]] for row in rows]
    assert told == [
        [("all of them", "delivered"), ("the limit only", "delivered")],
        [("all of them", "delivered")],
        [("all of them", "delivered")],
    ]
    assert rows[0]["deliveries"][0]["delivered_at"].endswith("Z")
    first = (await api.get(f"{PATH}?limit=2")).body
    rest = (await api.get(f"{PATH}?limit=2&cursor={first['next']}")).body
    assert first["data"] + rest["data"] == rows


async def test_a_failing_destination_is_seen_to_fail_and_disabled_visibly(
    api: Api, acme: Json, receiver: Receiver, redis_client: Redis, database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(alerts, "_log", structlog.get_logger())
    receiver.answer = 410
    created = await _webhook(api, receiver)
    tag = acme["id"].removeprefix("org_")
    crossing = AlertCrossing(
        organization=tag, level="organization", id=tag, window_ms=0, threshold=80, limit=10, spent=8, at_ms=1
    )
    await redis_client.xadd(LAYOUT.events(LAYOUT.shard_of(tag)), {"e": crossing.encode()})
    context = Context(database, redis_client, LAYOUT)
    await drain.run_once(context)
    await alerts.run_once(context, Post.of(api.deps.settings))

    (shown,) = (await api.get(f"{PATH}/destinations")).body["data"]
    assert (shown["enabled"], shown["disabled_reason"], shown["pending"]) == (False, "gone", 1)
    assert shown["last_error"] == "it answered 410"
    ((delivery,),) = [row["deliveries"] for row in (await api.get(PATH)).body["data"]]
    assert (delivery["status"], delivery["attempts"], delivery["next_attempt_at"]) == ("pending", 1, None)

    receiver.answer = 503
    await api.patch(f"{PATH}/destinations/{created['id']}", {"enabled": True})
    await alerts.run_once(context, Post.of(api.deps.settings))
    (failing,) = (await api.get(f"{PATH}/destinations")).body["data"]
    assert (failing["enabled"], failing["last_error"]) == (True, "it answered 503")
    assert failing["paused_until"] > failing["failing_since"]
    receiver.answer = 200
    await api.post(f"{PATH}/test")
    (well,) = (await api.get(f"{PATH}/destinations")).body["data"]
    assert (well["failing_since"], well["paused_until"], well["last_error"]) == (None, None, None)
    await database.execute("UPDATE alert_deliveries SET next_attempt_at = now()")
    assert await alerts.run_once(context, Post.of(api.deps.settings)) == Told(delivered=1)
