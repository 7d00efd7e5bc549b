"""What is written down: the bytes of an event say the same facts as the contract's own reader and writer."""

from dataclasses import replace
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract import usage_event as contract
from gateway.contract.ids import AccountId, KeyId, OrganizationTag
from gateway.contract.money import AMOUNT_MAX
from gateway.contract.records import Hold, Identity
from gateway.contract.usage_event import OUTCOMES, PATH_LENGTH_MAX, Outcome, UsageEvent
from gateway.http1.head import METHOD_LENGTH_MAX, HeadError, RequestHead, parse_request
from gateway.http1.target import normalise
from gateway.recording import (
    ATTRIBUTION_LENGTH_MAX,
    access_line,
    amount_of,
    caller_fields,
    grown,
    refused_line,
    usage_event,
)
from gateway.refusals import Reason, Refusal

WHO = Identity(
    key_id=KeyId("Acme010123456789"),
    account_id=AccountId("sa_Acme010123456789"),
    account_name="build-bot",
    account_kind="service-account",
    organization_tag=OrganizationTag("Acme01"),
    organization_name="acme",
)
TOKEN_CHARACTERS = st.sampled_from("!#$%&'*+.^_`|~-0AaZz")
METHODS = st.one_of(
    st.sampled_from(["GET", "POST", "M-SEARCH"]),
    st.text(TOKEN_CHARACTERS, min_size=1, max_size=METHOD_LENGTH_MAX),
)
SEGMENTS = st.text(st.sampled_from("abcXYZ019-._~!$&'()*+,;=:@"), max_size=12) | st.sampled_from(
    ["%22", "%5B", "%C3%A9", "%20", "%25"]
)
PATHS = st.lists(
    SEGMENTS.filter(lambda segment: not segment.startswith((".;", "..;"))),  # these are refused at the door
    max_size=30,
).map(lambda segments: "/" + "/".join(segments))
VALUES = st.none() | st.binary(max_size=20).map(
    lambda raw: bytes(byte for byte in raw if byte == 9 or 32 <= byte != 127)
)
LONG_VALUES = VALUES | st.integers(ATTRIBUTION_LENGTH_MAX - 1, ATTRIBUTION_LENGTH_MAX + 1).map(
    lambda count: b"a" * count
)
COUNTS = st.integers(0, 2**53)
NUMBERS = st.tuples(st.integers(0, 599), COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
WINDOWS = st.tuples(COUNTS, COUNTS, COUNTS)
UNITS = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True), COUNTS, max_size=4)
AMOUNTS = st.integers(0, AMOUNT_MAX)


def head_of(method: str, path: str, **named: bytes | None) -> RequestHead:
    lines = b"".join(
        b"%b: %b\r\n" % (name.encode(), value) for name, value in named.items() if value is not None
    )
    lines = (
        lines.replace(b"session:", b"X-Session-Id:")
        .replace(b"computer:", b"X-Computer-Id:")
        .replace(b"trace:", b"traceparent:")
    )
    data = b"%b %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (method.encode(), path.encode(), lines)
    return parse_request(data, field_count_max=99, target_length_max=9999)


def kept(value: bytes | None) -> str | None:
    """What the ledger keeps of an attribution header."""
    stripped = (value or b"").strip(b" \t")
    if not stripped or len(stripped) > ATTRIBUTION_LENGTH_MAX or not stripped.isascii():
        return None
    return stripped.decode()


@given(
    METHODS, PATHS, LONG_VALUES, LONG_VALUES, LONG_VALUES, st.sampled_from(OUTCOMES), NUMBERS, COUNTS, WINDOWS, UNITS,
    st.booleans(),
)  # fmt: skip
def test_an_event_is_read_back_as_the_facts_it_was_made_of(
    method: str, path: str, session: bytes | None, computer: bytes | None, trace: bytes | None,
    outcome: Outcome, numbers: tuple[int, int, int, int, int, int], held: int, windows: tuple[int, int, int],
    units: dict[str, int], is_estimated: bool,
) -> None:  # fmt: skip
    head = head_of(method, path, session=session, computer=computer, trace=trace)
    normal = normalise(head.method, head.target, head.host).path
    hold = b"request-1|key|account|tag|models|%d|1700000000000|%d|%d|%d" % (held, *windows)
    event = usage_event(
        b"request-1", hold, caller_fields(WHO), b"models", head, normal, outcome, numbers, units, is_estimated=is_estimated
    )  # fmt: skip
    status, bytes_in, bytes_out, upstream_ms, total_ms, cost = numbers
    assert contract.decode(event) == UsageEvent(
        request_id="request-1", admitted_at_ms=1_700_000_000_000, ended_at_ms=1_700_000_000_000 + total_ms,
        organization="Acme01", account="sa_Acme010123456789", account_name="build-bot", account_kind="service-account",
        key="Acme010123456789", route="models", method=method, path=normal.decode()[:PATH_LENGTH_MAX],
        status=status, outcome=outcome, bytes_in=bytes_in, bytes_out=bytes_out, upstream_ms=upstream_ms, total_ms=total_ms,
        held=held, cost=cost, windows=windows, units=units, is_estimated=is_estimated, session=kept(session),
        computer=kept(computer), trace=kept(trace),
    )  # fmt: skip


