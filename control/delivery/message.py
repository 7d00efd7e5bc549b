"""What is said about an alert: facts for programs, and words for people. Pure.

The same alert makes the same message every time, so that a receiver that got it twice can tell by `id`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from control.domain.alerts import Alert
from gateway.contract.ids import OrganizationTag, organization_id
from gateway.contract.money import format_credits

ALERT_TYPE: Final = "alert.threshold_crossed"
TEST_TYPE: Final = "alert.test"

_NOUNS: Final = {"key": "The key", "account": "The account", "organization": "The organization"}
_MINUTE: Final = "%Y-%m-%d %H:%M UTC"


@dataclass(frozen=True, slots=True)
class Message:
    """`subject` is one line, `text` a few; `data` is JSON's, credits in it are decimal strings and times RFC 3339."""

    id: str
    type: str
    at: datetime
    data: dict[str, Any]
    subject: str
    text: str


def facts(alert: Alert) -> dict[str, Any]:
    """An alert as programs read it. Fields are only ever added."""
    return {
        "alert": alert.id,
        "organization": organization_id(alert.organization),
        "organization_name": alert.organization_name,
        "level": alert.level,
        "id": alert.entity_id,
        "name": alert.name,
        "account": alert.account,
        "account_name": alert.account_name,
        "threshold": alert.threshold,
        "limit": format_credits(alert.limit),
        "spent": format_credits(alert.spent),
        "remaining": format_credits(alert.remaining),
        "window": instant(alert.window_starts_at),
        "resets_at": None if alert.resets_at is None else instant(alert.resets_at),
        "crossed_at": instant(alert.crossed_at),
    }


def of_alert(alert: Alert) -> Message:
    """The message of an alert; its id is the alert's."""
    who = alert.name or alert.entity_id
    owner = f" of {alert.account_name}" if alert.account_name else ""
    where = alert.organization_name or organization_id(alert.organization)
    credits_ = f"{format_credits(alert.spent)} of {format_credits(alert.limit)} credits"
    subject = f"{where}: {alert.level} {who} has spent {alert.threshold} % of its limit"
    resets = (
        "never starts afresh" if alert.resets_at is None else f"starts afresh at {alert.resets_at:{_MINUTE}}"
    )
    text = "\n".join(
        [
            f"{_NOUNS[alert.level]} {who}{owner} has spent {alert.threshold} % of its credit limit: {credits_}.",
            f"{format_credits(alert.remaining)} credits remain. The limit {resets}.",
            (
                f"It was reached at {alert.crossed_at.astimezone(UTC):{_MINUTE}}, in the organization {where}, by the"
                f" {alert.level} {alert.entity_id} (alert {alert.id})."
            ),
        ]
    )
    return Message(alert.id, ALERT_TYPE, alert.crossed_at, facts(alert), _on_one_line(subject), text)


def of_test(identifier: str, organization: OrganizationTag, organization_name: str, at: datetime) -> Message:
    """A message that says that it is a test."""
    words = f"This is a test of the alerts of the organization {organization_name}. No limit was reached."
    data = {
        "organization": organization_id(organization),
        "organization_name": organization_name,
        "message": words,
    }
    subject = f"{organization_name}: a test of Tollkeeper's alerts"
    return Message(identifier, TEST_TYPE, at, data, _on_one_line(subject), words)


def _on_one_line(text: str) -> str:
    """Whatever a name has in it, it ends no header."""
    return " ".join(text.splitlines())


def instant(at: datetime) -> str:
    """RFC 3339 in UTC, whole milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
