"""The scanner finds what a reader of JSON finds, in any split, and keeps next to nothing."""

import json
import tracemalloc

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gateway.json_pointer import NOWHERE, JsonValue, Pointer, look_up, parse_pointer
from gateway.json_scan import DEPTH_MAX, TOKEN_MAX, Absence, Found, JsonScan
from gateway.pointer_tree import PointerTree
from tests.unit.gateway.documents import NAMES, POINTERS, REPEATABLE, SPLITS, cut, documents

A, B = parse_pointer("/a"), parse_pointer("/b")


def scan(reads: list[bytes], *pointers: Pointer, wary: bool = False) -> list[Found]:
    scanning = JsonScan(PointerTree(pointers), is_wary=wary)
    for data in reads:
        scanning.feed(data)
    scanning.end()
    return scanning.values


def expected(document: JsonValue, pointer: Pointer) -> Found:
    value = look_up(document, pointer.names)
    if value is NOWHERE:
        return Absence.MISSING
    return Absence.NOT_PLAIN if isinstance(value, dict | list) else value


@settings(REPEATABLE, max_examples=800)
@given(documents(), POINTERS, SPLITS)
def test_it_finds_what_a_reader_of_the_whole_finds_in_any_split(
    data: bytes, pointers: list[Pointer], sizes: list[int]
) -> None:
    document = orjson.loads(data)
    meant = [expected(document, pointer) for pointer in pointers]
    event(f"found {sum(not isinstance(value, Absence) for value in meant)}")
    for reads in ([data], cut(data, sizes), cut(data, [1] * len(data))):
        found = scan(reads, *pointers)
        assert list(map(repr, found)) == list(map(repr, meant))


@settings(REPEATABLE, max_examples=800)
@given(documents(), POINTERS, st.data())
def test_what_is_tampered_with_has_one_outcome_in_any_split_and_is_never_read_as_something_else(
    data: bytes, pointers: list[Pointer], more: st.DataObject
) -> None:
    at = more.draw(st.integers(0, len(data)))
    piece = more.draw(st.sampled_from([
        b"", b'"', b"\\", b",", b":", b"{", b"}", b"[", b"]", b"'", b"/*", b"1", b"-", b"x", b"\x00", b"\n", b"true", b"\xff",
    ]))  # fmt: skip
    data = data[:at] + piece + data[at + more.draw(st.integers(0, 2)) :]
    whole = scan([data], *pointers)
    assert list(map(repr, scan(cut(data, [1] * len(data)), *pointers))) == list(map(repr, whole))
    assert list(map(repr, scan(cut(data, more.draw(SPLITS)), *pointers))) == list(map(repr, whole))
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        event("not JSON")
        return
    event("JSON")
    assert list(map(repr, whole)) == [repr(expected(document, pointer)) for pointer in pointers]


@settings(REPEATABLE, max_examples=200)
@given(documents(), st.data())
def test_a_document_that_is_cut_off_is_not_json(data: bytes, more: st.DataObject) -> None:
    data = data.strip()
    cut_off = data[: more.draw(st.integers(0, len(data) - 1))]
    try:
        json.loads(cut_off)  # of a number, a part is a number
    except ValueError:
        assert scan([cut_off], A) == [Absence.NOT_JSON]


@pytest.mark.parametrize("wary", [False, True])
def test_until_its_end_what_may_still_come_is_unknown(wary: bool) -> None:
    scanning = JsonScan(PointerTree([A, B]), is_wary=wary)
    seen = [list(scanning.values)]
    for data in (b'{"a"', b": 1", b"2", b",", b'"c": 3}'):
        scanning.feed(data)
        seen.append(list(scanning.values))
    unknown = Absence.UNKNOWN
    assert seen == [[unknown, unknown]] * 4 + [[12, unknown]] * 2
    scanning.end()
    assert scanning.values == [12, Absence.MISSING]


