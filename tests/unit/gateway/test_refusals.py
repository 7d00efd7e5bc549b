"""Refusals: one closed list, each with a status, words for people and a body that their client library reads."""

import orjson
import pytest

from gateway.contract.ids import LEVELS, Level
from gateway.contract.token import PATTERN
from gateway.http1.own_answer import headers, refusal_answer, render
from gateway.refusals import (
    UNPRICED_VALUE_LENGTH_MAX,
    Entity,
    Reason,
    Refusal,
    budget_exceeded,
    cut_for_budget,
    cut_for_cap,
    expired,
    not_in_force,
    rate_limited,
    read_admission,
    too_many_in_flight,
    unpriced,
)
from gateway.routing import DIALECTS, Dialect

STATUSES = {
    "missing_token": 401, "invalid_token": 401, "route_forbidden": 403, "address_forbidden": 403, "budget_exceeded": 402,
    "rate_limited": 429, "too_many_in_flight": 429, "not_ready": 503, "overloaded": 503, "bad_request": 400,
    "no_such_route": 404, "request_timeout": 408, "body_too_large": 413, "upstream_unreachable": 502,
    "upstream_failed": 502, "upstream_timeout": 504, "upstream_unhealthy": 503, "loop_detected": 508,
    "certificate_required": 403, "too_many_connections": 503, "unpriced": 400, "method_not_allowed": 405,
}  # fmt: skip
MILLION = 1_000_000
RESETS_AT_MS = 1_735_689_600_000
BUDGET = budget_exceeded(
    "account", Entity("sa_1", "builder"), 1_500_000, (10 * MILLION, 9 * MILLION, 250_000, RESETS_AT_MS), 402
)


def whole_answer(refusal: Refusal, dialect: Dialect = "problem", *, has_body: bool = True) -> bytes:
    return refusal_answer(refusal, dialect, b"8dea2e846ca3d10000000001", b"", has_body=has_body)


def test_every_reason_has_its_status_and_there_is_no_other() -> None:
    assert {reason.value: Refusal(reason).public_status for reason in Reason} == STATUSES


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_reason_is_said_in_every_dialect(reason: Reason, dialect: Dialect) -> None:
    content_type, body = render(Refusal(reason), dialect, "request-1")
    if dialect == "plain":
        assert content_type == b"text/plain; charset=utf-8"
        assert reason.value in body.decode()
        assert body.count(b"\n") == 1
        return
    fields = orjson.loads(body)
    assert content_type == (b"application/problem+json" if dialect == "problem" else b"application/json")
    error = fields["error"]
    assert error["message"].endswith(".") or reason.value in (
        "bad_request",
        "request_timeout",
        "body_too_large",
        "budget_exceeded",
    )
    assert error["type"]
    assert error["code"] == reason.value
    request_id = (
        fields["request_id"] if dialect in ("problem", "anthropic") else error["metadata"]["request_id"]
    )
    assert request_id == "request-1"


def test_a_problem_has_the_members_of_rfc_9457_and_the_object_that_sdks_read() -> None:
    fields = orjson.loads(render(BUDGET, "problem", "request-1")[1])
    assert fields["type"] == "urn:tollkeeper:problem:budget_exceeded"
    assert (fields["status"], fields["code"], fields["title"]) == (
        402,
        "budget_exceeded",
        "A credit limit is reached",
    )
    assert fields["detail"] == fields["error"]["message"]
    assert set(fields["error"]) == {"message", "type", "code", "param", "metadata"}
    assert fields["error"]["param"] is None


def test_anthropics_dialect_is_an_error_in_an_error() -> None:
    fields = orjson.loads(render(Refusal(Reason.RATE_LIMITED), "anthropic", "request-1")[1])
    assert fields["type"] == "error"
    assert fields["error"]["type"] == "rate_limit_error"


def test_a_budget_refusal_names_level_limit_and_when_it_starts_afresh() -> None:
    assert BUDGET.metadata == {
        "level": "account", "id": "sa_1", "name": "builder", "limit": "10", "spent": "9", "held": "0.25",
        "remaining": "0.75", "estimate": "1.5", "resets_at": "2025-01-01T00:00:00Z",
        "how_to_fix": "Wait for it to start afresh. Whoever manages the account can raise the limit.",
    }  # fmt: skip
    for words in ("account builder", "0.75 of 10 credits", "1.5", "2025-01-01T00:00:00Z"):
        assert words in BUDGET.public_detail
    for dialect in DIALECTS:
        body = render(BUDGET, dialect, "r")[1].decode()
        assert all(words in body for words in ("builder", "0.75", "2025-01-01T00:00:00Z")), dialect


def test_a_keys_refusal_calls_the_key_by_its_id() -> None:
    refusal = budget_exceeded("key", Entity("abc"), 1, (0, 0, 0, 0), 402)
    assert refusal.metadata["id"] == "abc"
    assert "name" not in refusal.metadata
    assert "the key abc " in refusal.public_detail


