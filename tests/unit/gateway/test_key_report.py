"""What a key is told about itself: the whole chain as it stands at this moment, whoever looked at it last."""

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.contract.grants import Grant
from gateway.contract.ids import AccountId, KeyId, Level, OrganizationTag
from gateway.contract.money import Microcredits
from gateway.contract.records import AccountRules, Budget, Identity, OrganizationRules, Pace
from gateway.key_report import RECORD_FIELDS, Standing, binding, key_report, read_standing

IDENTITY = Identity(
    KeyId("Acme010123456789"), AccountId("sa_Acme010123456789"), "build-bot", "service-account",
    OrganizationTag("Acme01"), "acme",
)  # fmt: skip
MILLION = 1_000_000
UNPACED = Pace()


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOW = at("2026-11-24T10:30:00")
TODAY, YESTERDAY, TOMORROW = at("2026-11-24T00:00:00"), at("2026-11-23T00:00:00"), at("2026-11-25T00:00:00")


def values(rules: AccountRules | OrganizationRules | None = None, **fields: Any) -> list[bytes | None]:
    """A record as Redis answers it: rules as they are published, and fields beside or instead of them."""
    published = account().fields() if rules is None else rules.fields()
    record = dict(zip(published[::2], published[1::2], strict=True)) | {"window": 0} | fields
    return [str(record[name]).encode() if name in record else None for name in RECORD_FIELDS]


def account(
    limit: int | None = None, period: Any = "never", pace: Pace = UNPACED, **budget: Any
) -> AccountRules:
    credits_ = None if limit is None else Microcredits(limit)
    return AccountRules(
        IDENTITY.account_id,
        "build-bot",
        "service-account",
        1,
        "active",
        Budget(credits_, period, **budget),
        pace,
    )


def standing(rules: AccountRules | OrganizationRules | None = None, **fields: Any) -> Standing:
    found = read_standing(values(rules, **fields), NOW)
    assert found is not None
    return found


def report(
    key: Standing | None = None, above: Standing | None = None, organization: Standing | None = None
) -> dict[str, Any]:
    plain = standing()
    return key_report(IDENTITY, (key or plain, above or plain, organization or plain), NOW)


def test_a_record_that_is_not_there_has_no_standing() -> None:
    assert read_standing([None] * len(RECORD_FIELDS), NOW) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"period": "yearly"},
        {"limit": "much"},
        {"spent": "some"},
        {"expires_at": "soon"},
        {"status": "\udcff"},
    ],
)
def test_a_record_that_cannot_be_read_is_no_standing(broken: dict[str, str]) -> None:
    given = values() if "status" not in broken else [b"\xff", *values()[1:]]
    record = dict(zip(RECORD_FIELDS, given, strict=True))
    record |= {name: text.encode("utf-8", "surrogateescape") for name, text in broken.items()}
    with pytest.raises(ValueError):
        read_standing([record[name] for name in RECORD_FIELDS], NOW)


def test_a_record_without_counters_is_no_standing() -> None:
    record = dict(zip(RECORD_FIELDS, values(), strict=True)) | {"window": None}
    with pytest.raises(ValueError, match="no counters"):
        read_standing(list(record.values()), NOW)


def test_what_is_spent_and_held_in_this_window_counts() -> None:
    found = standing(
        account(10 * MILLION, "daily"), window=TODAY, spent=4 * MILLION, held=MILLION, observed=3
    )
    assert (found.limit, found.spent, found.held, found.remaining) == (
        10 * MILLION,
        4 * MILLION,
        MILLION,
        5 * MILLION,
    )
    assert (found.resets_at_ms, found.observed) == (TOMORROW, 3)


def test_a_window_that_has_ended_counts_for_nothing_but_what_is_in_flight() -> None:
    found = standing(
        account(10 * MILLION, "daily"),
        window=YESTERDAY, window_end=TODAY, spent=4 * MILLION, held=MILLION, observed=3, in_flight=2,
    )  # fmt: skip
    assert (found.spent, found.held, found.remaining, found.observed) == (0, 0, 10 * MILLION, 0)
    assert (found.resets_at_ms, found.in_flight) == (TOMORROW, 2)


def test_a_clock_that_steps_back_opens_no_old_window() -> None:
    found = standing(account(10 * MILLION, "daily"), window=TOMORROW, spent=4 * MILLION)
    assert found.spent == 4 * MILLION


def test_a_period_set_anew_starts_a_fresh_window() -> None:
    rules = account(10 * MILLION, "monthly", since_ms=TODAY + 1)
    assert standing(rules, window=TODAY, spent=MILLION).spent == 0
    assert standing(rules, window=TODAY + 1, spent=MILLION).spent == MILLION


def test_a_month_starts_on_the_billing_day() -> None:
    found = standing(
        account(10 * MILLION, "monthly", billing_day=31), window=at("2026-10-31T00:00:00"), spent=MILLION
    )
    assert (found.spent, found.resets_at_ms) == (MILLION, at("2026-11-30T00:00:00"))


def test_what_is_overspent_leaves_nothing_rather_than_less() -> None:
    assert standing(account(MILLION), spent=3 * MILLION).remaining == 0


def test_a_level_without_a_limit_has_no_remainder() -> None:
    found = standing(account(), spent=3 * MILLION)
    assert (found.limit, found.remaining, found.spent, found.resets_at_ms) == (None, None, 3 * MILLION, 0)