def test_the_last_of_two_members_of_a_name_counts_with_all_below_it() -> None:
    below = parse_pointer("/a/x")
    assert scan([b'{"a":{"x":1},"a":{"y":2}}'], below) == [Absence.MISSING]
    assert scan([b'{"a":{"x":1},"\\u0061":{"x":2}}'], below) == [2]
    assert scan([b'{"a":{"x":1},"a":3}'], below, A) == [Absence.MISSING, 3]


SAME_TO_SOMEBODY = [
    '{"a": 1, "a": 1}', '{"a": 1, "A": 2}', '{"A": 1, "a": 2}', '{"A": 2}', '{"a": 1, "\\u0061": 2}', '{"a": 1, "a\\u0000": 2}',
    '{"a": 1, "a\\u200b": 2}', '{"a": 1, "\\u0041": 2}', '{"a": 1, "a\x7f": 2}', '{"a": 1, "x": {}, "a": null}',
    '{"a": {"a": 1}, "b": [{"a": 1}], "a": 2}',
]  # fmt: skip


@pytest.mark.parametrize("text", SAME_TO_SOMEBODY)
def test_a_wary_scan_takes_no_side_where_readers_differ(text: str) -> None:
    for reads in ([text.encode()], cut(text.encode(), [1] * 200)):
        assert scan(reads, A, wary=True) == [Absence.AMBIGUOUS]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"max_tokens": 1, "max_to\u212aens": 2}', ("max_tokens",)),  # the sign for Kelvin is a k without case
        ('{"max_tokens": 1, "max_token\u017f": 2}', ("max_tokens",)),  # and the long s an s
        ('{"max_tokens": 1, "MAX_TOKENS": 2}', ("max_tokens",)),
        ('{"a": {"x": 1}, "a": {}}', ("a", "x")), ('{"a": {"x": 1}, "A": 0}', ("a", "x")), ('{"a": {"x": 1, "X": 2}}', ("a",
        "x")),
        ('{"a": [{"x": 1, "x": 1}]}', ("a", "0", "x")),
    ],
)  # fmt: skip
def test_it_looks_at_each_name_on_the_way(text: str, names: tuple[str, ...]) -> None:
    assert scan([text.encode()], Pointer(names), wary=True) == [Absence.AMBIGUOUS]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b": {"a": 2, "A": 3}, "c": [{"a": 1, "a": 1}]}', '{"a": 1, "aa": 2, "a ": 3, " a": 4}',
        '{"a": 1, "b": 2, "b": 3, "B": 4}', '{"c": "\\"a\\": 2, \\"a\\": 3", "a": 1}', '{"a": 1, "\u00e4": 2}',
    ],
)  # fmt: skip
def test_the_same_name_elsewhere_is_nothing_to_be_wary_of(text: str) -> None:
    assert scan([text.encode()], A, wary=True) == [1]


NOT_JSON = [
    b"", b" ", b"{", b"[", b'{"a":1', b'{"a":1}}', b'{"a":1},', b'{"a" 1}', b'{"a":}', b"{a:1}", b"{'a':1}", b'{"a":1,}',
    b'{,"a":1}',
    b'{"a":01}', b'{"a":1.}', b'{"a":.5}', b'{"a":+1}', b'{"a":0x1}', b'{"a":NaN}', b'{"a":tru}', b'{"a":truee}', b'{"a":"\n"}',
    b'{"a":"\\x"}', b'{"a":"\\u12g4"}', b'{"a":1]', b'{"a":"\xff"}', b'{/* "a":2, */"a":1}', b'{"b":1 /*"*/, "a":1}',
    b'{"b":[/*"*/1], "a":1}',
    b"{\"b\":['\"'], \"a\":1}", b'{"a":1} x', b'{"a":"\\ud800"}', b"\xef\xbb", '{"a":1}'.encode("utf-16"), b'{"a":- 1}',
    b'{"a":1e}',
]  # fmt: skip