def test_a_budget_that_never_starts_afresh_says_so() -> None:
    refusal = budget_exceeded("key", Entity("k"), 1, (0, 0, 0, 0), 402)
    assert refusal.metadata["resets_at"] is None
    assert "never" in refusal.public_detail


def test_what_was_overspent_leaves_nothing_rather_than_less() -> None:
    refusal = budget_exceeded("key", Entity("k"), 1, (MILLION, 3 * MILLION, 0, 0), 402)
    assert refusal.metadata["remaining"] == "0"


def test_where_a_route_says_429_retrying_is_advised_against() -> None:
    softened = budget_exceeded("key", Entity("k"), 1, (1, 1, 0, 0), 429)
    assert softened.public_status == 429
    assert (b"x-should-retry", b"false") in headers(softened)
    assert orjson.loads(render(softened, "problem", "r")[1])["status"] == 429
    assert not {b"x-should-retry", b"Retry-After"} & dict(headers(BUDGET)).keys()


@pytest.mark.parametrize("reason", Reason)
def test_who_fails_to_prove_who_they_are_is_told_how_to(reason: Reason) -> None:
    challenges = [value for name, value in headers(Refusal(reason)) if name == b"WWW-Authenticate"]
    if Refusal(reason).public_status != 401:
        assert challenges == []
        return
    assert [challenge.split(b" ")[0] for challenge in challenges] == [b"Bearer", b"Basic"]
    # RFC 6750 §3.1: a request without any token is not told about an error.
    assert (b'error="invalid_token"' in challenges[0]) == (reason is Reason.INVALID_TOKEN)


@pytest.mark.parametrize("reason", Reason)
def test_retry_after_is_said_only_where_waiting_helps(reason: Reason) -> None:
    waits = {
        Reason.NOT_READY, Reason.OVERLOADED, Reason.TOO_MANY_IN_FLIGHT, Reason.UPSTREAM_UNHEALTHY, Reason.TOO_MANY_CONNECTIONS,
    }  # fmt: skip
    assert (b"Retry-After" in dict(headers(Refusal(reason)))) == (reason in waits)
    assert dict(headers(Refusal(reason, retry_after_s=7)))[b"Retry-After"] == b"7"


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_is_framed_by_its_length_and_not_to_be_stored(reason: Reason, dialect: Dialect) -> None:
    head, _, body = whole_answer(Refusal(reason), dialect).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 %d " % STATUSES[reason.value])
    assert b"Content-Length: %d" % len(body) in lines
    assert b"Cache-Control: no-store" in lines
    assert b"X-Request-Id: 8dea2e846ca3d10000000001" in lines
    assert b"html" not in head


def test_an_answer_to_head_says_how_long_its_body_would_be() -> None:
    with_body, without = whole_answer(BUDGET), whole_answer(BUDGET, has_body=False)
    assert without == with_body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


@pytest.mark.parametrize("status", [400, 414, 417, 431, 501, 505])
def test_a_bad_head_is_answered_with_its_own_status(status: int) -> None:
    answer = whole_answer(Refusal(Reason.BAD_REQUEST, detail="Host is missing.", status=status))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status


@pytest.mark.parametrize(
    ("level", "status"),
    [
        ("key", "disabled"), ("key", "revoked"), ("account", "inactive"), ("account", "deleted"),
        ("organization", "inactive"), ("organization", "deleted"),
    ],
)  # fmt: skip
def test_a_right_secret_is_told_what_is_switched_off(level: str, status: str) -> None:
    refusal = read_admission([b"status", level.encode(), status.encode()], {}, 0, 402)
    assert refusal is not None
    assert (refusal.reason, refusal.public_status) == (Reason.INVALID_TOKEN, 401)
    assert refusal.public_code == f"{level}_{status}"
    assert status in refusal.public_detail


def test_a_status_of_tomorrow_is_still_refused_in_words() -> None:
    refusal = not_in_force("key", "quarantined")
    assert (refusal.public_status, refusal.public_code) == (401, "key_quarantined")
    assert refusal.public_detail


def test_an_expired_key_is_told_since_when() -> None:
    for refusal in (expired(RESETS_AT_MS), read_admission([b"expired", RESETS_AT_MS], {}, 0, 402)):
        assert refusal is not None
        assert refusal.public_code == "key_expired"
        assert refusal.metadata == {"expired_at": "2025-01-01T00:00:00Z"}