@pytest.mark.parametrize(
    ("now", "spent", "held", "lost", "limit"),
    [
        (NOW - 1, 1, 0, 0, 10),  # not expired yet
        (NOW, 1, 0, 0, 7),  # the first grant ends at 4: 3 are lost
        (NOW, 1, 1, 0, 8),  # what is held comes out of it too
        (NOW, 5, 0, 0, 10),  # used up before it expired
        (NOW, 1, 0, 5, 5),  # more was lost already
        (NOW + 1000, 1, 0, 0, 4),  # the second one, which ends at 7, is lost as well
    ],
)
def test_an_expired_grant_is_lost_though_no_script_has_looked(
    now: int, spent: int, held: int, lost: int, limit: int
) -> None:
    grants = (Grant(NOW, Microcredits(4)), Grant(NOW + 1000, Microcredits(7)))
    rules = OrganizationRules(
        IDENTITY.organization_tag, "acme", 1, "active", Budget(Microcredits(10)), grants
    )
    found = read_standing(values(rules, spent=spent, held=held, lost=lost), now)
    assert found is not None
    assert found.limit == limit


def test_the_pace_is_told_with_a_burst_of_a_whole_minute_if_none_is_set() -> None:
    told = report(standing(account(pace=Pace(60, 5, 2)), in_flight=1), standing(account(pace=Pace(60))))
    assert {name: told["key"][name] for name in ("requests_per_minute", "burst", "requests_in_flight", "in_flight")} == {
        "requests_per_minute": 60, "burst": 5, "requests_in_flight": 2, "in_flight": 1,
    }  # fmt: skip
    assert (told["account"]["requests_per_minute"], told["account"]["burst"]) == (60, 60)
    assert (told["account"]["requests_in_flight"], told["account"]["in_flight"]) == (None, 0)
    assert "requests_per_minute" not in told["organization"]


def test_nothing_in_flight_may_be_the_limit() -> None:
    assert report(standing(account(pace=Pace(in_flight=0))))["key"]["requests_in_flight"] == 0


def test_a_report_has_the_whole_chain_with_credits_as_strings_and_times_in_utc() -> None:
    told = report(
        standing(account(10 * MILLION, "daily"), window=TODAY, spent=2_500_000, held=1, expires_at=TOMORROW),
        standing(account(enforcement="observe")),
        standing(spent=7),
    )
    assert {name: told[name] for name in ("id", "status", "detail", "expires_at", "principal", "at", "binding")} == {
        "id": "Acme010123456789", "status": "active", "detail": None, "expires_at": "2026-11-25T00:00:00Z",
        "principal": "service-account/acme/build-bot", "at": "2026-11-24T10:30:00Z", "binding": "key",
    }  # fmt: skip
    assert told["key"] == {
        "id": "Acme010123456789", "status": "active", "limit": "10", "spent": "2.5", "held": "0.000001",
        "remaining": "7.499999", "reset_period": "daily", "resets_at": "2026-11-25T00:00:00Z", "enforcement": "enforce",
        "observed": 0, "requests_per_minute": None, "burst": None, "requests_in_flight": None, "in_flight": 0,
    }  # fmt: skip
    assert (told["account"]["id"], told["account"]["name"]) == ("sa_Acme010123456789", "build-bot")
    assert (told["account"]["kind"], told["account"]["enforcement"]) == ("service-account", "observe")
    assert told["organization"] == {
        "id": "org_Acme01", "name": "acme", "status": "active", "limit": None, "spent": "0.000007", "held": "0",
        "remaining": None, "reset_period": "never", "resets_at": None, "enforcement": "enforce", "observed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((None, None, None), None),
        ((5, None, None), "key"),
        ((5, 4, 6), "account"),
        ((5, 4, 3), "organization"),
        ((5, 5, 5), "key"),
        ((None, 5, 5), "account"),
        ((0, 0, None), "key"),
    ],
)
def test_the_level_with_the_least_left_binds(limits: tuple[int | None, ...], expected: Level | None) -> None:
    key, above, organization = (standing(account(limit)) for limit in limits)
    assert binding((key, above, organization)) == expected


def test_a_level_that_only_observes_does_not_bind() -> None:
    observing, enforcing = standing(account(1, enforcement="observe")), standing(account(5))
    assert binding((observing, observing, enforcing)) == "organization"
    assert binding((observing, observing, observing)) is None


@pytest.mark.parametrize(
    ("key", "above", "organization", "status"),
    [
        ({"status": "disabled"}, {}, {}, "disabled"),
        ({"status": "revoked"}, {"status": "inactive"}, {}, "revoked"),
        ({}, {"status": "inactive"}, {"status": "inactive"}, "account_inactive"),
        ({}, {"status": "deleted"}, {}, "account_deleted"),
        ({}, {}, {"status": "inactive"}, "organization_inactive"),
        ({"expires_at": NOW}, {}, {}, "expired"),
        ({"expires_at": NOW + 1}, {}, {}, "active"),
        ({"expires_at": NOW}, {}, {"status": "deleted"}, "organization_deleted"),
        ({"status": "quarantined"}, {}, {}, "quarantined"),
    ],
)
def test_a_key_that_is_not_in_force_is_told_why(
    key: dict[str, Any], above: dict[str, Any], organization: dict[str, Any], status: str
) -> None:
    told = report(standing(**key), standing(**above), standing(**organization))
    assert told["status"] == status
    assert (told["detail"] is None) == (status == "active")
    assert told["detail"] is None or told["detail"].endswith(".")
