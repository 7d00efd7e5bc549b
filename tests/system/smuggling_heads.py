"""Requests whose heads are made to be read in two ways, or to say who is calling: see `smuggling_cases`."""

from __future__ import annotations

from collections.abc import Iterator

from tests.system.smuggling_cases import (
    AUTHORIZATION,
    CASE,
    FORGED,
    HOST,
    LAST,
    LINE,
    PASSED,
    POISON,
    TOKEN,
    UNROUTED,
    Case,
    each,
    get,
    request,
    shown,
    with_length,
)

_CONTROLS = [bytes((byte,)) for byte in (*range(0x20), 0x7F)]
_PATH = b"/raw/" + CASE


_NAMES_REFUSED = (
    b"", b" ", b"X A", b"X-A ", b"X-A\t", b"X\xe9", b"X\xc2\xad", b"X(A)", b"X@A", b"X,A", b"X/A", b"X[A]", b'"X-A"',
    b"X=A", b"{X}", b"X\\A",
)  # fmt: skip
_FIELDS_REFUSED = (
    b"no colon", b" : folded", b" X-A: b", b"\tX-A: b", b"X-A: b\r\n c", b"X-A: b\r\n\tc", b"X-A:\r\n b",
    b"X-A: b\r\n \r\n c", b"X-A: b\r\n\x0bc",
)  # fmt: skip


def characters() -> Iterator[Case]:
    values = [byte for byte in _CONTROLS if byte != b"\t"]
    yield from each("in a value", values, lambda it: get(b"X-A: b" + it + b"c"))
    yield from each("in a name", _CONTROLS, lambda it: get(b"X-" + it + b"A: b"))
    yield from each("in the target", _CONTROLS, lambda it: get(target=_PATH + it + b"x"))
    yield from each("in the query", _CONTROLS, lambda it: get(target=_PATH + b"?a=" + it + b"x"))
    yield from each("in the method", _CONTROLS, lambda it: request(first=b"GE%bT %b HTTP/1.1" % (it, _PATH)))
    yield from each("a name", _NAMES_REFUSED, lambda it: get(it + b": b"))
    yield from each("a line", _FIELDS_REFUSED, get)
    good = (b"\xe9", b"caf\xc3\xa9", b"\x80\xff", b"a\tb", b": b", b"")
    yield from each("a good value", good, lambda it: get(b"X-A: " + it), PASSED, b"")


def line_ends() -> Iterator[Case]:
    good = get(b"X-A: b")
    for old, new in (
        (b"1.1\r\n", b"1.1\n"), (b"1.1\r\n", b"1.1\r"), (b"1.1\r\n", b"1.1\n\r"), (b"1.1\r\n", b"1.1\r\r\n"),
        (b"test\r\n", b"test\n"), (b"test\r\n", b"test\r"), (b"test\r\n", b"test\r\r\n"), (b"test\r\n", b"test\r\n\n"),
        (b"b\r\n\r\n", b"b\n\n"), (b"b\r\n\r\n", b"b\r\n\n"), (b"b\r\n\r\n", b"b\n\r\n"), (b"b\r\n\r\n", b"b\r\r"),
        (b"b\r\n\r\n", b"b\r\n\r\r\n"), (b"b\r\n\r\n", b"b\r\n\r"), (b"b\r\n\r\n", b"b\r\n \r\n\r\n"),
        (b"b\r\n\r\n", b"b\r\n\x00\r\n"), (b"GET", b"\r\n\r\nGET"), (b"GET", b"\nGET"), (b"GET", b"\rGET"),
        (b"GET", b" \r\nGET"), (b"GET", b"\r\n GET"), (b"GET", b"\x00GET"), (b"GET", b"\xef\xbb\xbfGET"),
        (b"GET", b"\r\n\r\n\r\nGET"), (b"GET", b"X\r\nGET"), (b"GET", b"0\r\n\r\nGET"),
    ):  # fmt: skip
        yield Case(f"line end {shown(old)} as {shown(new)}", good.replace(old, new, 1))
    yield Case("one empty line before a request", b"\r\n" + good, PASSED, b"")
    yield Case("an empty line between requests", good, PASSED, b"", behind=b"\r\n" + POISON)
    yield Case("two empty lines between requests", good, (200, 400), b"", behind=b"\r\n\r\n" + POISON)
    body = with_length(body=b"abc")
    yield Case("an extra line end behind a body", body, PASSED, b"abc", behind=b"\r\n" + POISON)


