"""Conversations that have to be the same with and without the gateway: written by hand here, generated at the end."""

from __future__ import annotations

import random
from collections.abc import Iterable

from tests.system.conversations import (
    Answers,
    Arrives,
    Conversation,
    HangsUp,
    Sends,
    Step,
    Streams,
)

CRLF = b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
CLOSE = b"Connection: close"
KEEP_ALIVE = b"Connection: keep-alive"
HOST = b"Host: gateway.test"
ANOTHER_TOKEN = b"tk_" + b"A" * 16 + b"_" + b"B" * 49
"""Looks like a token, as one of another workload's would."""


def asks(
    *lines: bytes,
    method: bytes = b"GET",
    target: bytes = b"/somewhere",
    version: bytes = b"1.1",
    host: bytes | None = HOST,
    number: int = 0,
    body: bytes | None = None,
) -> bytes:
    """A request; a body comes with its length, whatever else is to follow is for the caller to add."""
    own = [] if host is None else [host]
    own += [b"Authorization: Bearer @TOKEN", b"X-Case: @CASE/%d" % number, *lines]
    own += [] if body is None else [b"Content-Length: %d" % len(body)]
    start = b"%b %b HTTP/%b" % (method, target, version)
    return CRLF.join((start, *own)) + b"\r\n\r\n" + (body or b"")


def says(
    *lines: bytes, status: bytes = b"200 OK", version: bytes = b"1.1", body: bytes | None = b"fine"
) -> bytes:
    """An answer; a body comes with its length, None without."""
    length = [] if body is None else [b"Content-Length: %d" % len(body)]
    return CRLF.join((b"HTTP/%b %b" % (version, status), *lines, *length)) + b"\r\n\r\n" + (body or b"")


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def plain(name: str, request: bytes, answer: bytes | None = None, *more: Step) -> Conversation:
    """Ask, arrive, answer, in this order; an upstream that says so hangs up behind its answer."""
    said = says() if answer is None else answer
    more += (HangsUp(),) if CLOSE in said else ()
    return Conversation(name, (request.split(b" ", 1)[0],), (Sends(request), Arrives(), Answers(said), *more))


def numbered(family: str, conversations: Iterable[tuple[bytes, bytes | None]]) -> list[Conversation]:
    return [plain(f"{family}-{n}", request, answer) for n, (request, answer) in enumerate(conversations)]


# -- requests

