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


# -- routes that take the path as it came


def raw_of(target: bytes, base: bytes = b"/files") -> bytes | str:
    """What a route with `raw_path` for `base` is sent, or "refused"."""
    try:
        normal = normalise(b"GET", target, b"api.example")
        if normal.raw:
            normal.take_raw(base)
    except HeadError as error:
        return "refused" if error.status == 400 else f"refused with {error.status}"
    return normal.path


@pytest.mark.parametrize(
    ("target", "objection"),
    [
        (b"/files/a%2Fb", "%2F"), (b"/files/a%2fb", "%2F"), (b"/files/%5C", "%5C"), (b"/files/%00", "%00"), (b"/%1f", "%1F"),
        (b"/%7F", "%7F"), (b"/files/%FF", "UTF-8"), (b"/files/%C0%AF", "UTF-8"), (b"/%ED%A0%80", "UTF-8"),
    ],
)  # fmt: skip
def test_an_ambiguous_encoding_is_an_objection_that_such_a_route_overrules(
    target: bytes, objection: str
) -> None:
    normal = normalise(b"GET", target, b"api.example")
    assert normal.objection is not None
    assert objection in normal.objection
    assert normal.raw == target
    assert raw_of(target, b"") == target


@pytest.mark.parametrize(
    "target",
    [
        b"/files/a//b", b"/files//a", b"/files/a/", b"/files", b"/files/", b"/files/%61", b"/files/%c3%a9", b"/files/a;b=c",
        b"/files/a%3bb", b"/files/%20", b"/files/...", b"/files/a..b", b"/files/..a", b"/files/%2F%2f", b"/files/%25%32%65",
        b"/files/a%2F%5C%00%FF", b"/files/;a", b"/files/%252e%252e/",
    ],
)  # fmt: skip
def test_the_path_goes_on_as_it_came(target: bytes) -> None:
    assert raw_of(target) == target
    assert raw_of(target + b"?a=%2F/..") == target


@pytest.mark.parametrize(
    "target",
    [
        b"/files/..%2F..%2Fetc", b"/files/..%2f..%2fetc", b"/files/..%5C..%5Cetc", b"/files/%2E%2E%2Fa", b"/files/a%2F..",
        b"/files/a%2F.", b"/files/a%2F.%2Fb", b"/files/%2F..", b"/files/a/%2e%2e/b%2Fc", b"/files/./a", b"/files/a/../b",
        b"/files/x/../../files/a", b"/files/a/.", b"/files/%2e/a", b"/files/..%5c", b"/files/..%3Bx%2Fa", b"/files/.%3b",
        b"/files/%2F..;x", b"/files/%2F.;x/a", b"/files/%ff/%2e%2e/a",
    ],
)  # fmt: skip
def test_a_raw_path_that_hides_dot_segments_is_refused_however_it_is_spelled(target: bytes) -> None:
    assert raw_of(target) == "refused"


@pytest.mark.parametrize(
    ("target", "base"),
    [
        (b"/%66iles/a", b"/files"), (b"//files/a", b"/files"), (b"/a/b%2Fc", b"/a/b"), (b"/%76%31/a%2Fb", b"/v1"),
        (b"/v1//x/a", b"/v1/x"), (b"/v1%2Fx/a", b"/v1/x"),
    ],
)  # fmt: skip
def test_a_raw_path_must_begin_as_its_route_is_written(target: bytes, base: bytes) -> None:
    """Else the upstream might look for it elsewhere, and what is stripped off would not be the prefix."""
    assert raw_of(target, base) == "refused"


def test_a_path_in_normal_form_is_the_same_either_way() -> None:
    normal = normalise(b"GET", b"/files/a?b", b"")
    assert (normal.raw, normal.objection) == (b"", None)
    normal.take_raw(b"/files")
    assert normal.path == b"/files/a"


RAW_PIECES = st.sampled_from([
    b"a", b".", b"..", b"%2e", b"%2E", b"%2F", b"%2f", b"%5C", b"%5c", b"/", b"/", b";", b"%3B", b"%25", b"%00", b"%FF", b"x",
])  # fmt: skip


@given(st.lists(RAW_PIECES, max_size=10).map(b"".join))
def test_no_reading_of_a_raw_path_that_is_passed_on_leaves_its_route(rest: bytes) -> None:
    passed = raw_of(b"/files/" + rest)
    if not isinstance(passed, bytes):
        return
    assert passed == b"/files/" + rest
    decoded = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes((int(match[1], 16),)), passed)
    for reading in (passed, decoded, decoded.replace(b"\\", b"/")):
        segments = [segment.partition(b";")[0] for segment in reading.split(b"/")]
        assert segments[1] == b"files"
        assert not {b".", b".."} & set(segments)


@pytest.mark.parametrize(
    "target",
    [
        b"/..;/a", b"/a/..;x/b", b"/a/.;/b", b"/a/..;", b"/..;x=y", b"/%2e%2e;/a", b"/%2E.;x", b"/.%2e;a/b", b"/a/.;x",
        b"/;/..;/a", b"/a/..%3b/b", b"/a/..%3Bx", b"/.%3b/a", b"/%2e%2e%3bx/a",
    ],
)  # fmt: skip
def test_a_dot_segment_with_parameters_is_always_refused(target: bytes) -> None:
    """Servlet containers read `..;x` as `..`."""
    with pytest.raises(HeadError) as caught:
        normalise(b"GET", target, b"")
    assert caught.value.status == 400
    assert raw_of(target, b"") == "refused"


@pytest.mark.parametrize("target", [b"/...;/a", b"/a;..", b"/;..", b"/a..;b", b"/.a;b", b"/..a;b", b"/;.;x"])
def test_other_parameters_are_let_through(target: bytes) -> None:
    assert path_of(target) == target