@pytest.mark.parametrize("data", NOT_JSON)
def test_what_is_not_json_says_so(data: bytes) -> None:
    assert scan([data], A, B) == [Absence.NOT_JSON] * 2
    assert scan(cut(data, [1] * len(data)), A, B) == [Absence.NOT_JSON] * 2


def test_a_byte_order_mark_is_no_part_of_the_document() -> None:
    for sizes in ([], [1], [2], [3], [1, 1, 1]):
        assert scan(cut(b'\xef\xbb\xbf{"a":1}', sizes), A) == [1]


@pytest.mark.parametrize("data", [b"12", b" 12 ", b'"12"', b"true", b"null", b"-0.5e3"])
def test_a_document_may_be_one_value(data: bytes) -> None:
    for reads in ([data], cut(data, [1] * len(data))):
        assert scan(reads, Pointer(())) == [json.loads(data)]


def test_brackets_are_followed_as_deep_as_readers_of_json_go() -> None:
    deep = b'{"b":' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b',"a":1}'
    assert scan([deep], A) == [1]
    assert scan([b'{"b":' + b"[" * 100_000 + b"]" * 100_000 + b',"a":1}'], A) == [Absence.NOT_JSON]


LONG = {
    "a text off the way": (b'{"c":"' + b"x" * 500_000 + b'","a":1}', 1),
    "a text with escapes off the way": (b'{"c":"' + b'\\"\\u0041\\n' * 50_000 + b'","a":1}', 1),
    "a text on the way": (b'{"a":"' + b"x" * 500_000 + b'"}', Absence.NOT_PLAIN),
    "a name": (b'{"' + b"x" * 500_000 + b'":2,"a":1}', 1),
    "a name with escapes": (b'{"' + b'\\"' * 250_000 + b'":2,"a":1}', 1),
    "space before a colon": (b'{"a"' + b" " * 500_000 + b":1}", 1),
    "space everywhere": (b" {%b\"a\"%b:%b1%b}%b".replace(b"%b", b" \n" * 50_000), 1),
    "a number": (b'{"a":' + b"1" * 500_000 + b"}", Absence.NOT_JSON),
    "an array of numbers": (b'{"c":[' + b"0.123," * 90_000 + b'1],"a":1}', 1),
    "an array of objects": (b'{"c":[' + b'{"a":2,"c":[3]},' * 30_000 + b'{}],"a":1}', 1),
    "many members": (b"{" + b"".join(b'"k%d":%d,' % (n, n) for n in range(30_000)) + b'"a":1}', 1),
}  # fmt: skip


@pytest.mark.parametrize("size", [997, 65_536])
@pytest.mark.parametrize("kind", LONG)
def test_little_of_a_long_document_is_kept(kind: str, size: int) -> None:
    data, found = LONG[kind]
    scanning = JsonScan(PointerTree([A]))
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    tracemalloc.start()
    try:
        for piece in pieces:
            scanning.feed(piece)
            kept, _ = tracemalloc.get_traced_memory()
            assert kept < 4 * TOKEN_MAX
    finally:
        tracemalloc.stop()
    scanning.end()
    assert scanning.values == [found]


def test_the_same_pointer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        PointerTree([A, B, A])


def test_any_name_can_be_on_a_way() -> None:
    document = {name: {name: position} for position, name in enumerate(NAMES)}
    pointers = [Pointer((name, name)) for name in NAMES]
    assert scan([orjson.dumps(document)], *pointers) == list(range(len(NAMES)))


@pytest.mark.parametrize("text", [b'["a\x00"]', b'["a\nb", 1]', b'["\\n\x00"]', b'{"a": {"b": ["x\x1f"]}}'])
def test_a_control_character_in_a_string_is_not_json_wherever_the_document_is_cut(text: bytes) -> None:
    for size in range(1, len(text) + 1):
        assert scan(cut(text, [size] * len(text)), Pointer(("z",))) == [Absence.NOT_JSON]
