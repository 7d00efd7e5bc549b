"""Targets: one normal form, which is routed on and sent on; what could be read in two ways is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http1.head import HeadError
from gateway.http1.target import Target, normalise

SEGMENTS = st.sampled_from([
    b"", b".", b"..", b"...", b"a", b"A", b"%61", b"%41", b"%2e", b"%2E%2e", b".%2E", b"%7e", b"~", b"%C3%A9", b"%c3%a9",
    b"%25", b"%252f", b"a.b", b"-", b"v1", b"a;b=c", b"%3B", b"!$&'()*+,;=:@", b"%20",
])  # fmt: skip
PATHS = st.lists(SEGMENTS, min_size=1, max_size=8).map(lambda segments: b"/" + b"/".join(segments))
QUERIES = st.one_of(
    st.just(b""), st.sampled_from([b"?", b"?a=b", b"?%zz%2F%00", b"?a/../b", b"?//?", b"?\\|{}^\"'"])
)


def path_of(target: bytes, method: bytes = b"GET") -> bytes:
    """The path as routes without `raw_path` are asked for it."""
    normal = normalise(method, target, b"api.example")
    if normal.objection is not None:
        raise HeadError(400, normal.objection)
    return normal.path


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"), (b"/a", b"/a"), (b"/a/", b"/a/"), (b"/a.b/.c", b"/a.b/.c"), (b"/...", b"/..."),
        (b"//", b"/"), (b"//a", b"/a"), (b"/a//b", b"/a/b"), (b"/a//", b"/a/"),
        (b"/./a", b"/a"), (b"/a/.", b"/a/"), (b"/a/./b", b"/a/b"),
        (b"/..", b"/"), (b"/../../a", b"/a"), (b"/a/..", b"/"), (b"/a/../", b"/"), (b"/a/b/..", b"/a/"),
        (b"/a/b/../c", b"/a/c"), (b"/a/../../../b", b"/b"), (b"/a//../b", b"/b"),
        (b"/%2e%2e/a", b"/a"), (b"/a/%2E%2e/b", b"/b"), (b"/a/%2e", b"/a/"), (b"/.%2e/%2e./b", b"/b"),
        (b"/%61%41%30%2d%5f%7e", b"/aA0-_~"), (b"/%c3%a9", b"/%C3%A9"), (b"/%3a%2C", b"/%3A%2C"),
        (b"/%25%32%66", b"/%252f"), (b"/%252F", b"/%252F"), (b"/a%20b", b"/a%20b"), (b"/%5B%5D", b"/%5B%5D"),
    ],
)  # fmt: skip
def test_each_spelling_has_its_normal_form(target: bytes, path: bytes) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"/a%2Fb", b"/a%2fb", b"/%5c", b"/%5C..", b"/\\", b"/a\\..\\b", b"/%00", b"/a%00.js", b"/%0d%0a", b"/%1F", b"/%7f",
        b"/%", b"/%2", b"/%zz", b"/%-1", b"/a%2", b"/%C0%AF", b"/%E0%80%AF", b"/%ED%A0%80", b"/%FF", b"/%C3", b"/%80",
        b"/#", b"/a#b", b"/?a#b", b"/[", b"/{a}", b"/<", b'/"', b"/|", b"/^", b"/`", b"", b"a", b"a/b", b"?a", b"./a", b"..",
        b"ftp://api.example/", b"api.example:443", b"http:/a", b"http://", b"http:///a", b"*x", b"/*\x7f",
    ],
)  # fmt: skip
def test_what_could_be_split_or_read_in_two_ways_is_refused(target: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        path_of(target)
    assert caught.value.status == 400


@pytest.mark.parametrize("method", [b"CONNECT", b"TRACE"])
def test_tunnels_and_echoes_are_not_supported(method: bytes) -> None:
    for target in (b"/", b"api.example:443", b"*"):
        with pytest.raises(HeadError) as caught:
            path_of(target, method)
        assert caught.value.status == 501


def test_only_options_asks_about_the_server_as_a_whole() -> None:
    assert normalise(b"OPTIONS", b"*", b"a") == Target(b"*", b"")
    for method in (b"GET", b"POST", b"options"):
        with pytest.raises(HeadError):
            path_of(b"*", method)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://api.example", b"/", b""), (b"http://api.example/", b"/", b""), (b"HTTPS://API.example/a?b", b"/a", b"?b"),
        (b"http://api.example?q", b"/", b"?q"),
    ],
)  # fmt: skip
def test_an_absolute_target_is_read_like_a_path(target: bytes, path: bytes, query: bytes) -> None:
    assert normalise(b"GET", target, b"api.example") == Target(path, query)


@pytest.mark.parametrize(
    "target",
    [
        b"http://other.example/a", b"http://api.example:80/", b"http://u@api.example/", b"http://api.example@other/",
        b"http://api.example\\@other/", b"http://api.example#@other/",
    ],
)  # fmt: skip
def test_an_absolute_target_that_contradicts_host_is_refused(target: bytes) -> None:
    with pytest.raises(HeadError) as caught:
        path_of(target)
    assert caught.value.status == 400


@given(PATHS, QUERIES)
def test_the_query_is_carried_as_it_came(path: bytes, query: bytes) -> None:
    assert normalise(b"GET", path + query, b"").query == query


@given(PATHS)
def test_the_normal_form_is_its_own_normal_form(path: bytes) -> None:
    normal = path_of(path)
    assert path_of(normal) == normal


@given(PATHS)
def test_the_normal_form_stays_under_the_root_and_has_one_way_to_split(path: bytes) -> None:
    normal = path_of(path)
    assert re.fullmatch(rb"/(?:[^/%\\\x00]|%[0-9A-F]{2}|/(?!/))*", normal)
    assert not {b".", b".."} & set(normal.split(b"/"))
    assert not re.search(rb"%(?:2F|5C|2E|[0-1][0-9A-F]|7F|[46][1-9A-F]|[57][0-9A])", normal)


def normalised(target: bytes) -> Target | int:
    """The target, or the status that it is refused with."""
    try:
        return normalise(b"GET", target, b"api.example")
    except HeadError as error:
        return error.status


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_or_have_a_normal_form(target: bytes) -> None:
    normal = normalised(target)
    if isinstance(normal, Target):
        assert normalise(b"GET", normal.path + normal.query, b"") == normal
    else:
        assert normal == 400


def respell(path: bytes, choices: list[int]) -> bytes:
    """The same path another way: letters and dots percent-encoded, slashes doubled, dot segments put in."""
    spelled = b""
    for position, byte in enumerate(path):
        choice = choices[position % len(choices)] if choices else 0
        after_percent = b"%" in path[max(0, position - 2) : position + 1]
        if byte == ord("/") and choice:
            spelled += (b"/", b"//", b"/./", b"/x/../")[choice]
        elif chr(byte).isalnum() and not after_percent and choice:
            spelled += b"%%%02X" % byte if choice == 1 else b"%%%02x" % byte
        else:
            spelled += bytes((byte,))
    return spelled


@given(PATHS, st.lists(st.integers(0, 3), max_size=12))
def test_every_spelling_of_a_path_has_the_same_normal_form(path: bytes, choices: list[int]) -> None:
    normal = path_of(path)
    assert path_of(respell(normal, choices)) == normal