METHODS = (
    b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"QUERY", b"PURGE", b"PROPFIND", b"MKCOL", b"REPORT", b"LINK",
    b"M-SEARCH", b"VERSION-CONTROL", b"BASELINE-CONTROL", b"get", b"Get", b"pOST", b"X", b"0", b"-", b"_", b"~", b"*",
    b"!#$%&'*+-.^_`|~09azAZ", b"A" * 32,
)  # fmt: skip
TARGETS = (
    b"/", b"/?", b"/??", b"/?a", b"/?a=", b"/?=", b"/?&&&", b"/?a=1&a=2&a=1", b"/?a;b;c", b"/?q=a+b%20c", b"/?%zz%",
    b"/?/../..//x", b"/?//example.test/", b"/?http://example.test/?q", b"/?%2e%2E%2f%5c%00",
    b"/?\"<>\\^`{|}~!$'()*,:@[]", b"/?" + b"long=" * 1200, b"/a", b"/a/", b"/a/b/c/d/e/f/g", b"/-._~!$&'()*+,;=:@",
    b"/a;b=c;d/e,f", b"/%20", b"/%20/%C3%A9", b"/%E2%82%AC/%F0%9F%92%A9", b"/%25", b"/%252F", b"/a%3Ab",
    b"/%3F%23%5B%5D%22%3C%3E%5E%60%7B%7C%7D", b"/.well-known/x", b"/...", b"/..a/.b/c.", b"/a..b/...c", b"/:80", b"/@", b"/*",
    b"/$metadata('x')", b"/a=b&c=d", b"/" + b"a" * 255, b"/" + b"x/" * 500 + b"y",
)  # fmt: skip
FIELDS: tuple[tuple[bytes, ...], ...] = (
    (b"X-A: 1", b"X-A: 1", b"x-a: 1", b"X-a: 2", b"X-A: 1"),
    (b"X-B: 1", b"X-A: 2", b"X-B: 3", b"X-A: 4", b"X-C: 5", b"X-A: 6"),
    (b"X-Empty:", b"X-Blank: ", b"X-Tab:\t", b"X-Blanks:  \t  ", b"X-Empty:"),
    (b"X-None:none", b"X-Two:  two", b"X-Tab:\ttab", b"X-Trailing: some \t "),
    (b"X-Inner: a  b\tc   d", b"X-Colons: :a:b::", b"X-Quotes: \"a\\\"b\", 'c'", b"X-Commas: ,, a ,,b,"),
    (b"X-Latin: \xe4\xf6\xfc", b"X-Utf: \xe2\x82\xac \xf0\x9f\x92\xa9", b"X-Broken: \xff\xfe\xc0\x80"),
    (b"X-High: " + bytes(range(128, 256)), b"X-Printable: " + bytes(range(0x20, 0x7F)), b"X-Mixed: a\xe4b\tc"),
    (b"!#$%&'*+-.^_`|~: all of them", b"0: zero", b"1-2: one", b"_: under", b"-: hyphen", b"~: tilde", b"'quoted': yes"),
    (b"x_under_scored: 1", b"X.Dotted: 2", b"x+plus: 3", b"UPPER: 4", b"lower: 5", b"MiXeD-cAsE: 6"),
    (b"X-Long: " + b"v" * 8000, b"X-" + b"n" * 200 + b": long name"),
    (b"X-Long: " + b"w" * 20_000,),
    tuple(b"X-Field-%d: %d" % (n, n * n) for n in range(90)),
    (b"Cookie: a=b; c=\"d\"", b"Cookie: second=1", b"Set-Cookie: a=b", b"Set-Cookie: c=d; Secure", b"Cookie2: $Version=1"),
    (b"Date: yesterday", b"Server: odd/1.0 (x) y/2", b"User-Agent: ", b"Referer: /%zz", b"From: a@b", b"Pragma: no-cache"),
    (b"Accept: */*;q=0.1, text/html", b"Accept-Encoding: gzip, br;q=0", b"Accept-Language:", b"Accept: again"),
    (b"Content-Type: multipart/form-data; boundary=\"--=_x\"", b"Content-Encoding: x-made-up", b"Content-Language: de, en"),
    (b"If-None-Match: W/\"a\", \"b\"", b"If-Match: *", b"If-Modified-Since: never", b"If-Range: \"x\"", b"Range: bytes=0-1,-5"),
    (b"Cache-Control: no-store, max-age=0", b"Age: -1", b"Warning: 199 - \"x\"", b"Max-Forwards: 0", b"Vary: *"),
    (b"Origin: null", b"Sec-Fetch-Mode: cors", b"Access-Control-Request-Method: PUT", b"DNT: 1"),
    (b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"tracestate: a=1,b=2", b"baggage: k=v"),
    (b"X-Session-Id: s-1", b"X-Computer-Id: c-1", b"X-Session-Id: s-2"),
    (b"X_Session_Id: s-1", b"x.computer.id: c-1"),
    (b"Trailer: X-Checksum", b"Link: </a>; rel=preload", b"Location: /elsewhere", b"Allow: GET", b"Retry-After: 0"),
    (b"Proxy-Authenticate: Basic", b"WWW-Authenticate: Negotiate", b"Strict-Transport-Security: max-age=0", b"Alt-Svc: clear"),
    (b"X-Real-Ip: 10.0.0.1", b"X-Forwarded-Port: 1", b"X-Forwarded-Prefix: /a", b"Forwarded-For: x", b"X-Original-Url: /b"),
)  # fmt: skip
FORGED: tuple[tuple[bytes, ...], ...] = (
    (b"Via: 1.0 fred, 1.1 p.example.net (Apache/1.1)", b"X-A: 1", b"VIA: 1.1 other"),
    (b"X-Forwarded-For: 6.6.6.6", b"x-forwarded-for: 7.7.7.7", b"X-Forwarded-Proto: gopher", b"X-Forwarded-Host: evil.test"),
    (b"Forwarded: for=6.6.6.6;proto=gopher", b"X_Forwarded_For: 6.6.6.6", b"X-End: kept"),
    (b"X-Principal: member/acme/root", b"X_Principal_Id: sa_0", b"x-principal-KEY-id: x", b"X-Principle: kept"),
    (b"X-Api-Key: whatever", b"Proxy-Authorization: Basic eDp5", b"X-Api-Keys: kept"),
    (b"X-Copy: @TOKEN", b"Cookie: a=@TOKEN; b=c", b"X-End: kept", b"X-Glued: a@TOKENb"),
    (b"X-Other: " + ANOTHER_TOKEN, b"X-End: kept"),
    (b"Connection: X-Hop, x-other-hop", b"X-Hop: 1", b"X-HOP: 2", b"X-Other-Hop: 3", b"X-End: kept"),
    (b"Connection: keep-alive, X-Hop", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"X-Hop: 1", b"X-End: kept"),
    (b"Connection: ,, Keep-Alive ,", b"Connection:", b"X-End: kept"),
    (b"TE: trailers", b"Connection: TE"),
    (b"TE: gzip;q=0.5, trailers;q=1",),
    (b"TE: deflate",),
    (b"Connection: Upgrade", b"Upgrade: made-up/1, h2c", b"X-End: kept"),
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    (b"Upgrade: made-up/1",),
    (b"X-Request-Id: my-own.id:1",),
    (b"x-request-ID: " + b"a" * 128,),
    (b"X-Request-Id: not sane",),
    (b"X-Request-Id: one", b"X-Request-Id: two"),
)  # fmt: skip
TARGETS_TO_NORMALISE = (
    b"http://gateway.test/a?b", b"HTTP://GATEWAY.test", b"/a/../b//c/./d/%7e?x=%7e/../", b"/%c3%a9/%41%2d", b"//", b"/a/b/..",
)  # fmt: skip
ODD_CHUNKS = (
    b"0\r\n\r\n", b"000\r\n\r\n", chunk(b"x") + b"0\r\n\r\n", b"0005\r\nhello\r\n00000000\r\n\r\n",
    b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"".join(chunk(b"%c" % byte) for byte in range(256)) + b"0\r\n\r\n",
    chunk(b"abc", b";a") + chunk(b"def", b";a=b;c=\"d;e\"") + b"0;last=1\r\n\r\n", chunk(b"abc", b" ; a = b") + b"0 ;\r\n\r\n",
    chunk(b"abc", b";" + b"e" * 900) + b"0\r\n\r\n", chunk(b"abc", b";\xe4=\xff") + b"0\r\n\r\n",
    chunk(b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n") + b"0\r\n\r\n", chunk(b"z" * 70_000) + chunk(b"\n") + b"0\r\n\r\n",
    chunk(b"data") + b"0\r\nX-Checksum: abc\r\n\r\n", b"0\r\nX-Only: trailers\r\nX-Only: twice\r\n\r\n",
    chunk(b"data") + b"0\r\nX-A: 1\r\nx-a:\r\nX-Latin: \xe4\xff\r\nX-A:  2 \r\n!#$: %\r\n\r\n",
    chunk(b"data") + b"0\r\n" + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(60)) + b"\r\n",
    chunk(b"data") + b"0\r\nX-A: 1\r\nConnection: X-A\r\nKeep-Alive: 1\r\nContent-Length: 9\r\nX-Request-Id: 5\r\nX-B:\r\n\r\n",
    chunk(b"data") + b"0\r\nX-Long: " + b"t" * 6000 + b"\r\n\r\n",
)  # fmt: skip