@pytest.mark.parametrize("level", LEVELS)
def test_admissions_answer_about_a_budget_is_read_with_the_name_of_its_level(level: Level) -> None:
    entities: dict[Level, Entity] = {
        "key": Entity("k1"),
        "account": Entity("sa_1", "builder"),
        "organization": Entity("org_1", "acme"),
    }
    reply = [b"budget", level.encode(), 5, 3, 1, RESETS_AT_MS]
    refusal = read_admission(reply, entities, 2, 429)
    assert refusal == budget_exceeded(level, entities[level], 2, (5, 3, 1, RESETS_AT_MS), 429)
    now_ms = RESETS_AT_MS - 1000
    refusal = read_admission(reply, entities, 2, 429, now_ms)
    assert refusal == budget_exceeded(level, entities[level], 2, (5, 3, 1, RESETS_AT_MS), 429, now_ms)


@pytest.mark.parametrize("level", ["key", "account"])
def test_admissions_answer_about_the_pace_is_read_with_the_name_of_its_level(level: Level) -> None:
    entities: dict[Level, Entity] = {"key": Entity("k1"), "account": Entity("sa_1", "builder")}
    rate = read_admission([b"rate", level.encode(), 60, 10, 1500], entities, 0, 402)
    assert rate == rate_limited(level, entities[level], 60, 10, 1500)
    in_flight = read_admission([b"in_flight", level.encode(), 2, 3], entities, 0, 402)
    assert in_flight == too_many_in_flight(level, entities[level], 2, 3)


@pytest.mark.parametrize("reply", [[b"digest"], [b"missing", b"key"], [b"something new"]])
def test_answers_that_are_not_about_the_caller_are_no_refusal(reply: list[bytes]) -> None:
    assert read_admission(reply, {}, 0, 402) is None


# -- when to come again, and what to do about it


@pytest.mark.parametrize(
    ("estimate", "counters", "before_ms", "retry_after"),
    [
        (1, (10, 10, 0, RESETS_AT_MS), 12_001, b"13"),  # rounded up
        (10, (10, 1, 0, RESETS_AT_MS), 12_000, b"12"),  # fits exactly into a fresh window
        (0, (10, 10, 0, RESETS_AT_MS), 1, b"1"),
        (1, (10, 10, 0, RESETS_AT_MS), -5_000, b"1"),  # the window ended meanwhile
        (1, (10, 10, 0, RESETS_AT_MS), 3_600_000, b"3600"),
        (1, (10, 10, 0, RESETS_AT_MS), 3_600_001, None),  # nobody is to sleep for that long
        (11, (10, 0, 0, RESETS_AT_MS), 12_000, None),  # never fits
        (0, (0, 0, 0, RESETS_AT_MS), 12_000, None),
        (1, (10, 10, 0, 0), 12_000, None),  # never starts afresh
    ],
)  # fmt: skip
def test_credits_are_waited_for_only_if_a_fresh_window_that_is_near_has_room(
    estimate: int, counters: tuple[int, int, int, int], before_ms: int, retry_after: bytes | None
) -> None:
    for status in (402, 429):
        now_ms = (counters[3] or RESETS_AT_MS) - before_ms
        fields = dict(headers(budget_exceeded("key", Entity("k"), estimate, counters, status, now_ms)))
        assert fields.get(b"Retry-After") == retry_after
        assert fields.get(b"x-should-retry") == (b"false" if status == 429 else None)


@pytest.mark.parametrize(
    ("level", "estimate", "counters", "words"),
    [
        ("key", 1, (0, 0, 0, RESETS_AT_MS), "A limit of 0 lets nothing through."),
        ("key", 11, (10, 0, 0, RESETS_AT_MS), "ask for less at once"),
        ("key", 2, (10, 5, 5, RESETS_AT_MS), "send fewer at a time"),
        ("key", 2, (10, 9, 0, RESETS_AT_MS), "Wait for it to start afresh."),
        ("account", 2, (10, 9, 0, 0), "Whoever manages the account can raise the limit."),
        ("organization", 2, (10, 9, 0, 0), "raise the limit or grant more credits."),
    ],
)  # fmt: skip
def test_a_budget_refusal_says_what_would_help(
    level: Level, estimate: int, counters: tuple[int, int, int, int], words: str
) -> None:
    refusal = budget_exceeded(level, Entity("x"), estimate, counters, 402)
    assert words in refusal.metadata["how_to_fix"]
    assert refusal.public_detail.endswith(refusal.metadata["how_to_fix"])
    assert f"Whoever manages the {level} can raise the limit" in refusal.public_detail


@pytest.mark.parametrize(("retry_after_ms", "seconds"), [(1, 1), (0, 1), (1000, 1), (1001, 2), (59_999, 60)])
def test_a_request_too_soon_is_told_when_the_next_is_in_time(retry_after_ms: int, seconds: int) -> None:
    refusal = rate_limited("account", Entity("sa_1", "builder"), 60, 10, retry_after_ms)
    assert (refusal.reason, refusal.public_status) == (Reason.RATE_LIMITED, 429)
    assert refusal.metadata == {
        "level": "account", "id": "sa_1", "name": "builder", "limit": 60, "burst": 10, "retry_after_s": seconds,
        "how_to_fix": "Send requests more evenly. Whoever manages the account can raise the limit.",
    }  # fmt: skip
    fields = dict(headers(refusal))
    assert fields[b"Retry-After"] == b"%d" % seconds
    assert b"x-should-retry" not in fields
    for words in ("account builder", "60 requests a minute", "10 of them at once", f"in {seconds} s"):
        assert words in refusal.public_detail