_LINES_REFUSED = (
    b"GET  @", b"GET @ ", b" GET @", b"\tGET @", b"GET\t@", b"GET @\t", b"GET  ", b"GET", b"@", b"GET @ @", b"GET @ x",
    b"GET\xa0@", b"G(T @", b"GET: @", b"GE,T @", b"G\xc9T @", b'"GET" @', b"GET @\xa0",
)  # fmt: skip
_VERSIONS = {
    b"http/1.1": 400, b"Http/1.1": 400, b"HTTP/1.1.1": 400, b"HTTP/01.1": 400, b"HTTP/1.01": 400, b"HTTP/1,1": 400,
    b"HTTP/1.": 400, b"HTTP/.1": 400, b"HTTPS/1.1": 400, b"XTTP/1.1": 400, b"HTTP 1.1": 400, b"HTTP/1.1x": 400,
    b"HTTP/11": 400, b"HTTP/-1.1": 400, b"HTTP/1.1\x0b": 400, b"HTTP/1.1 ": 400, b"HTTP/1.1\t": 400,
    b"HTTP/\xd9\xa1.1": 400, b"1.1": 400, b"": 400, b"HTTP/1.1;a=b": 400, b"HTTP/1.2": 505, b"HTTP/1.9": 505,
    b"HTTP/0.9": 505, b"HTTP/2.0": 505, b"HTTP/2": 505, b"HTTP/3": 505, b"HTTP/9.9": 505, b"HTTP/0.0": 505,
}  # fmt: skip


def request_lines() -> Iterator[Case]:
    line = b"%b HTTP/1.1"
    yield from each("request line", _LINES_REFUSED, lambda it: request(first=line % it.replace(b"@", _PATH)))
    for version, status in _VERSIONS.items():
        yield Case(f"version {shown(version)}", request(first=b"GET " + _PATH + b" " + version), (status,))
    yield Case("a request of 0.9", b"GET " + _PATH + b"\r\n\r\n")
    yield Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (505,))
    yield Case("a method that is too long", request(first=b"G" * 33 + b" " + _PATH + b" HTTP/1.1"), (501,))
    methods = (b"CONNECT", b"TRACE")
    yield from each("method", methods, lambda it: request(first=it + b" " + _PATH + b" HTTP/1.1"), (501,))
    yield Case("CONNECT of a host", request(first=b"CONNECT gateway.test:80 HTTP/1.1"), (501,))
    yield Case("a target that is too long", get(target=_PATH + b"/" + b"x" * 8192), (414,))
    yield Case("a field that is too long", get(b"X-A: " + b"x" * 33_000), (431,))
    yield Case("fields that are too many", get(*[b"X-A: b"] * 101), (431,))


_HOSTS_REFUSED = (
    b"", b" ", b"a b", b"a,b", b"gateway.test, gateway.test", b"user@gateway.test", b"gateway.test@evil",
    b"gateway.test/raw", b"gateway.test:80:80", b"gateway.test:99999", b"gateway.test:8o", b"gateway.test:-80",
    b"gateway.test: 80", b"gateway.test :80", b"[::1", b"::1", b"[::g]", b"[::1]x", b"[::1]:80:80", b"[127.0.0.1]",
    b"[]", b"[::1%25eth0]", b"gateway%2etest", b"gateway.test\tevil", b"g\xe4teway", b"gateway.test?a",
    b"gateway.test#a", b"gateway.test\\evil", b"<gateway>", b"gateway;test", b"'gateway'", b'"gateway.test"', b"*",
    b"*.test", b"http://gateway.test", b"gateway.test\x00", b"gateway.test\n", b"gateway.test\r",
    b"gateway.test\r\n evil", b"\x0bgateway.test", b"gateway|test", b"g" * 256, b":80", b"gateway.test\xa0",
)  # fmt: skip
_HOST_LINES_REFUSED = (
    b"", HOST + b"\r\n" + HOST, HOST + b"\r\nHost: evil.test", HOST + b"\r\nhost: evil.test", b"Host:\r\n" + HOST,
    b"Host : gateway.test", b"Host\t: gateway.test", b" Host: gateway.test", b"X-A: b\r\n Host: gateway.test",
    b"X-A: b\nHost: gateway.test", b"Host:\r\n gateway.test", b"Host gateway.test", b"X-Host: gateway.test",
    b"Host_: gateway.test", HOST + b"\r\nX-A: b\r\nHOST: gateway.test", b"H\xf6st: gateway.test",
)  # fmt: skip