FORGED_TRAILERS = (
    b"X-A: 1", b"X-Principal: root", b"X_Principal_Id: sa_0", b"Authorization: Basic eDp5", b"Host: evil.test", b"TE: trailers",
    b"X-Forwarded-For: 6.6.6.6", b"Transfer-Encoding: chunked", b"X-Copy: " + ANOTHER_TOKEN, b"X-Session-Id: 1", b"X-Z: 2",
)  # fmt: skip


def requests() -> list[Conversation]:
    """Methods, targets, fields and framings of requests, each with an answer that is nothing special."""
    with_body = (b"GET", b"POST", b"DELETE", b"OPTIONS", b"made-up", b"QUERY")
    found = numbered("method", ((asks(method=method), None) for method in METHODS))
    found += numbered("body-of", ((asks(method=method, body=b"body"), None) for method in with_body))
    found += numbered("changed", ((asks(target=target), None) for target in TARGETS_TO_NORMALISE))
    found += numbered("target", ((asks(target=target), None) for target in TARGETS))
    found += [plain("server-wide", asks(method=b"OPTIONS", target=b"*"), says(b"Allow: GET"))]
    found += numbered("fields", ((asks(*lines), says(*lines)) for lines in FIELDS))
    found += numbered("forged", ((asks(*lines), None) for lines in FORGED))
    lengths = (b"Content-Length: 0", b"Content-Length:0", b"content-length: 0000", b"CONTENT-LENGTH:\t00 ")
    found += numbered("no-body", ((asks(line, method=b"POST"), None) for line in lengths))
    found += [plain("length-with-zeros", asks(b"Content-Length: 0005", method=b"PUT") + b"hello")]
    codings = (CHUNKED, b"transfer-encoding:CHUNKED", b"Transfer-Encoding:\tChunked ")
    chunked = [(asks(line, method=b"POST") + chunk(b"abc") + b"0\r\n\r\n", None) for line in codings]
    chunked += [(asks(CHUNKED, b"TE: trailers", method=b"POST") + body, None) for body in ODD_CHUNKS]
    forged = b"0\r\n" + b"".join(line + CRLF for line in FORGED_TRAILERS) + CRLF
    return [
        *found,
        *numbered("chunked", chunked),
        plain("forged-trailers", asks(CHUNKED, method=b"PUT") + forged),
    ]


