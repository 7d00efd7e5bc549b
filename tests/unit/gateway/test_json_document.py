"""What a request's body says: the quick way and the close look agree, and doubt is said."""

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.json_document import DocumentPlan
from gateway.json_pointer import Pointer, parse_pointer
from gateway.json_scan import Absence, Found
from tests.unit.gateway.documents import POINTERS, REPEATABLE, documents

PLAN = DocumentPlan([parse_pointer("/model"), parse_pointer("/max_tokens")])
REQUEST = (
    b'{"model": "small", "messages": [{"role": "user", "content": "Hi \\"model\\""}], "max_tokens": 100}'
)


def test_a_whole_body_has_its_values_or_misses_them() -> None:
    assert PLAN.find(REQUEST, is_whole=True) == ["small", 100]
    assert PLAN.find(b'{"messages": []}', is_whole=True) == [Absence.MISSING, Absence.MISSING]
    assert PLAN.find(b'{"model": null, "max_tokens": {}}', is_whole=True) == [None, Absence.NOT_PLAIN]


def test_what_the_beginning_of_a_body_does_not_say_may_still_come() -> None:
    assert PLAN.find(REQUEST[:40], is_whole=False) == ["small", Absence.UNKNOWN]
    assert PLAN.find(b"", is_whole=False) == [Absence.UNKNOWN, Absence.UNKNOWN]


@pytest.mark.parametrize(
    "data", [b"", b"model=small", b'{"model": "small"', b"{'model': 'small'}", REQUEST + b"x", b"\xff\xfe"]
)
def test_a_whole_body_that_is_not_json_says_nothing(data: bytes) -> None:
    assert PLAN.find(data, is_whole=True) == [Absence.NOT_JSON] * 2


@pytest.mark.parametrize(
    "data",
    [
        b'{"model": "small", "model": "large"}', b'{"model": "small", "Model": "large"}', b'{"MODEL": "large"}',
        b'{"model": "small", "mod\\u0065l": "large"}', b'{"model": "small", "model\\u0000": "large"}',
        b'{"model": "small", "\\u006dodel": "large"}', b'{"model": "small", "x": [{}], "mod\x7fel": "large"}',
    ],
)  # fmt: skip
def test_a_workload_is_not_charged_for_one_model_and_served_another(data: bytes) -> None:
    assert PLAN.find(data, is_whole=True)[0] is Absence.AMBIGUOUS


def test_doubt_that_comes_after_the_beginning_is_noticed() -> None:
    reading = PLAN.begin()
    reading.feed(REQUEST[:-1] + b" ")
    assert reading.values == ["small", 100]
    reading.feed(b', "model":')
    assert reading.values == [Absence.AMBIGUOUS, 100]


@settings(REPEATABLE, max_examples=800)
@given(documents(), POINTERS, st.data())
def test_the_quick_way_and_the_close_look_agree(
    data: bytes, pointers: list[Pointer], more: st.DataObject
) -> None:
    plan = DocumentPlan(pointers)
    data = more.draw(
        st.sampled_from([data, data.replace(b'"a"', b'"A"', 1), data.replace(b"usage", b"us\x7fage", 1)])
    )
    close = plan.begin()
    close.feed(data)
    close.end()
    found: list[Found] = plan.find(data, is_whole=True)
    event("ambiguous" if Absence.AMBIGUOUS in found else "plain")
    assert list(map(repr, found)) == list(map(repr, close.values))


@settings(REPEATABLE, max_examples=300)
@given(documents(), POINTERS, st.data())
def test_a_beginning_says_what_the_whole_says_or_that_more_may_come(
    data: bytes, pointers: list[Pointer], more: st.DataObject
) -> None:
    plan = DocumentPlan(pointers)
    orjson.loads(data)
    whole = plan.find(data, is_whole=True)
    begun = plan.find(data[: more.draw(st.integers(0, len(data)))], is_whole=False)
    for early, late in zip(begun, whole, strict=True):
        assert early is Absence.UNKNOWN or late is Absence.AMBIGUOUS or repr(early) == repr(late)