_GOOD_HOSTS = (b"GATEWAY.test:80", b"[::1]:80", b"127.0.0.1", b"gateway.test:", b"_a.b-c~d")
_TARGETS_REFUSED = (
    b"http://evil.test/raw/@", b"http://gateway.test:81/raw/@", b"http://user@gateway.test/raw/@",
    b"http://gateway.test@evil/raw/@", b"ftp://gateway.test/raw/@", b"http:/raw/@", b"http:///raw/@", b"http:raw/@",
    b"gateway.test:80", b"gateway.test/raw/@", b"raw/@", b"?a=@", b"*", b"http://gateway.test\\@evil/raw/@",
    b"http://gateway.test#/raw/@", b"http://gateway.test%2f/raw/@", b"://gateway.test/raw/@",
)  # fmt: skip
_GOOD_TARGETS = (b"http://gateway.test/raw/@", b"HTTP://GATEWAY.TEST/raw/@", b"https://gateway.test//raw/./@")


def hosts() -> Iterator[Case]:
    yield from each("host", _HOSTS_REFUSED, lambda it: get(host=b"Host: " + it))
    yield from each("host line", _HOST_LINES_REFUSED, lambda it: get(host=it))
    yield from each("good host", _GOOD_HOSTS, lambda it: get(host=b"Host: " + it), PASSED, b"")
    old = b"GET " + _PATH + b" HTTP/1.0"
    yield Case("1.0 without a host", request(first=old, host=b""), LAST, b"")
    yield Case("1.0 with two hosts", request(first=old, host=HOST + b"\r\n" + HOST))
    yield from each("target", _TARGETS_REFUSED, at)
    yield Case("a target without a path", get(target=b"http://gateway.test"), UNROUTED)
    for target in _GOOD_TARGETS:
        yield Case(f"good target {shown(target)}", at(target), PASSED, b"", target=_PATH)


def at(target: bytes) -> bytes:
    return get(target=target.replace(b"@", CASE))


_PATHS_REFUSED = (
    b"/raw/%2f@", b"/raw/%2F@", b"/raw%2f@", b"/raw/..%2f@", b"/raw/%5c@", b"/raw/..%5C..%5c@", b"/raw/%00@",
    b"/raw/@%00.png", b"/raw/@%0d%0aX:%20y", b"/raw/%7f@", b"/raw/%c0%ae%c0%ae/@", b"/raw/%c0%af@", b"/raw/%e0%80%af@",
    b"/raw/%f0%80%80%af@", b"/raw/%ff@", b"/raw/%ed%a0%80@", b"/raw/%u002e@", b"/raw/@%", b"/raw/@%2", b"/raw/%g0@",
    b"/raw/%%32%65@", b"/raw/..;/@", b"/raw/..;a=b/@", b"/raw/.;/@", b"/raw/x/..;@", b"/raw/%2e%2e;/@", b"/raw/..%3b/@",
    b"/raw/..%3Ba/@", b"/raw/\\@", b"/raw/..\\@", b"\\raw\\@", b"/raw/@#x", b"/raw/@?a#b", b"/raw/\xe9@",
    b"/raw/caf\xc3\xa9@", b"/raw/@?\xff", b"/raw/<@>", b'/raw/"@"', b"/raw/{@}", b"/raw/|@", b"/raw/^@", b"/raw/`@",
    b"/raw/[@]",
)  # fmt: skip
_PATHS_ELSEWHERE = (
    b"/raw/../admin/@", b"/raw/%2e%2e/admin/@", b"/raw/.%2E/admin/@", b"/raw/x/../../admin/@", b"//evil.test/raw/@",
    b"/./admin/raw/@", b"/RAW/@", b"/raw@", b"/http://gateway.test/raw/@", b"/%72aw/../@", b"/-/raw/@", b"/",
)  # fmt: skip
_PATHS_NORMALISED = (
    b"/raw/x/../@", b"/raw/x/%2e%2e/@", b"//raw///@", b"/./raw/./@", b"/x/../raw/@", b"/%72%61w/@", b"/../../raw/@",
    b"/x/%2E%2e/raw/@",
    b"/asis/../raw/@", b"/asis/%2e%2e/raw/@",
)  # fmt: skip


