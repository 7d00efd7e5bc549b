"""Units are found where the meters say, in any split and coding, and nothing that an answer may be does any harm."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Callable

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.counts import COUNT_MAX, FIELD_LENGTH_MAX, count_of
from gateway.json_pointer import JsonValue, Pointer, look_up, parse_pointer
from gateway.metering import (
    WHOLE_LENGTH_MAX,
    AnswerReading,
    Meter,
    MeterPlan,
)
from tests.unit.gateway.codings import CODERS
from tests.unit.gateway.documents import REPEATABLE, SPLITS, cut, documents

JSON = b"Content-Type: application/json\r\n"
EVENTS = b"Date: Tue, 01 Jan 2030 00:00:00 GMT\r\ncontent-type: text/event-stream; charset=utf-8\r\n"


def at(*texts: str) -> tuple[Pointer, ...]:
    return tuple(map(parse_pointer, texts))


INPUT = Meter("input_tokens", json=at("/usage/prompt_tokens"), event=at("/usage/prompt_tokens"))
OUTPUT = Meter("output_tokens", json=at("/usage/completion_tokens"), event=at("/usage/completion_tokens"))
OPENAI = MeterPlan([INPUT, OUTPUT], at("/model"))
ANTHROPIC = MeterPlan(
    [
        Meter("input_tokens", json=at("/usage/input_tokens"), event=at("/message/usage/input_tokens")),
        Meter("output_tokens", json=at("/usage/output_tokens"), event=at("/usage/output_tokens",
        "/message/usage/output_tokens")),
    ],
    at("/model", "/message/model"),
)  # fmt: skip


def read(plan: MeterPlan, fields: bytes, reads: list[bytes]) -> AnswerReading:
    reading = plan.begin(fields)
    for data in reads:
        reading.feed(memoryview(data))
    reading.end()
    return reading


def said(plan: MeterPlan, fields: bytes, *reads: bytes) -> tuple[dict[str, int], str | None]:
    reading = read(plan, fields, list(reads))
    assert set(reading.missing) == set(plan.units) - set(reading.counts)
    return reading.counts, reading.field


def answer(completion: JsonValue = 12, prompt: JsonValue = 9) -> bytes:
    usage: JsonValue = {"prompt_tokens": prompt, "completion_tokens": completion}
    return orjson.dumps(
        {"id": "c1", "model": "small", "choices": [{"message": {"content": "Hi"}}], "usage": usage}
    )


def chunk(text: str = "Hi", **more: JsonValue) -> bytes:
    choices: JsonValue = [{"index": 0, "delta": {"content": text}}]
    return b"data: " + orjson.dumps({"id": "c1", "model": "small", "choices": choices, **more}) + b"\n\n"


def usage(completion: JsonValue, prompt: JsonValue = 9) -> JsonValue:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


BOTH = ({"input_tokens": 9, "output_tokens": 12}, "small")
STREAM = b"".join(
    [chunk(text) for text in ("He", "l\u00e4\n", "\u4f60", '"usage"')]
    + [chunk(usage=usage(12)), b"data: [DONE]\n\n"]
)


@pytest.mark.parametrize("kind", CODERS)
@settings(REPEATABLE, max_examples=25)
@given(SPLITS)
def test_an_answer_is_read_through_its_codings_in_any_split(kind: str, sizes: list[int]) -> None:
    named, code = CODERS[kind]
    for fields, body in ((JSON, answer()), (EVENTS, STREAM)):
        coded = code(cut(body, [40, 40]))
        reads = [cut(coded, sizes), cut(coded, [1] * len(coded)), [coded]]
        fields += b"Content-Encoding: " + named.encode() + b"\r\n"
        assert [said(OPENAI, fields, *each) for each in reads] == [BOTH] * 3


def test_usage_in_the_last_event_shows_as_soon_as_that_is_complete() -> None:
    reading = OPENAI.begin(EVENTS)
    seen = []
    for data in (chunk(usage=None), chunk(usage=None), chunk(usage=usage(12)), b"data: [DONE]\n\n"):
        reading.feed(data)
        seen.append(dict(reading.counts))
    assert seen == [{}, {}, BOTH[0], BOTH[0]]
    assert reading.field == "small"


def test_of_what_is_said_again_and_again_the_last_counts_or_the_sum() -> None:
    summed = Meter("chunks", event=at("/n"), each=True)
    last = Meter("total", event=at("/n"))
    stream = b'data: {"n":3}\n\ndata: {"m":1}\n\ndata: {"n":0}\n\ndata: {"n":null}\n\ndata: {"n":4}\n\n'
    assert said(MeterPlan([summed, last]), EVENTS, stream)[0] == {"chunks": 7, "total": 4}
    most = b'data: {"n":%d}\n\n' % COUNT_MAX
    assert said(MeterPlan([summed]), EVENTS, most, most)[0] == {"chunks": COUNT_MAX}


def test_a_stream_that_opens_with_its_input_and_adds_up_its_output_as_it_goes() -> None:
    def message(name: str, data: JsonValue) -> bytes:
        return b"event: %b\r\ndata: %b\r\n\r\n" % (name.encode(), orjson.dumps(data))

    start: JsonValue = {
        "type": "message_start",
        "message": {"model": "large", "usage": {"input_tokens": 25, "output_tokens": 1}},
    }
    reads = [message("message_start", start), b'event: ping\r\ndata: {"type": "ping"}\r\n\r\n']
    reads += [message("content_block_delta", {"type": "content_block_delta", "delta": {"text": "Hi"}})]
    reading = ANTHROPIC.begin(EVENTS)
    for data in reads:
        reading.feed(data)
    assert (reading.counts, reading.field) == ({"input_tokens": 25, "output_tokens": 1}, "large")
    reading.feed(message("message_delta", {"type": "message_delta", "usage": {"output_tokens": 15}}))
    assert reading.counts == {"input_tokens": 25, "output_tokens": 15}
    whole: JsonValue = {"model": "large", "usage": {"input_tokens": 25, "output_tokens": 15}}
    assert said(ANTHROPIC, JSON, orjson.dumps(whole)) == (reading.counts, "large")


def test_a_client_that_hangs_up_after_the_third_event_has_used_what_three_events_said() -> None:
    plan = MeterPlan([Meter("words", event=at("/words"))])
    reading = plan.begin(EVENTS)
    for words in (1, 2, 3):
        reading.feed(b'data: {"words":%d}\n\n' % words)
    reading.feed(b'data: {"words":')
    reading.end()
    assert reading.counts == {"words": 3}


def test_a_last_event_without_an_empty_line_counts_if_it_is_whole() -> None:
    assert said(OPENAI, EVENTS, STREAM.replace(b"data: [DONE]\n\n", b"")[:-2]) == BOTH


def test_zero_is_said_and_nothing_is_not() -> None:
    assert said(OPENAI, JSON, answer(0, 0))[0] == {"input_tokens": 0, "output_tokens": 0}
    reading = read(OPENAI, JSON, [b'{"model": "small"}'])
    assert (reading.counts, reading.missing) == ({}, ("input_tokens", "output_tokens"))


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("12", 12), ("12.0", 12), ("1.2e1", 12), ("0", 0), ("-0", 0), (str(2**53), 2**53), ("9007199254740992.0", 2**53),
        (str(2**53 + 1), None), ("1e300", None), ("-1", None), ("12.5", None), ('"12"', None), ("true", None), ("false", None),
        ("null", None), ("[12]", None), ('{"a":12}', None), ("1e400", None), ("NaN", None), ("012", None), (str(2**64), None),
    ],
)  # fmt: skip
def test_a_count_is_a_whole_number_that_every_reader_of_json_gives_alike(
    written: str, count: int | None
) -> None:
    plan = MeterPlan([Meter("units", json=at("/n"), event=at("/n"))])
    document = b'{"n": %b}' % written.encode()
    meant = {} if count is None else {"units": count}
    assert said(plan, JSON, document)[0] == meant
    assert said(plan, JSON, document[:-1], b" " * WHOLE_LENGTH_MAX, b"}")[0] == meant
    assert said(plan, EVENTS, b"data: " + document + b"\n\n")[0] == meant


def test_of_several_places_the_first_with_a_count_counts() -> None:
    plan = MeterPlan([Meter("units", header=b"X-Units", json=at("/a", "/b"), event=at("/a", "/b"))])
    assert said(plan, JSON, b'{"b": 2, "a": 1}')[0] == {"units": 1}
    assert said(plan, JSON, b'{"b": 2, "a": null}')[0] == {"units": 2}
    assert said(plan, EVENTS, b'data: {"b": 2}\n\n')[0] == {"units": 2}
    assert said(plan, b"x-UNITS: 7\r\n" + JSON, b'{"a": 1}')[0] == {"units": 7}
    assert said(plan, b"x-UNITS: 7\r\n" + EVENTS, b'data: {"b": 2}\n\n')[0] == {"units": 7}
    assert said(plan, b"x-units: many\r\n" + JSON, b'{"a": 1}')[0] == {"units": 1}


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (b"X-Units: 12\r\n", 12), (b"A: b\r\nx-units:\t 12 \t\r\nC: d\r\n", 12), (b"X-UNITS:0\r\n", 0),
        (b"X-Units: %d\r\n" % 2**53, 2**53),
        (b"", None), (b"X-Units: %d\r\n" % (2**53 + 1), None), (b"X-Units: \r\n", None), (b"X-Units: -1\r\n", None),
        (b"X-Units: 1.0\r\n", None), (b"X-Units: +1\r\n", None), (b"X-Units: 1_0\r\n", None), (b"X-Units: 1, 1\r\n", None),
        (b"X-Units: 1\r\nX-Units: 1\r\n", None), (b"X-Units: 1\r\nA: b\r\nx-units: 2\r\n", None),
        (b"X-Unit: 1\r\nXX-Units: 1\r\n", None),
        (b"A: x-units: 1\r\n", None), (b"X-Units: 12\xd9\xa3\r\n", None), (b"X-Units: " + b"1" * 5000 + b"\r\n", None),
    ],
)  # fmt: skip
def test_a_header_field_says_one_whole_number_or_nothing(fields: bytes, count: int | None) -> None:
    plan = MeterPlan([Meter("units", header=b"x-units")])
    assert said(plan, fields + JSON, b"{}")[0] == ({} if count is None else {"units": count})


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        (b"application/json", True), (b"Application/JSON ; charset=UTF-8", True), (b"application/problem+json", True),
        (b"application/vnd.api+json;a=b", True), (b"text/html", False), (b"", False), (b"application/json, text/html", False),
        (b"application/jsonp", False), (b"text/event-stream", False), (b"application/octet-stream", False),
    ],
)  # fmt: skip
def test_json_is_read_where_the_answer_says_that_it_is_json(content_type: bytes, is_json: bool) -> None:
    counts, field = said(OPENAI, b"Content-Type: " + content_type + b"\r\n", answer())
    assert (counts, field) == (BOTH if is_json else ({}, None))


@pytest.mark.parametrize("content_type", [b"application/x-ndjson", b"application/jsonl; charset=utf-8"])
def test_a_line_of_a_stream_of_lines_is_an_event(content_type: bytes) -> None:
    body = b'{"n": 1, "model": "small"}\r\n\n{"n": 2}\nnot JSON\n{"n": 3}'
    plan = MeterPlan([Meter("units", event=at("/n"), each=True)], at("/model"))
    assert said(plan, b"content-type:" + content_type + b"\r\n", *cut(body, [1] * 99)) == (
        {"units": 6},
        "small",
    )


def test_the_text_that_selects_rates_is_taken_once_and_only_if_it_is_one() -> None:
    plan = MeterPlan([], at("/model"))
    events = [b"1", b"null", orjson.dumps("x" * (FIELD_LENGTH_MAX + 1)), b'"small"', b'"large"']
    body = b"".join(b'data: {"model": %b}\n\n' % text for text in events)
    assert said(plan, EVENTS, body) == ({}, "small")
    for text in events[:3]:
        assert said(plan, JSON, b'{"model": %b}' % text) == ({}, None)
        assert said(plan, JSON, b'{"model": %b' % text + b" " * WHOLE_LENGTH_MAX + b"}") == ({}, None)


BAD: dict[str, tuple[bytes, bytes]] = {
    "nothing": (JSON, b""),
    "half a document": (JSON, answer()[:-1]),
    "no JSON": (JSON, b"<html>"),
    "brackets": (JSON, b"[" * 50_000),
    "many brackets": (JSON, b"[" * 500_000),
    "an array": (JSON, b"[1]"),
    "a number": (JSON, b"1"),
    "bad UTF-8": (JSON, b'{"usage": "\xff"}'),
    "JSON where gzip is said": (JSON + b"Content-Encoding: gzip\r\n", answer()),
    "gzip where JSON is said": (JSON, gzip.compress(answer())),
    "gzip with a wrong sum": (JSON + b"Content-Encoding: gzip\r\n", gzip.compress(answer())[:-8] + bytes(8)),
    "half of gzip": (JSON + b"Content-Encoding: gzip\r\n", gzip.compress(answer())[:-20]),
    "an unknown coding": (JSON + b"Content-Encoding: aws-chunked\r\n", answer()),
    "two codings where there is one": (JSON + b"Content-Encoding: gzip\r\nContent-Encoding: br\r\n", gzip.compress(answer())),
    "events that say nothing": (EVENTS, b"data: [DONE]\n\ndata: {\n\n: usage\n\nusage\n\ndata: \"completion_tokens\"\n\n"),
    "a stream with a wrong sum": (EVENTS + b"Content-Encoding: gzip\r\n", gzip.compress(STREAM)[:-8] + bytes(8)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_an_answer_that_is_not_what_it_says_reports_nothing(kind: str) -> None:
    fields, body = BAD[kind]
    assert said(OPENAI, fields, body) == ({}, None)
    assert said(OPENAI, fields, *cut(body[:3000], [1] * 3000), body[3000:]) == ({}, None)


def test_what_the_header_says_stays_said_when_the_body_is_broken() -> None:
    plan = MeterPlan([Meter("units", header=b"x-units"), OUTPUT])
    fields = b"X-Units: 3\r\nContent-Encoding: gzip\r\n" + EVENTS
    assert said(plan, fields, gzip.compress(STREAM)[:-8] + bytes(8))[0] == {"units": 3}


@settings(REPEATABLE, max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=200), SPLITS)
def test_nothing_that_an_upstream_sends_raises(fields: bytes, body: bytes, sizes: list[int]) -> None:
    for kind in (
        fields,
        JSON,
        EVENTS,
        JSON + b"content-encoding:",
        EVENTS + b"content-encoding: gzip\r\n",
        b"content-type:" + fields,
    ):
        for more in (b"", b"deflate\r\n", b"br, zstd\r\n"):
            read(OPENAI, kind + more, cut(body, sizes))
            read(OPENAI, kind + more, [answer(), body, STREAM])


@pytest.mark.parametrize("padding", [0, 2 * WHOLE_LENGTH_MAX])
@settings(REPEATABLE, max_examples=150)
@given(documents(), SPLITS, st.integers(0, 2**53 + 2))
def test_a_large_document_is_read_like_a_small_one(
    padding: int, data: bytes, sizes: list[int], number: int
) -> None:
    body = b'{"b":%b,%b"a":{"usage":%d,"1":[0,%d]},"model":%b}' % (data, b" " * padding, number, number, data)
    pointers = ("/a/usage", "/a/1/1", "/b/a", "/model/usage", "/b/usage/a", "/model/0")
    meters = [Meter(f"u{place}", json=at(text), event=at(text)) for place, text in enumerate(pointers)]
    plan = MeterPlan(meters, at("/model/model", "/b"))
    document = json.loads(body)
    meant = {}
    for place, text in enumerate(pointers):
        if (count := count_of(look_up(document, parse_pointer(text).names))) is not None:
            meant[f"u{place}"] = count
    texts = [look_up(document, names) for names in (("model", "model"), ("b",))]
    field = next((text for text in texts if isinstance(text, str)), None)
    event(f"{len(meant)} found")
    assert said(plan, JSON, *cut(body, sizes)) == (meant, field)
    if padding == 0:
        line = b"data: " + body.replace(b"\r", b" ").replace(b"\n", b"\r\ndata: ") + b"\r\n\r\n"
        assert said(plan, EVENTS, *cut(line, sizes)) == (meant, field)


def long_answer(size: int) -> bytes:
    texts: JsonValue = [
        {"text": 'lorem ipsum "dolor" ' * 40, "at": [1.5, None, {}]} for _ in range(size // 1_000)
    ]
    return (
        orjson.dumps({"usage": usage(1, 2), "data": texts, "model": "small", "usage ": 1})[:-1]
        + b',"usage":'
        + orjson.dumps(usage(12))
        + b"}"
    )


def long_stream(size: int) -> bytes:
    return (
        b"".join(chunk("Hi" * 300, n=n) for n in range(size // 700))
        + chunk("x" * 2_000_000, usage=usage(1))
        + STREAM
    )


@pytest.mark.parametrize("coding", ["identity", "gzip", "br", "zstd"])
@pytest.mark.parametrize(("fields", "make"), [(JSON, long_answer), (EVENTS, long_stream)])
def test_of_a_long_answer_at_most_a_mebibyte_is_kept(
    coding: str, fields: bytes, make: Callable[[int], bytes]
) -> None:
    body = make(3_000_000)
    coded = CODERS[coding if coding != "identity" else "none"][1]([body])
    reading = OPENAI.begin(fields + b"content-encoding: " + coding.encode() + b"\r\n")
    kept = 0
    pieces = [coded[at : at + 16_384] for at in range(0, len(coded), 16_384)]
    tracemalloc.start()
    try:
        for piece in pieces:
            reading.feed(piece)
            kept = max(kept, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    reading.end()
    assert (reading.counts, reading.field) == BOTH
    assert kept < 1.3 * 1024 * 1024  # an array of bytes that grows has room for an eighth more


@pytest.mark.parametrize("fields", [JSON, EVENTS])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_a_bomb_reports_nothing_and_is_never_held(fields: bytes, coding: str) -> None:
    zeros = b'data: {"usage": {"completion_tokens": 1}}\n\n' + bytes(100_000_000)
    bomb = CODERS[coding][1]([zeros])
    reading = OPENAI.begin(fields + b"content-encoding: " + coding.encode() + b"\r\n")
    tracemalloc.start()
    try:
        reading.feed(bomb)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reading.feed(bomb)
    reading.end()
    assert (reading.counts, reading.field) == ({}, None)
    assert kept < 100_000
    assert peak < 4 * 1024 * 1024


def test_after_its_end_an_answer_says_no_more() -> None:
    reading = OPENAI.begin(EVENTS)
    reading.end()
    reading.feed(STREAM)
    reading.end()
    assert reading.counts == {}


def test_what_is_remembered_of_answers_has_an_end() -> None:
    chance = random.Random(1)
    for _ in range(2_000):
        OPENAI.begin(b"content-type: application/x%d\r\n" % chance.randrange(10**9))
    assert said(OPENAI, JSON, answer()) == BOTH
    assert len(OPENAI._shapes) <= 256


def test_a_unit_has_one_meter() -> None:
    with pytest.raises(ValueError, match="two meters"):
        MeterPlan([INPUT, INPUT])
