"""JSON pointers, as RFC 6901 has them."""

import pytest

from gateway.json_pointer import (
    NOWHERE,
    POINTER_DEPTH_MAX,
    POINTER_LENGTH_MAX,
    JsonValue,
    look_up,
    parse_pointer,
)

# RFC 6901 §5
DOCUMENT: dict[str, JsonValue] = {
    "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8,
}  # fmt: skip
EXAMPLES: dict[str, JsonValue] = {
    "": DOCUMENT, "/foo": ["bar", "baz"], "/foo/0": "bar", "/foo/1": "baz", "/": 0, "/a~1b": 1, "/c%d": 2, "/e^f": 3,
    "/g|h": 4, "/i\\j": 5, '/k"l': 6, "/ ": 7, "/m~0n": 8,
}  # fmt: skip


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_examples_of_the_standard_lead_where_it_says(text: str) -> None:
    pointer = parse_pointer(text)
    assert look_up(DOCUMENT, pointer.names) == EXAMPLES[text]
    assert str(pointer) == text


@pytest.mark.parametrize(
    "text", ["/foo/2", "/foo/-", "/foo/00", "/foo/01", "/foo/bar", "/foo/0/0", "/bar", "//", "/foo/٣"]
)
def test_what_is_not_there_is_nowhere(text: str) -> None:
    assert look_up(DOCUMENT, parse_pointer(text).names) is NOWHERE


def test_an_empty_object_that_is_there_is_not_nowhere() -> None:
    assert look_up({"a": {}}, ("a",)) is not NOWHERE


def test_a_tilde_and_a_one_in_a_name_are_no_slash() -> None:
    assert parse_pointer("/~01").names == ("~1",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("usage.completion_tokens", 'write "/usage/completion_tokens"'),
        ("#/usage", 'starts with "/"'),
        ("/a~b", '"~" is written "~0"'),
        ("/a~2", '"~" is written "~0"'),
        ("/" + "a" * POINTER_LENGTH_MAX, f"at most {POINTER_LENGTH_MAX}"),
        ("/a" * (POINTER_DEPTH_MAX + 1), f"at most {POINTER_DEPTH_MAX}"),
    ],
)
def test_what_is_no_pointer_is_refused_with_the_way_to_write_it(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_pointer(text)
