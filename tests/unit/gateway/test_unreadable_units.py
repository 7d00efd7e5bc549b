"""What an answer says of a unit, and not as a count: nobody may take it for nothing."""

from __future__ import annotations

import pytest

from gateway.metering import WHOLE_LENGTH_MAX, Meter, MeterPlan
from tests.unit.gateway.test_metering import EVENTS, JSON, OUTPUT, at, read


@pytest.mark.parametrize("written", ['"12"', "-1", "12.5", "true", "[12]", "{}", str(2**64), '""'])
def test_what_is_said_and_is_no_count_is_unreadable(written: str) -> None:
    plan = MeterPlan(
        [Meter("units", json=at("/n", "/m"), event=at("/n", "/m")), Meter("calls", json=at("/c"))]
    )
    document = b'{"n": %b, "c": 1}' % written.encode()
    assert read(plan, JSON, [document]).unreadable == frozenset({"units"})
    assert read(plan, JSON, [document[:-1], b" " * WHOLE_LENGTH_MAX, b"}"]).unreadable == frozenset({"units"})
    assert read(plan, EVENTS, [b"data: " + document + b"\n\n"]).unreadable == frozenset({"units"})
    other = document[:-1] + b', "m": 3}'
    for fields, body in ((JSON, other), (EVENTS, b"data: " + other + b"\n\n")):
        reading = read(plan, fields, [body])
        assert (reading.counts["units"], reading.unreadable) == (3, frozenset()), "another place has a count"


@pytest.mark.parametrize("body", [b"{}", b'{"n": null}', b'{"usage": null}', b'{"a": {"n": 1}}'])
def test_what_is_not_said_is_not_unreadable(body: bytes) -> None:
    plan = MeterPlan([Meter("units", json=at("/n", "/usage/n"), event=at("/n", "/usage/n"))])
    assert read(plan, JSON, [body]).unreadable == frozenset()
    assert read(plan, JSON, [body[:-1], b" " * WHOLE_LENGTH_MAX, b"}"]).unreadable == frozenset()
    assert read(plan, EVENTS, [b"data: " + body + b"\n\n"]).unreadable == frozenset()


def test_the_last_word_of_a_stream_makes_good_what_came_before_and_a_sum_stays_short() -> None:
    body = b'data: {"n": "many"}\n\ndata: {"n": 7}\n\n'
    for each in (False, True):
        reading = read(MeterPlan([Meter("units", event=at("/n"), each=each)]), EVENTS, [body])
        assert (reading.counts, reading.unreadable) == (
            {"units": 7},
            frozenset({"units"}) if each else frozenset(),
        )


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (JSON, b"{"), (JSON, b"<html>"), (JSON + b"Content-Encoding: gzip\r\n", b"{}"),
        (JSON + b"Content-Encoding: aws-chunked\r\n", b"{}"), (EVENTS + b"Content-Encoding: gzip\r\n", b"data: {}"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_may_have_said_everything_but_what_the_header_says(
    fields: bytes, body: bytes
) -> None:
    reading = read(MeterPlan([Meter("units", header=b"x-units"), OUTPUT]), b"X-Units: 3\r\n" + fields, [body])
    assert (reading.counts, reading.unreadable) == ({"units": 3}, frozenset({"output_tokens"}))


CUT = b'{"text": "ok \\ud83d", "usage": {"completion_tokens": 7}}'
"""A text that was cut within a character, as JavaScript and Python write it, and as JSON allows it."""


def test_a_text_that_was_cut_within_a_character_hides_nothing() -> None:
    event = b"data: " + CUT + b"\n\n"
    for fields, body in ((JSON, CUT), (JSON, CUT[:-1] + b" " * WHOLE_LENGTH_MAX + b"}"), (EVENTS, event)):
        reading = read(MeterPlan([OUTPUT]), fields, [body])
        assert (reading.counts, reading.unreadable) == ({"output_tokens": 7}, frozenset())
    each = Meter("n", event=at("/usage/completion_tokens"), each=True)
    assert read(MeterPlan([each]), EVENTS, [event * 3]).counts == {"n": 21}


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    "bad",
    [
        b'{"n": 1000, "logprob": -Infinity}', b'{"n": 1000', b'{"n": 1000, "image": "' + b"x" * 2**20 + b'"}',
        b'{"n": 1000, "text": "\t"}',
    ],
    ids=["no JSON", "half", "long", "a raw tab"],
)  # fmt: skip
def test_an_event_that_cannot_be_read_may_have_said_anything(bad: bytes, each: bool) -> None:
    plan = MeterPlan(
        [Meter("units", event=at("/n"), each=each), Meter("calls", header=b"x-calls", event=at("/c"))]
    )
    good, calls = b'data: {"n": 5}\n\n', b"X-Calls: 2\r\n"
    for split in (1, 1_000, 2**21):
        body = good + b"data: " + bad + b"\n\n"
        reading = read(plan, calls + EVENTS, [body[i : i + split] for i in range(0, len(body), split)])
        assert (reading.counts, reading.unreadable) == ({"units": 5, "calls": 2}, frozenset({"units"}))
    body = good + b"data: " + bad + b"\n\n"
    reading = read(plan, calls + EVENTS, [body, good])
    assert reading.unreadable == (frozenset({"units"}) if each else frozenset()), "the last word counts"


@pytest.mark.parametrize("text", [b"[DONE]", b"", b" ", b"ping"])
def test_what_is_no_document_at_all_says_nothing(text: bytes) -> None:
    plan = MeterPlan([Meter("units", event=at("", "/n"))])
    reading = read(plan, EVENTS, [b'data: {"n": 5}\n\ndata: ' + text + b"\n\n"])
    assert (reading.counts, reading.unreadable) == ({"units": 5}, frozenset())


@pytest.mark.parametrize(("value", "unreadable"), [(b"many", True), (b"1, 1", True), (b"", False)])
def test_a_header_field_that_is_no_count_is_unreadable_unless_the_body_says_it(
    value: bytes, unreadable: bool
) -> None:
    plan = MeterPlan([Meter("units", header=b"x-units", json=at("/n"))])
    fields = b"X-Units: " + value + b"\r\n" + JSON
    assert read(plan, fields, [b"{}"]).unreadable == (frozenset({"units"}) if unreadable else frozenset())
    assert read(plan, fields, [b'{"n": 2}']).unreadable == frozenset()
