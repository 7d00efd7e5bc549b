"""Header fields of a limit: what draft-ietf-httpapi-ratelimit-headers-10 allows, and what SDKs read."""

import re

import pytest

from gateway.http1.own_answer import headers
from gateway.quota_fields import Quota, duration, quota_fields
from gateway.refusals import Entity, Refusal, budget_exceeded, rate_limited, too_many_in_flight

NOW_MS = 1_700_000_000_000
KEY = Entity("Acme010123456789")
PK = ";pk=:QWNtZTAxMDEyMzQ1Njc4OQ==:"
_NUMBER = r"(?:0|[1-9]\d{0,14})"
POLICY = re.compile(
    rf'"[a-z-]+";q={_NUMBER}(?:;qu="[a-z-]+")?(?:;w=[1-9]\d{{0,14}})?(?:;tollkeeper-burst={_NUMBER})?;pk=:[A-Za-z0-9+/]+=*:'
)
LIMIT = re.compile(rf'"[a-z-]+";r={_NUMBER}(?:;t={_NUMBER})?;pk=:[A-Za-z0-9+/]+=*:')


def shown(refusal: Refusal) -> dict[str, str]:
    """The fields of a refusal that are about a limit, by name."""
    fields = {name.decode(): value.decode() for name, value in headers(refusal)}
    return {name: value for name, value in fields.items() if "ratelimit" in name.lower()}


def test_requests_a_minute_are_told_as_policy_and_limit_and_as_sdks_read_them() -> None:
    assert shown(rate_limited("key", KEY, 60, 60, 12_000)) == {
        "RateLimit-Policy": f'"requests-per-minute";q=60;w=60{PK}',
        "RateLimit": f'"requests-per-minute";r=0;t=12{PK}',
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "12s",
    }


def test_a_burst_that_is_not_a_whole_minutes_is_told_beside() -> None:
    assert shown(rate_limited("key", KEY, 60, 5, 1))["RateLimit-Policy"] == (
        f'"requests-per-minute";q=60;w=60;tollkeeper-burst=5{PK}'
    )


def test_requests_in_flight_are_told_in_their_own_unit_and_have_no_time() -> None:
    assert shown(too_many_in_flight("key", KEY, 4, 4)) == {
        "RateLimit-Policy": f'"requests-in-flight";q=4;qu="concurrent-requests"{PK}',
        "RateLimit": f'"requests-in-flight";r=0{PK}',
    }
    # a limit that was lowered under what is in flight leaves nothing rather than less
    assert shown(too_many_in_flight("key", KEY, 4, 9))["RateLimit"] == f'"requests-in-flight";r=0{PK}'


def test_credits_are_told_in_microcredits_with_the_time_until_they_start_afresh() -> None:
    refusal = budget_exceeded("key", KEY, 500, (1000, 700, 100, NOW_MS + 90_500), 402, NOW_MS)
    assert shown(refusal) == {
        "RateLimit-Policy": f'"credits";q=1000;qu="microcredits"{PK}',
        "RateLimit": f'"credits";r=200;t=91{PK}',
    }


@pytest.mark.parametrize("counters", [(1000, 700, 100, 0), (1000, 900, 200, 0)])
def test_credits_that_never_start_afresh_have_no_time(counters: tuple[int, int, int, int]) -> None:
    assert ";t=" not in shown(budget_exceeded("key", KEY, 500, counters, 402, NOW_MS))["RateLimit"]


def test_without_a_clock_no_time_is_told() -> None:
    refusal = budget_exceeded("key", KEY, 500, (1000, 700, 100, NOW_MS + 90_500), 402)
    assert shown(refusal)["RateLimit"] == f'"credits";r=200{PK}'


def test_retry_after_never_comes_before_the_time_that_the_limit_tells() -> None:
    for refusal in (
        rate_limited("key", KEY, 60, 60, 12_345),
        budget_exceeded("key", KEY, 500, (1000, 700, 100, NOW_MS + 90_500), 429, NOW_MS),
    ):
        told = re.search(r";t=(\d+)", shown(refusal)["RateLimit"])
        assert told is not None
        assert int(dict(headers(refusal))[b"Retry-After"]) >= int(told[1])


@pytest.mark.parametrize(
    "refusal",
    [
        rate_limited("account", Entity("sa_Acme010123456789", "build-bot"), 1_000_000, 1, 60_000),
        too_many_in_flight("account", Entity("sa_Acme010123456789", "build-bot"), 0, 0),
        budget_exceeded(
            "organization", Entity("org_Acme01", "acme"), 1, (10**15, 10**15, 5, NOW_MS - 5), 402, NOW_MS
        ),
        budget_exceeded("organization", Entity("org_Acme01", "acme"), 1, (-5, 0, 0, 0), 402, NOW_MS),
    ],
)
def test_whatever_is_told_is_a_structured_field_of_the_draft(refusal: Refusal) -> None:
    fields = shown(refusal)
    assert POLICY.fullmatch(fields["RateLimit-Policy"])
    assert LIMIT.fullmatch(fields["RateLimit"])


def test_an_integer_has_at_most_fifteen_digits() -> None:
    (_, policy), (_, limit) = quota_fields(
        Quota("credits", "k", 10**15, 10**16, unit="microcredits", reset_s=10**17)
    )
    assert policy == b'"credits";q=999999999999999;qu="microcredits";pk=:aw==:'
    assert limit == b'"credits";r=999999999999999;t=999999999999999;pk=:aw==:'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (1, "1s"), (59, "59s"), (60, "1m0s"), (90, "1m30s"), (3600, "1h0m0s"), (90_061, "25h1m1s")],
)
def test_a_duration_is_written_as_sdks_read_it(seconds: int, text: str) -> None:
    assert duration(seconds) == text
