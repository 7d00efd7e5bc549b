"""Routes: the longest prefix on segment borders, then the host, then the method; and what the upstream is asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http1.target import Target, normalise
from gateway.routing import Route, RouteTable, Upstream

PLAIN = Upstream("http", "up", 80)
WITH_PATH = Upstream("https", "up", 443, b"/base")


def route(
    name: str, path: bytes = b"/", host: bytes | None = None, methods: set[bytes] | None = None
) -> Route:
    return Route(name, path, (PLAIN,), host=host, methods=frozenset(methods) if methods else None)


def match(table: RouteTable, path: bytes, host: bytes = b"a", method: bytes = b"GET") -> str | None:
    found = table.match(method, host, path)
    return found.name if found else None


PREFIXES = RouteTable([route("root"), route("v1", b"/v1"), route("chat", b"/v1/chat/"), route("v", b"/v")])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/", "root"), (b"/x", "root"), (b"/v1", "v1"), (b"/v1/", "v1"), (b"/v1/x", "v1"), (b"/v1x", "root"), (b"/V1", "root"),
        (b"/v1/chat", "chat"), (b"/v1/chat/", "chat"), (b"/v1/chat/x/y", "chat"), (b"/v1/chatter", "v1"), (b"/v", "v"),
        (b"/v/1", "v"), (b"/v1%2F", "root"),
    ],
)  # fmt: skip
def test_the_longest_prefix_that_ends_at_a_segment_border_wins(path: bytes, name: str) -> None:
    assert match(PREFIXES, path) == name


def test_the_order_in_the_file_does_not_decide() -> None:
    backwards = RouteTable(tuple(reversed(PREFIXES.routes)))
    for path in (b"/", b"/v1", b"/v1/chat/x", b"/v/x"):
        assert match(PREFIXES, path) == match(backwards, path)


def test_without_a_route_for_the_root_other_paths_have_none() -> None:
    table = RouteTable([route("v1", b"/v1/")])
    assert match(table, b"/v1") == "v1"
    assert match(table, b"/v2") is None
    assert match(table, b"/") is None
    assert match(table, b"*", method=b"OPTIONS") is None
    assert match(RouteTable([]), b"/") is None


def test_the_server_as_a_whole_belongs_to_the_root_alone() -> None:
    assert match(PREFIXES, b"*", method=b"OPTIONS") == "root"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"api.example", "api"), (b"API.Example:8443", "api"), (b"api.example:", "api"), (b"other", "any"),
        (b"sub.api.example", "any"), (b"[::1]", "six"), (b"[::1]:80", "six"), (b"[::2]", "any"), (b"", "any"),
    ],
)  # fmt: skip
def test_a_route_that_names_the_host_is_asked_before_one_that_does_not(host: bytes, name: str) -> None:
    table = RouteTable([route("any"), route("api", host=b"api.example"), route("six", host=b"[::1]")])
    assert match(table, b"/x", host) == name


def test_a_longer_prefix_wins_over_a_named_host() -> None:
    table = RouteTable([route("host", host=b"a"), route("path", b"/v1")])
    assert match(table, b"/v1/x") == "path"


def test_methods_narrow_what_is_left_and_the_rest_falls_through() -> None:
    table = RouteTable([route("root"), route("write", b"/v1", methods={b"POST", b"PUT"})])
    assert match(table, b"/v1", method=b"POST") == "write"
    assert match(table, b"/v1", method=b"GET") == "root"
    assert match(RouteTable([route("write", methods={b"POST"})]), b"/", method=b"post") is None


def sent(target: bytes, path: bytes, upstream: Upstream, *, strip: bool) -> bytes:
    return Route("r", path, (upstream,), strip_path=strip).upstream_target(
        normalise(b"GET", target, b""), upstream
    )


@pytest.mark.parametrize(
    ("target", "path", "upstream", "strip", "expected"),
    [
        (b"/v1/x?q", b"/v1/", PLAIN, False, b"/v1/x?q"),
        (b"/v1/x?q", b"/v1/", PLAIN, True, b"/x?q"),
        (b"/v1/x?q", b"/v1", PLAIN, True, b"/x?q"),
        (b"/v1?q", b"/v1", PLAIN, True, b"/?q"),
        (b"/v1/?q", b"/v1", PLAIN, True, b"/?q"),
        (b"/v1/x", b"/v1", WITH_PATH, False, b"/base/v1/x"),
        (b"/v1/x", b"/v1", WITH_PATH, True, b"/base/x"),
        (b"/v1", b"/v1", WITH_PATH, True, b"/base"),
        (b"/v1/", b"/v1", WITH_PATH, True, b"/base/"),
        (b"/", b"/", PLAIN, True, b"/"),
        (b"/x//y", b"/", PLAIN, True, b"/x/y"),
        (b"/", b"/", WITH_PATH, False, b"/base/"),
        (b"/a%20b?%2F", b"/", PLAIN, False, b"/a%20b?%2F"),
    ],
)  # fmt: skip
def test_the_upstream_is_asked_for_the_normal_form_behind_its_own_path(
    target: bytes, path: bytes, upstream: Upstream, strip: bool, expected: bytes
) -> None:
    assert sent(target, path, upstream, strip=strip) == expected


def test_a_question_about_the_server_as_a_whole_is_passed_on_as_such() -> None:
    for upstream in (PLAIN, WITH_PATH):
        route = Route("r", b"/", (upstream,), strip_path=True)
        assert route.upstream_target(Target(b"*", b""), upstream) == b"*"


@pytest.mark.parametrize(
    ("upstream", "authority"),
    [
        (Upstream("http", "up", 80), b"up"), (Upstream("http", "up", 443), b"up:443"), (Upstream("https", "up", 443), b"up"),
        (Upstream("https", "10.0.0.4", 8443), b"10.0.0.4:8443"), (Upstream("http", "::1", 80), b"[::1]"),
        (Upstream("http", "::1", 8080), b"[::1]:8080"),
    ],
)  # fmt: skip
def test_an_upstream_is_addressed_as_its_url_says(upstream: Upstream, authority: bytes) -> None:
    assert upstream.authority == authority


NAMES = st.sampled_from([b"v1", b"v2", b"chat", b"a"])
PATHS = st.lists(NAMES, max_size=4).map(lambda segments: b"/" + b"/".join(segments))


@given(st.lists(PATHS, unique=True, max_size=5), PATHS, st.booleans())
def test_a_path_goes_where_its_longest_given_beginning_says(
    prefixes: list[bytes], path: bytes, slash: bool
) -> None:
    table = RouteTable(
        [route(prefix.decode(), prefix + (b"/" if slash and prefix != b"/" else b"")) for prefix in prefixes]
    )
    segments = path.split(b"/")
    beginnings = [b"/".join(segments[:count]) or b"/" for count in range(len(segments), 0, -1)]
    expected = next((begin.decode() for begin in beginnings if begin in prefixes), None)
    assert match(table, path) == expected