def test_too_many_in_flight_is_over_when_one_has_ended() -> None:
    refusal = too_many_in_flight("key", Entity("k"), 2, 2)
    assert (refusal.reason, refusal.public_status) == (Reason.TOO_MANY_IN_FLIGHT, 429)
    assert refusal.metadata == {
        "level": "key", "id": "k", "limit": 2, "in_flight": 2, "retry_after_s": 1,
        "how_to_fix": "Send the next when one has ended. Whoever manages the key can raise the limit.",
    }  # fmt: skip
    fields = dict(headers(refusal))
    assert fields[b"Retry-After"] == b"1"
    assert b"x-should-retry" not in fields


def test_where_none_may_be_in_flight_waiting_does_not_help() -> None:
    refusal = too_many_in_flight("key", Entity("k"), 0, 0)
    assert refusal.metadata["retry_after_s"] is None
    assert "lets nothing through" in refusal.public_detail
    fields = dict(headers(refusal))
    assert b"Retry-After" not in fields
    assert fields[b"x-should-retry"] == b"false"


def test_a_stream_that_is_cut_is_told_whose_credits_ran_out() -> None:
    refusal = cut_for_budget(
        "account", Entity("sa_1", "builder"), (10 * MILLION, 9 * MILLION, 250_000, RESETS_AT_MS)
    )
    assert (refusal.reason, refusal.public_code) == (Reason.BUDGET_EXCEEDED, "budget_exceeded")
    assert refusal.metadata == {
        "level": "account", "id": "sa_1", "name": "builder", "limit": "10", "spent": "9", "held": "0.25",
        "remaining": "0.75", "resets_at": "2025-01-01T00:00:00Z",
        "how_to_fix": "Whoever manages the account can raise the limit.",
    }  # fmt: skip
    for words in (
        "ran out while the answer was under way",
        "account builder",
        "0.75 of 10 credits",
        "is charged",
    ):
        assert words in refusal.public_detail


def test_an_answer_that_comes_to_a_routes_cap_is_told_so() -> None:
    refusal = cut_for_cap("models", 2_500_000)
    assert (refusal.reason, refusal.public_code) == (Reason.BUDGET_EXCEEDED, "cap_reached")
    assert refusal.metadata == {"route": "models", "cap_per_request": "2.5"}
    for words in ("route models", "2.5 credits", "raise cap_per_request"):
        assert words in refusal.public_detail


# -- what has no price


def test_what_has_no_rate_is_named_with_what_to_do() -> None:
    refusal = unpriced("/model", "gpt-9", "models")
    assert (refusal.reason, refusal.public_status) == (Reason.UNPRICED, 400)
    assert refusal.metadata == {"route": "models", "field": "/model", "value": "gpt-9"}
    for words in ("/model", '"gpt-9"', "rates of the route models", "ask whoever runs the gateway"):
        assert words in refusal.public_detail
    assert orjson.loads(render(refusal, "openai", "r")[1])["error"]["param"] == "/model"


def test_a_field_that_was_not_found_is_asked_for() -> None:
    refusal = unpriced("/model", None, "models")
    assert refusal.metadata["value"] is None
    assert "depends on its /model" in refusal.public_detail
    assert "near the start" in refusal.public_detail


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a" * 10_000, "a" * UNPRICED_VALUE_LENGTH_MAX + "…"),
        (
            "a\r\nSet-Cookie: b\x00\x1b[31m\u202e\ud800",
            "a\ufffd\ufffdSet-Cookie: b\ufffd\ufffd[31m\ufffd\ufffd",
        ),
        ("", ""),
        (f"model tk_{'a' * 16}_{'b' * 49}", "…"),
    ],
)
def test_a_callers_words_are_repeated_short_and_printable_and_never_if_they_are_a_token(
    value: str, shown: str
) -> None:
    refusal = unpriced("/model", value, "models")
    assert refusal.metadata["value"] == shown
    assert f'"{shown}"' in refusal.public_detail
    for dialect in DIALECTS:
        assert PATTERN.search(whole_answer(refusal, dialect)) is None


@pytest.mark.parametrize("reason", Reason)
def test_no_refusal_repeats_a_token(reason: Reason) -> None:
    for dialect in DIALECTS:
        assert PATTERN.search(whole_answer(Refusal(reason), dialect)) is None
