"""Usage events: read as written, by a reader that is older or newer than the writer, and never half."""

from dataclasses import asdict, fields
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.ids import LEVELS
from gateway.contract.usage_event import (
    OUTCOMES,
    AlertCrossing,
    Event,
    EventError,
    RefusalCount,
    UsageEvent,
    decode,
)

EVENT = UsageEvent(
    request_id="01J", admitted_at_ms=1_700_000_000_123, ended_at_ms=1_700_000_000_456, organization="Acme01",
    account="sa_Acme010123456789", account_name="builder", account_kind="service-account", key="Acme01abcdefghij",
    route="models", method="POST", path="/v1/chat", status=200, outcome="completed", bytes_in=10, bytes_out=20,
    upstream_ms=30, total_ms=40, held=100, cost=60, windows=(1, 2, 3), units={"output_tokens": 7},
    is_estimated=True, session="s", computer="c", trace="t",
)  # fmt: skip
COUNT = RefusalCount(
    id="r1", minute_ms=60_000, organization="Acme01", account="sa_Acme010123456789", key="Acme01abcdefghij",
    route="models", reason="budget_exceeded", count=9, level="account", observed=True,
)  # fmt: skip
CROSSING = AlertCrossing(
    organization="Acme01", level="account", id="sa_Acme010123456789", window_ms=1_700_000_000_000, threshold=80,
    limit=1_000_000, spent=800_001, at_ms=1_700_000_000_456,
)  # fmt: skip
ADDED_LATER = ("level", "observed")
"""Fields of a count of refusals that an older writer does not have."""
REQUIRED = (
    "request_id", "admitted_at_ms", "ended_at_ms", "organization", "account", "key", "route", "outcome", "cost",
)  # fmt: skip

TEXT = st.text(max_size=20)
WHOLE = st.integers(0, 2**53 - 1)
EVENTS = st.builds(
    UsageEvent, request_id=TEXT, admitted_at_ms=WHOLE, ended_at_ms=WHOLE, organization=TEXT, account=TEXT,
    account_name=TEXT,
    account_kind=st.sampled_from(["service-account", "member"]), key=TEXT, route=TEXT, method=TEXT, path=TEXT,
    status=st.integers(0, 599), outcome=st.sampled_from(OUTCOMES), bytes_in=WHOLE, bytes_out=WHOLE, upstream_ms=WHOLE,
    total_ms=WHOLE, held=WHOLE, cost=WHOLE, windows=st.tuples(WHOLE, WHOLE, WHOLE),
    units=st.dictionaries(TEXT, WHOLE, max_size=3), is_estimated=st.booleans(), session=st.none() | TEXT,
    computer=st.none() | TEXT, trace=st.none() | TEXT,
)  # fmt: skip
COUNTS = st.builds(
    RefusalCount,
    id=TEXT,
    minute_ms=WHOLE,
    organization=TEXT,
    account=TEXT,
    key=TEXT,
    route=TEXT,
    reason=TEXT,
    count=WHOLE,
    level=TEXT,
    observed=st.booleans(),
)
CROSSINGS = st.builds(
    AlertCrossing, organization=TEXT, level=st.sampled_from(LEVELS), id=TEXT, window_ms=WHOLE, threshold=WHOLE, limit=WHOLE,
    spent=WHOLE, at_ms=WHOLE,
)  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def _stored(event: Event) -> dict[str, Any]:
    loaded: dict[str, Any] = orjson.loads(event.encode())
    return loaded


@given(EVENTS | COUNTS | CROSSINGS)
def test_an_entry_is_read_as_it_was_written(event: Event) -> None:
    assert decode(event.encode()) == event


def test_an_entry_is_one_line_of_compact_json() -> None:
    assert b"\n" not in EVENT.encode()
    assert b": " not in EVENT.encode()
    assert set(_stored(EVENT)) == {field.name for field in fields(UsageEvent)}


@pytest.mark.parametrize("event", [EVENT, COUNT, CROSSING])
def test_a_reader_ignores_fields_of_a_newer_writer(event: Event) -> None:
    newer = {**_stored(event), "invented_later": {"deep": [1, 2]}}
    assert decode(orjson.dumps(newer)) == event