def cut_up() -> list[Conversation]:
    """Requests and answers that come in many small pieces."""
    request = asks(b"X-A: 1", CHUNKED, method=b"POST") + ODD_CHUNKS[6]
    answer = says(b"X-B: 2", CHUNKED, body=None) + ODD_CHUNKS[14]
    sized = asks(b"X-A: 1", method=b"PUT", body=b"0123456789" * 9)
    found = []
    for n, size in enumerate((1, 2, 3, 7, 50)):
        for kind, asked in (("chunked", request), ("length", sized)):
            cuts = tuple(range(size, len(asked), size))
            steps = (
                Sends(asked, cuts),
                Arrives(),
                Answers(answer, cuts=tuple(range(size, len(answer), size))),
            )
            found.append(Conversation(f"pieces-{kind}-{n}", (asked.split(b" ")[0],), steps))
    return found


# -- answers

STATUSES = (
    b"200 OK", b"200", b"200 ", b"200  two blanks", b"200 D\xe9j\xe0 vu \xff", b"200 \ttabs\t", b"201 C", b"202 x" + b"y" * 500,
    b"203 A", b"207 Multi-Status", b"226 IM", b"299 Made up", b"300 Many", b"301 Moved", b"302 Found", b"303 See", b"307 T",
    b"308 P", b"400 Bad", b"401 Who", b"402 Pay", b"403 No", b"404 Not Found", b"405 M", b"406 N", b"407 Proxy", b"408 Slow",
    b"409 C", b"410 Gone", b"411 L", b"412 P", b"413 Big", b"414 Long", b"415 T", b"416 R", b"417 E", b"418 I'm", b"421 M",
    b"422 U", b"425 Early", b"428 P", b"429 Many", b"431 F", b"451 L", b"499 x", b"500 O", b"501 N", b"502 B", b"503 Later",
    b"504 Late", b"505 V", b"508 Loop", b"511 N", b"599 Last",
)  # fmt: skip
OWN_OF_THIS_HOP: tuple[tuple[bytes, ...], ...] = (
    (b"Connection: keep-alive", b"Keep-Alive: timeout=5, max=100", b"X-End: kept"),
    (b"Connection: X-Hop, x-other", b"X-Hop: 1", b"x-OTHER: 2", b"X-End: kept"),
    (b"Proxy-Connection: close", b"Connection: close", b"X-End: kept"),
    (b"Upgrade: h2,h2c", b"Connection: Upgrade", b"X-End: kept"),
    (b"X-Request-Id: the upstream's own", b"X-Request-Id: twice", b"X-End: kept"),
    (b"Connection: X-Request-Id, Set-Cookie", b"Set-Cookie: gone=1", b"X-End: kept"),
)
ODD_NAMES = (
    b"X_Request_Id: kept",
    b"Keep_Alive: kept",
    b"Content.Length: 7",
    b"proxy_connection: kept",
    b"X-Principal: kept",
)
PARTS = (
    b"--b\r\nContent-Range: bytes 0-0/9\r\n\r\na\r\n--b\r\nContent-Range: bytes 8-8/9\r\n\r\nz\r\n--b--\r\n"
)