_PATHS_KEPT = (
    b"/raw/%252e%252e/@", b"/raw/%252f@", b"/raw/...;/@", b"/raw/%C3%A9@", b"/raw/;/@", b"/raw/a%3Bb/@",
    b"/raw/@?a=../..&b=%2f%5c%00", b"/asis/%2f@", b"/asis/%5C%00@", b"/asis/%ff@?%ff",
)  # fmt: skip
_RAW_PATHS_REFUSED = (
    b"/asis/x/../@", b"/asis/%2e%2e/asis/@", b"/asis/..%2fraw/@", b"/asis/..%5craw/@", b"/asis/x%2f..%2f..%2fraw/@",
    b"/asis/..;/raw/@", b"/asis/..%3b/raw/@", b"/%61sis/@", b"//asis/@", b"/raw/../asis/@", b"/raw/..%2fasis/@",
    b"/asis%2f@",
)  # fmt: skip


def paths() -> Iterator[Case]:
    yield from each("path", _PATHS_REFUSED, at)
    yield from each("raw path", _RAW_PATHS_REFUSED, at)
    yield from each("path", _PATHS_ELSEWHERE, at, UNROUTED)
    for path in _PATHS_NORMALISED:
        yield Case(f"path {shown(path)}", at(path), PASSED, b"", target=_PATH)
    for path in _PATHS_KEPT:
        yield Case(f"path {shown(path)}", at(path), PASSED, b"", target=path.replace(b"@", CASE))


# -- who is calling, and what Connection may take away

_NOMINATED = (
    b"Host", b"host, Content-Length", b"Transfer-Encoding, content-length", b"Authorization",
    b"X-Principal, x-principal-id, X-PRINCIPAL-KEY-ID", b"X-Principal-Organization", b"Cookie", b"X-Request-Id",
    b"Via, Forwarded, X-Forwarded-For", b"close, x-principal", b"Connection", b",,x-principal,,", b"X_Principal",
    b"Expect", b"TE", b"*", b"Upgrade", b"x-api-key", b"keep-alive, content-length",
)  # fmt: skip
_PRETENDERS = (
    b"X-Principal", b"x-principal", b"X_PRINCIPAL", b"x_principal", b"X.Principal", b"X~Principal", b"X!Principal",
    b"X-Principal-Id", b"X_Principal_Id", b"X-Principal_Key-Id", b"x-principal_organization", b"X'Principal",
    b"X*Principal-Key-Id", b"X`Principal", b"X^Principal", b"X|Principal", b"X#Principal", b"X$Principal",
    b"X%Principal", b"X&Principal", b"X+Principal",
)  # fmt: skip
_CREDENTIALS = (
    b"X-Api-Key: " + TOKEN, b"X_Api_Key: " + TOKEN, b"Proxy-Authorization: Bearer " + TOKEN, b"X-Api-Key: nobody",
    b"Authorization_: x", b"Proxy_Authorization: Basic eDp5", b"X.Api.Key: " + TOKEN,
)  # fmt: skip


