"""Random JSON, written in every way that JSON allows, for the tests of what reads it."""

from __future__ import annotations

import json

from hypothesis import settings
from hypothesis import strategies as st

from gateway.json_pointer import Pointer

NAMES = ("a", "b", "usage", "model", "0", "1", "x/y", "é", 'q"', "")
"""Few, so that they are met again, on the way to a pointer and off it."""

REPEATABLE = settings(derandomize=True, database=None, deadline=None)

_TEXTS = st.one_of(
    st.sampled_from(
        ["", "a", "model", '"', "\\", '\\"', "{", "]", '","model":"z', "\u2028", "\U0001f600", "\x7f", "/*"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False), _TEXTS,
)  # fmt: skip


class Members(list[tuple[str, object]]):
    """An object whose names may be there twice."""


Written = object
"""A JsonValue, with Members for objects."""


def _nest(values: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    return st.one_of(
        st.lists(values, max_size=4),
        st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=5).map(Members),
    )


VALUES: st.SearchStrategy[Written] = st.recursive(_SCALARS, _nest, max_leaves=25)
POINTERS = st.lists(
    st.lists(st.sampled_from(NAMES), max_size=3).map(lambda names: Pointer(tuple(names))),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A document as bytes."""
    return "".join(_write(draw, draw(VALUES))).encode()


def _write(draw: st.DrawFn, value: Written) -> list[str]:
    def space() -> str:
        return draw(st.sampled_from(["", "", "", " ", "\n", "\t \r"]))

    if isinstance(value, Members):
        parts = []
        for name, inner in value:
            parts += [",", space(), _spell(draw, name), space(), ":", *_write(draw, inner)]
        return [space(), "{", space(), *parts[1:], "}", space()]
    if isinstance(value, list):
        parts = [part for inner in value for part in (",", *_write(draw, inner))]
        return [space(), "[", space(), *parts[1:], "]", space()]
    if isinstance(value, str):
        return [space(), _spell(draw, value), space()]
    return [space(), json.dumps(value), space()]


def _spell(draw: st.DrawFn, text: str) -> str:
    spelled = json.dumps(text, ensure_ascii=draw(st.booleans()))
    if text and text.isalnum() and text.isascii() and draw(st.integers(0, 3)) == 0:
        return f'"\\u{ord(text[0]):04x}{text[1:]}"'
    return spelled


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in reads of these sizes; the rest in one."""
    reads, position = [], 0
    for size in sizes:
        reads.append(data[position : position + size])
        position += size
    return [read for read in (*reads, data[position:]) if read]


SPLITS = st.lists(st.integers(1, 30), max_size=30)