def test_a_reader_has_a_default_for_every_field_that_an_older_writer_lacks() -> None:
    oldest = {name: value for name, value in _stored(EVENT).items() if name in REQUIRED}
    event = decode(orjson.dumps(oldest))
    assert isinstance(event, UsageEvent)
    for name in REQUIRED:
        assert getattr(event, name) == getattr(EVENT, name)
    assert (event.status, event.bytes_in, event.held, event.windows, event.units) == (0, 0, 0, (0, 0, 0), {})
    assert (event.account_kind, event.account_name, event.method, event.path) == (
        "service-account",
        "",
        "",
        "",
    )
    assert (event.session, event.computer, event.trace) == (None, None, None)
    assert event.is_estimated is False


def test_a_count_of_an_older_writer_is_of_requests_that_were_refused_for_nobodys_limit() -> None:
    older = {name: value for name, value in _stored(COUNT).items() if name not in ADDED_LATER}
    count = decode(orjson.dumps(older))
    assert isinstance(count, RefusalCount)
    assert (count.level, count.observed, count.count) == ("", False, 9)


@pytest.mark.parametrize("absent", REQUIRED)
def test_an_entry_without_what_every_event_has_is_an_error_that_names_it(absent: str) -> None:
    stored = _stored(EVENT)
    del stored[absent]
    with pytest.raises(EventError, match=absent):
        decode(orjson.dumps(stored))


@pytest.mark.parametrize("absent", [name for name in asdict(COUNT) if name not in ADDED_LATER])
def test_a_refusal_count_without_one_of_its_fields_is_an_error_that_names_it(absent: str) -> None:
    stored = _stored(COUNT)
    del stored[absent]
    with pytest.raises(EventError, match=absent):
        decode(orjson.dumps(stored))


@pytest.mark.parametrize("absent", [name for name in _stored(CROSSING) if name != "kind"])
def test_a_crossing_without_one_of_its_fields_is_an_error_that_names_it(absent: str) -> None:
    stored = _stored(CROSSING)
    del stored[absent]
    with pytest.raises(EventError, match=absent):
        decode(orjson.dumps(stored))


@given(st.sampled_from(sorted(_stored(CROSSING))), JSON)
def test_a_crossing_with_any_one_field_spoiled_is_an_event_or_an_event_error(
    name: str, value: object
) -> None:
    try:
        event = decode(orjson.dumps({**_stored(CROSSING), name: value}))
    except EventError:
        return
    assert isinstance(event, AlertCrossing)
    assert event.level in LEVELS
    assert all(
        0 <= getattr(event, whole) < 2**63 for whole in ("window_ms", "threshold", "limit", "spent", "at_ms")
    )


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff", b"{}", b'{"kind":"refused"}', b'{"kind":"alert"}'],
)
def test_what_is_not_an_event_is_an_event_error(data: bytes) -> None:
    with pytest.raises(EventError):
        decode(data)


@given(st.sampled_from(sorted(_stored(EVENT))), JSON)
def test_an_entry_with_any_one_field_spoiled_is_an_event_or_an_event_error(name: str, value: object) -> None:
    """The drain job meets entries of every version; one bad entry must not be able to stop it any other way."""
    try:
        event = decode(orjson.dumps({**_stored(EVENT), name: value}))
    except EventError:
        return
    assert isinstance(event, UsageEvent)
    assert decode(event.encode()) == event
    assert all(
        isinstance(getattr(event, text), str) for text in ("request_id", "account", "key", "route", "path")
    )
    assert all(
        0 <= getattr(event, whole) < 2**63
        for whole in ("admitted_at_ms", "ended_at_ms", "cost", "held", "bytes_in")
    )


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 400, b'"' + b"9" * 5_000 + b'"'])
def test_a_number_beyond_all_bounds_is_an_event_error(number: bytes) -> None:
    with pytest.raises(EventError):
        decode(EVENT.encode().replace(b'"cost":60', b'"cost":' + number))


def test_windows_that_are_too_few_are_an_event_error() -> None:
    with pytest.raises(EventError):
        decode(orjson.dumps({**_stored(EVENT), "windows": [1, 2]}))


@pytest.mark.parametrize("name", ["cost", "admitted_at_ms", "status", "windows"])
def test_the_message_of_an_event_error_never_repeats_the_contents(name: str) -> None:
    with pytest.raises(EventError) as raised:
        decode(orjson.dumps({**_stored(EVENT), name: "tk_secret"}))
    assert "tk_secret" not in str(raised.value)
