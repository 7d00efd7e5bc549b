"""What is said about an alert, in each of the three ways; signatures as the scheme's own library reads them."""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from email import policy
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from control.delivery import mail, slack, webhook
from control.delivery.mail import MailServer
from control.delivery.message import Message, facts, of_alert, of_test
from control.domain.alerts import Alert
from control.settings import ControlSettings
from gateway.contract.ids import OrganizationTag
from gateway.contract.money import Microcredits

TAG = OrganizationTag("abcdef")
AT = datetime(2031, 1, 31, 12, 0, 0, 123_000, tzinfo=UTC)
ALERT = Alert(
    id="al_abcdef0123456789",
    organization=TAG,
    organization_name="acme",
    level="key",
    entity="abcdefABCDEFGHIJ",
    name="prod",
    account="sa_abcdef0123456789",
    account_name="nightly-report",
    window_starts_at=datetime(2031, 1, 31, tzinfo=UTC),
    resets_at=datetime(2031, 2, 1, tzinfo=UTC),
    threshold=80,
    limit=Microcredits(5_000_000),
    spent=Microcredits(4_100_000),
    crossed_at=AT,
)


def test_the_facts_are_credits_as_strings_and_times_in_utc() -> None:
    assert facts(ALERT) == {
        "alert": "al_abcdef0123456789",
        "organization": "org_abcdef",
        "organization_name": "acme",
        "level": "key",
        "id": "abcdefABCDEFGHIJ",
        "name": "prod",
        "account": "sa_abcdef0123456789",
        "account_name": "nightly-report",
        "threshold": 80,
        "limit": "5",
        "spent": "4.1",
        "remaining": "0.9",
        "window": "2031-01-31T00:00:00.000Z",
        "resets_at": "2031-02-01T00:00:00.000Z",
        "crossed_at": "2031-01-31T12:00:00.123Z",
    }


def test_an_organization_is_named_by_its_id_and_a_window_may_never_end() -> None:
    organization = replace(
        ALERT, level="organization", entity=TAG, name="acme", account=None, account_name=None, resets_at=None,
        spent=Microcredits(7_000_000), threshold=100,
    )  # fmt: skip

    said = facts(organization)
    assert (said["id"], said["resets_at"], said["remaining"]) == ("org_abcdef", None, "0")
    assert "never starts afresh" in of_alert(organization).text


def test_words_say_who_spent_how_much_of_what_and_until_when() -> None:
    message = of_alert(ALERT)

    assert message.subject == "acme: key prod has spent 80 % of its limit"
    assert (
        "The key prod of nightly-report has spent 80 % of its credit limit: 4.1 of 5 credits." in message.text
    )
    assert "0.9 credits remain. The limit starts afresh at 2031-02-01 00:00 UTC." in message.text


def test_an_entity_that_the_rules_did_not_have_is_named_by_its_id() -> None:
    nameless = of_alert(replace(ALERT, name=None, account=None, account_name=None, organization_name=None))

    assert nameless.subject == "org_abcdef: key abcdefABCDEFGHIJ has spent 80 % of its limit"


def test_the_signature_is_one_that_the_schemes_library_accepts() -> None:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    message = of_alert(ALERT)
    body, now_s = webhook.body_of(message), int(datetime.now(UTC).timestamp())
    headers = {
        "webhook-id": message.id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": webhook.signature(secret, message.id, now_s, body),
    }

    said: dict[str, Any] = Webhook(secret).verify(body, headers)
    assert said["type"] == "alert.threshold_crossed"
    assert said["timestamp"] == "2031-01-31T12:00:00.123Z"
    assert said["data"] == facts(ALERT)
    for changed in (
        {"webhook-id": "al_other"},
        {"webhook-timestamp": str(now_s + 1)},
        {"webhook-signature": "v1,AAAA"},
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers | changed)


def test_the_same_alert_makes_the_same_body_every_time() -> None:
    assert webhook.body_of(of_alert(ALERT)) == webhook.body_of(of_alert(replace(ALERT)))


def test_slack_is_told_nothing_that_it_would_read_as_a_link_or_a_mention() -> None:
    text = orjson.loads(slack.body_of(of_alert(replace(ALERT, name="<!channel> & <https://x|y>"))))["text"]

    assert "<" not in text
    assert "&lt;!channel&gt; &amp; &lt;https://x|y&gt;" in text


def test_a_mail_has_one_id_at_every_attempt_and_the_time_of_this_one() -> None:
    message = of_alert(replace(ALERT, name="Prod Ünïcode"))
    mails = [
        mail.compose(
            message, "Tollkeeper <alerts@example.com>", ["a@example.com", "b@example.com"], "ad_1", at
        )
        for at in (AT, AT.replace(hour=13))
    ]

    assert {each["Message-ID"] for each in mails} == {"<al_abcdef0123456789.ad_1@example.com>"}
    assert [each["Date"].datetime for each in mails] == [
        AT.replace(microsecond=0),
        AT.replace(hour=13, microsecond=0),
    ]
    assert mails[0]["To"] == "a@example.com, b@example.com"
    assert mails[0]["Subject"] == "acme: key Prod Ünïcode has spent 80 % of its limit"
    assert mails[0].as_bytes(policy=policy.SMTP).isascii()
    assert "4.1 of 5 credits" in mails[0].get_content()


def test_a_test_says_that_it_is_one() -> None:
    message: Message = of_test("test_1", TAG, "acme", AT)

    assert message.type == "alert.test"
    assert "No limit was reached" in message.text


def _settings(url: str | None, sender: str | None) -> ControlSettings:
    return ControlSettings.model_validate(
        {
            "postgres_dsn": "postgresql://localhost/x",
            "redis_url": "redis://localhost",
            "pepper": "5e" * 32,
            "smtp_url": url,
            "smtp_from": sender,
        }
    )


def test_the_mail_servers_url_says_how_it_is_reached() -> None:
    read = [
        MailServer.of(_settings(url, "alerts@example.com"))
        for url in (
            "smtp://mail.example",
            "smtps://u%40x:p%2Fw@mail.example",
            "smtp://m:2525/?starttls=never",
        )
    ]

    sender = "alerts@example.com"
    assert read == [
        MailServer("mail.example", 587, sender, uses_tls=False, starttls="auto"),
        MailServer("mail.example", 465, sender, uses_tls=True, starttls="auto", user="u@x", password="p/w"),
        MailServer("m", 2525, sender, uses_tls=False, starttls="never"),
    ]
    assert "p/w" not in repr(read[1])
    assert MailServer.of(_settings(None, None)) is None