_PRETENDERS_REFUSED = (
    b"X-Principal : ", b" X-Principal: ", b"X-Principal\x00: ", b"X-A: b\nX-Principal: ", b"X-A: b\rX-Principal: ",
    b"X-A: b\r\n X-Principal: ", b"X-Principal\xad: ", b"X\xe2\x80\x90Principal: ", b"X Principal: ",
    b"X-Principal: a\r\nX-Principal\t: ", b"X-Principal", b"X-Principal:\r\n ",
)  # fmt: skip
_NOMINATED_REFUSED = (b"X-Principal\x00", b"X-Principal\x0b", b"\x7f", b"close\nX-A: b", b"\r\n close")
_CREDENTIALS_REFUSED = (
    AUTHORIZATION, b"Authorization: Bearer x", b"authorization: Basic eDp5", b"X-Api-Key: a\r\nX-Api-Key: b",
    b"X-A: b\r\n " + AUTHORIZATION,
)  # fmt: skip


def identities() -> Iterator[Case]:
    for names in _NOMINATED:
        lines = (b"Connection: " + names, b"X-Principal: " + FORGED, b"Cookie: a=b")
        statuses = LAST if b"close" in names else PASSED
        yield Case(f"connection takes {shown(names)}", with_length(*lines, body=b"abc"), statuses, b"abc")
    yield from each("connection takes", _NOMINATED_REFUSED, lambda it: get(b"Connection: " + it))
    twice = b"%b: " + FORGED + b"\r\n%b:" + FORGED
    yield from each("pretends by", _PRETENDERS, lambda it: get(twice % (it, it)), PASSED, b"")
    yield from each("pretends badly by", _PRETENDERS_REFUSED, lambda it: get(it + FORGED))
    yield from each("credentials", _CREDENTIALS, get, PASSED, b"")
    yield from each("repeated credentials", _CREDENTIALS_REFUSED, get)
    yield Case("a token in the target", get(target=_PATH + b"?key=" + TOKEN))
    yield Case("a token as a field's name", get(TOKEN + b": x"), PASSED, b"")
    yield Case("a token in another field", get(b"X-Other: " + TOKEN), PASSED, b"")


# -- several requests, and parts of one

_GARBAGE = (
    b"\x00", b"x\r\n\r\n", b"\n", b"\r", b"GET\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x16\x03\x01", b" ", b"\r\n\r\n",
    b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\n\r\n",
)  # fmt: skip


def sequences() -> Iterator[Case]:
    good = get()
    for garbage in _GARBAGE:
        name = f"garbage behind a request {shown(garbage)}"
        yield Case(name, good, (200, 400), b"", behind=garbage + POISON)
    yield Case("a longer method behind a request", good, PASSED, b"", behind=b"hello" + POISON)
    two = with_length(body=b"abc") + good
    yield Case("two good requests and one without a token", two, (200, 200, 401))
    yield Case("two good requests and a bad one", two, (200, 200, 400), behind=_GARBAGE[-1] + POISON)
    yield Case("a request behind a last one", get(b"Connection: close"), LAST, b"")
    yield Case("a body that is shorter than its length", request(b"Content-Length: 500", body=b"abc"), (408,))
    yield Case("a head without an end", good[:-2], (408,), behind=b"")
    yield Case("a request line without an end", LINE[:20], (408,), behind=b"")
    by_length = with_length(body=b"abc")
    coded = request(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\nSum: 1\r\n\r\n")
    for message, marks in (
        (by_length, (b"OST", b"/raw", b" HTTP", b"1\r\n", b"ost: ", b"Length", b": 3", b"\r\n\r\n", b"abc")),
        (coded, (b"3\r\na", b"\nabc", b"bc\r\n", b"0\r\nS", b"Sum: 1", b"1\r\n\r\n")),
    ):
        for mark in marks:
            cut = message[: message.rindex(mark) + len(mark) - 1]
            yield Case(f"cut before the end of {shown(mark)}", cut, (), behind=b"", hangs_up=True)