def answers() -> list[Conversation]:
    """Statuses, fields and framings of answers to requests that are nothing special."""
    found = numbered("status", ((asks(), says(status=status)) for status in STATUSES))
    found += numbered("own", ((asks(), says(*lines)) for lines in OWN_OF_THIS_HOP))
    found += [plain("odd-names", asks(), says(*ODD_NAMES))]
    found += numbered(
        "many-fields", ((asks(), says(*(b"X-%d: %d" % (n, n) for n in range(count)))) for count in (99, 190))
    )
    found += numbered(
        "length",
        (
            (asks(), says(line, body=None) + b"hello")
            for line in (b"content-length:5", b"Content-Length:  00005 ")
        ),
    )
    found += numbered(
        "chunks", ((asks(b"TE: trailers"), says(CHUNKED, body=None) + body) for body in ODD_CHUNKS)
    )
    ranged = says(
        b"Content-Range: bytes 2-4/10", b"Accept-Ranges: bytes", status=b"206 Partial Content", body=b"cde"
    )
    parts = says(b"Content-Type: multipart/byteranges; boundary=b", status=b"206 Partial Content", body=PARTS)
    found += [
        plain("range", asks(b"Range: bytes=2-4"), ranged),
        plain("ranges", asks(b"Range: bytes=0-0,-1"), parts),
    ]
    found += [
        plain(
            "no-range",
            asks(b"Range: bytes=99-"),
            says(b"Content-Range: bytes */10", status=b"416 No", body=b""),
        )
    ]
    found += [
        plain(
            "upgrade-required",
            asks(),
            says(b"Upgrade: made-up/2", b"Connection: Upgrade", status=b"426 Upgrade"),
        )
    ]
    return found


def without_body() -> list[Conversation]:
    """Answers that have no body, by their status or because nobody asked for it, however they are framed."""
    bare = (
        says(b'ETag: "1"', status=b"304 Not Modified", body=None),
        says(status=b"204 No Content", body=None),
    )
    odd = (
        b"HTTP/1.1 304 N\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 304 N\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    bad = (
        b"HTTP/1.1 204 N\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 N\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    found = numbered("bodiless", ((asks(), answer) for answer in (*bare, *odd, *bad, says(body=b""))))
    heads = (
        says(b"Content-Length: 12345", body=None),
        says(CHUNKED, body=None),
        says(body=None),
        says(body=b""),
        *bare,
        odd[0],
    )
    found += numbered("head", ((asks(method=b"HEAD"), answer) for answer in heads))
    found += [
        plain("head-with-body", asks(method=b"HEAD", body=b"body"), says(b"Content-Length: 9", body=None))
    ]
    return found


def versions() -> list[Conversation]:
    """HTTP/1.0 and 1.1 on either side, connections that are to be kept and that are not, bodies up to the connection's end."""
    found = []
    clients = [
        (version, lines)
        for version in (b"1.0", b"1.1")
        for lines in ((), (KEEP_ALIVE,), (CLOSE,), (b"Connection: Close, X-A",))
    ]
    for n, (version, lines) in enumerate(clients):
        sized = asks(*lines, version=version, method=b"POST", body=b"body")
        bare = asks(*lines, version=version, host=None if version == b"1.0" else HOST)
        for upstream in (b"1.0", b"1.1"):
            for closes in ((CLOSE,), (KEEP_ALIVE,)):
                label = f"{n}-{upstream.decode()}-{closes[0].decode()[12:17]}"
                found.append(plain(f"sized-{label}", sized, says(*closes, version=upstream)))
            ending = says(version=upstream, body=None) + b"up to the end"
            found.append(plain(f"ending-{n}-{upstream.decode()}", bare, ending, HangsUp()))
            found.append(
                plain(
                    f"empty-ending-{n}-{upstream.decode()}",
                    bare,
                    says(version=upstream, body=None),
                    HangsUp(),
                )
            )
        streams = Streams(b"HTTP/1.1 200 Streamed\r\nX-A: 1\r\n", (b"one", b"two" * 1000, b"three"))
        found.append(Conversation(f"streamed-{n}", (b"GET",), (Sends(bare), Arrives(), streams)))
        found.append(Conversation(f"uploaded-{n}", (b"POST",), (Sends(sized), Arrives(), streams)))
    return found


def sizes() -> list[Conversation]:
    """Bodies from nothing to some MiB, both ways at once."""
    found = []
    for size in (0, 1, 2, 1023, 4096, 16_383, 65_535, 65_536, 65_537, 262_144, 262_145, 1_000_003, 4_194_304):
        data = random.Random(size).randbytes(size)
        chunks = b"".join(chunk(data[at : at + 70_001]) for at in range(0, size, 70_001)) + b"0\r\n\r\n"
        found.append(plain(f"size-{size}", asks(method=b"PUT", body=data), says(body=data)))
        found.append(
            plain(f"coded-{size}", asks(CHUNKED, method=b"PUT") + chunks, says(CHUNKED, body=None) + chunks)
        )
        found.append(plain(f"ending-{size}", asks(), says(body=None) + data, HangsUp()))
    return found