def test_an_event_says_nothing_of_units_where_none_were_metered() -> None:
    """Most routes have no meters, and every byte of an event is paid in Redis."""
    event = usage_event(
        b"r", b"r|k|a|t|models|1|2|3|4|5", caller_fields(WHO), b"models", head_of("GET", "/"), b"/", "completed",
        (200, 0, 0, 0, 0, 1),
    )  # fmt: skip
    assert not {"units", "is_estimated", "session"} & set(orjson.loads(event))


# -- holds as they are packed


@given(AMOUNTS, AMOUNTS, WINDOWS, st.sampled_from(["models", "a.b-c_d", "x" * 64]))
def test_a_grown_hold_is_the_same_hold_with_another_amount(
    amount: int, added: int, windows: tuple[int, int, int], route: str
) -> None:
    packed = b"r1|Acme010123456789|sa_Acme010123456789|Acme01|%b|%d|1700000000000|%d|%d|%d" % (
        route.encode(), amount, *windows,
    )  # fmt: skip
    hold, other = Hold.unpack(packed), Hold.unpack(grown(packed, added))
    assert amount_of(packed) == hold.amount
    assert amount_of(grown(packed, added)) == other.amount == amount + added
    assert replace(other, amount=hold.amount) == hold
    assert grown(grown(packed, added), 0) == grown(packed, added)


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_no_request_that_is_accepted_can_break_out_of_its_event(target: bytes, value: bytes) -> None:
    data = b"GET /%b HTTP/1.1\r\nHost: a\r\nX-Session-Id: %b\r\n\r\n" % (target, value)
    try:
        head = parse_request(data, field_count_max=9, target_length_max=99)
        path = normalise(head.method, head.target, head.host).path
    except HeadError:
        return
    hold = b"request-1|key|account|tag|models|1|2|3|4|5"
    event = usage_event(
        b"request-1", hold, caller_fields(WHO), b"models", head, path, "completed", (200, 0, 0, 0, 0, 1)
    )
    fields = orjson.loads(event)
    assert fields["path"] == path.decode()[:PATH_LENGTH_MAX]
    assert set(fields) <= KNOWN_FIELDS
    assert orjson.loads(access_line(b"10.0.0.1", event)) == {"log": "access", "client": "10.0.0.1", **fields}


KNOWN_FIELDS = set(orjson.loads(contract.UsageEvent(
    request_id="", admitted_at_ms=0, ended_at_ms=0, organization="", account="", account_name="", account_kind="member",
    key="", route="", method="", path="", status=0, outcome="completed",
).encode()))  # fmt: skip


def test_who_is_calling_is_written_once_and_ends_where_the_next_field_begins() -> None:
    who = caller_fields(WHO)
    assert orjson.loads(b"{" + who + b'"route":"x"}') == {
        "organization": "Acme01", "account": "sa_Acme010123456789", "account_name": "build-bot",
        "account_kind": "service-account", "key": "Acme010123456789", "route": "x",
    }  # fmt: skip


def refused(identity: Identity | None) -> dict[str, Any]:
    head = head_of("GET", "/v1/x?secret=1")
    no = Refusal(Reason.INVALID_TOKEN, code="key_revoked")
    fields: dict[str, Any] = orjson.loads(
        refused_line(b"r1", b"10.0.0.1", identity, "models", head, b"/v1/x", no)
    )
    return fields


def test_a_refused_requests_line_says_who_if_that_is_known_and_why() -> None:
    known = refused(WHO)
    assert (known["organization"], known["account"], known["key"]) == (
        "Acme01",
        "sa_Acme010123456789",
        "Acme010123456789",
    )
    assert (known["status"], known["outcome"], known["reason"], known["code"]) == (
        401,
        "refused",
        "invalid_token",
        "key_revoked",
    )
    unknown = refused(None)
    assert (unknown["organization"], unknown["account"], unknown["key"]) == (None, None, None)
    assert "secret" not in str(known) + str(unknown)
