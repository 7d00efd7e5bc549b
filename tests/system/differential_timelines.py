"""Conversations in which it matters what comes first, and generated ones. They too have to be the same with the gateway."""

from __future__ import annotations

import random

from tests.system.conversations import (
    Answers,
    Arrives,
    Conversation,
    HangsUp,
    Hears,
    HearsAll,
    SaysNoMore,
    Sends,
    Step,
)
from tests.system.differential_cases import CHUNKED, CLOSE, METHODS, STATUSES, asks, chunk, says

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY_HINTS = (
    b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>\r\nX-Latin: \xe4\r\n\r\n"
)
EXPECTS = b"Expect: 100-continue"
END = b"0\r\n\r\n"

NAME_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE_BYTES = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
SEGMENT_BYTES = b"0123456789abcXYZ._~!$&'()*+,;=:@-"
QUERY_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte != ord("#"))
ENCODED = ("%20", "%C3%A9", "%E2%82%AC", "%F0%9F%92%A9", "%25", "%3F", "%23", "%5B", "%7C")


def interim() -> list[Conversation]:
    """Answers before the answer, and clients that wait for one."""
    asked, heads, sized = asks(), asks(method=b"HEAD"), asks(method=b"POST", body=b"hello")
    waits, waits_chunked = (
        asks(EXPECTS, b"Content-Length: 5", method=b"PUT"),
        asks(EXPECTS, CHUNKED, method=b"PUT"),
    )
    hinted = (Sends(asked), Arrives(), Answers(EARLY_HINTS), Hears(b"</b.js>"))
    unasked = (
        Sends(sized),
        Arrives(),
        Answers(CONTINUE + b"HTTP/1.1 102 Working\r\n\r\n"),
        Hears(b"102"),
        Answers(says()),
    )
    told = (Arrives(body_bytes=0), Answers(CONTINUE), Hears(b"100 Continue"))
    told_more = (
        Arrives(body_bytes=0),
        Answers(b"HTTP/1.1 100 Go on, d\xe9j\xe0 vu\r\nX-A: 1\r\n\r\n"),
        Hears(b"X-A"),
    )
    refused = (Arrives(body_bytes=0), Answers(says(CLOSE, status=b"417 No")), HearsAll(), HangsUp())
    no_body = asks(EXPECTS, b"Content-Length: 0", method=b"PUT")
    own = b"HTTP/1.1 103 Own\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nX-End: 1\r\n\r\n"
    made: list[tuple[bytes, tuple[Step, ...]]] = [
        (b"GET", (*hinted, Answers(says()))),
        (b"GET", (*hinted, Answers(EARLY_HINTS), Answers(b"HTTP/1.1 199 Odd\r\n\r\n"), Answers(says(status=b"404 No")))),
        (b"GET", (Sends(asked), Arrives(), Answers(EARLY_HINTS * 50 + says(), cuts=tuple(range(1, 5000, 13))))),
        (b"GET", (Sends(asked), Arrives(), Answers(own + says()))),
        (b"HEAD", (Sends(heads), Arrives(), Answers(EARLY_HINTS + says(b"Content-Length: 5", body=None)))),
        (b"GET", (*hinted, Answers(says(body=None) + b"to the end"), HangsUp())),
        (b"POST", unasked),
        (b"PUT", (Sends(waits), *told, Sends(b"hello"), Arrives(), Answers(says()))),
        (b"PUT", (Sends(waits), *told_more, Sends(b"hello"), Arrives(), Answers(says()))),
        (b"PUT", (Sends(waits), *told, Sends(b"he"), Arrives(body_bytes=2), Sends(b"llo"), Arrives(), Answers(says()))),
        (b"PUT", (Sends(waits_chunked), *told, Sends(chunk(b"hello") + b"0\r\nX-T: 1\r\n\r\n"), Arrives(), Answers(says()))),
        (b"PUT", (Sends(waits), *refused)),
        (b"PUT", (Sends(waits_chunked), *refused)),
        (b"PUT", (Sends(waits + b"hello"), Arrives(), Answers(CONTINUE + says()))),
        (b"PUT", (Sends(waits + b"hello"), Arrives(), Answers(says()))),
        (b"PUT", (Sends(no_body), Arrives(), Answers(says()))),
    ]  # fmt: skip
    return [Conversation(f"interim-{n}", (method,), steps) for n, (method, steps) in enumerate(made)]


def early() -> list[Conversation]:
    """Answers while the upload still runs: read on by an upstream that keeps the connection, or not by one that closes it."""
    part, rest = b"p" * 3000, b"r" * 200_000
    whole = len(part) + len(rest)
    sized = asks(b"Content-Length: %d" % whole, method=b"POST") + part
    chunked = asks(CHUNKED, method=b"POST") + chunk(part)
    answer, streamed = (
        says(b"X-A: 1", body=b"already"),
        says(CHUNKED, body=None) + chunk(b"already") + b"0\r\nX-T: 1\r\n\r\n",
    )
    refusing = says(CLOSE, status=b"413 Enough", body=b"already")
    ending = says(status=b"403 No", body=None) + b"already"
    found = []
    for kind, begun, end in (("length", sized, rest), ("chunked", chunked, chunk(rest) + END)):
        start = (Sends(begun), Arrives(body_bytes=len(part)))
        for label, said in (("sized", answer), ("streamed", streamed)):
            on: tuple[Step, ...] = (*start, Answers(said), Hears(b"already"), Sends(end), Arrives())
            found.append(Conversation(f"early-{kind}-{label}", (b"POST",), on))
        begins = (
            *start,
            Answers(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst"),
            Hears(b"first"),
            Sends(end),
            Arrives(),
        )
        found.append(Conversation(f"early-{kind}-begun", (b"POST",), (*begins, Answers(b"later"))))
        hinted: tuple[Step, ...] = (
            *start,
            Answers(EARLY_HINTS),
            Hears(b"</b.js>"),
            Sends(end),
            Arrives(),
            Answers(answer),
        )
        found.append(Conversation(f"early-{kind}-hinted", (b"POST",), hinted))
        for label, said in (("closing", refusing), ("ending", ending)):
            off: tuple[Step, ...] = (*start, Answers(said), Hears(b"already"), HangsUp())
            found.append(Conversation(f"early-{kind}-{label}", (b"POST",), off))
    echo: list[Step] = [
        Sends(asks(CHUNKED, method=b"POST")),
        Arrives(body_bytes=0),
        Answers(says(CHUNKED, body=None)),
    ]
    for n in range(20):
        word = b"word-%02d;" % n
        echo += [
            Sends(chunk(word)),
            Arrives(body_bytes=len(word) * (n + 1)),
            Answers(chunk(word)),
            Hears(word),
        ]
    echo += [Sends(END), Arrives(), Answers(END)]
    return [*found, Conversation("early-echo", (b"POST",), tuple(echo))]


def streams() -> list[Conversation]:
    """Answers whose every piece is heard before the next one is said; clients that only listen any more."""
    found = []
    events = [b'id: %d\ndata: {"n": %d}\n\n' % (n, n) for n in range(40)]
    served = says(b"Content-Type: text/event-stream", b"Cache-Control: no-cache", CHUNKED, body=None)
    steps: list[Step] = [Sends(asks(b"Accept: text/event-stream")), Arrives(), Answers(served)]
    for event in events:
        steps += [Answers(chunk(event)), Hears(event)]
    found.append(Conversation("events", (b"GET",), (*steps, Answers(END))))
    steps = [Sends(asks()), Arrives(), Answers(says(b"Content-Type: text/event-stream", body=None))]
    for event in events:
        steps += [Answers(event), Hears(event)]
    found.append(Conversation("events-to-the-end", (b"GET",), (*steps, HangsUp())))
    steps = [Sends(asks()), Arrives(), Answers(says(b"Content-Length: 400", body=None))]
    for n in range(40):
        steps += [Answers(b"piece-%03d;" % n), Hears(b"piece-%03d;" % n)]
    found.append(Conversation("pieces-of-a-length", (b"GET",), tuple(steps)))
    for n, request in enumerate(
        (asks(), asks(method=b"POST", body=b"body"), asks(CLOSE), asks(version=b"1.0"))
    ):
        method = request.split(b" ")[0]
        found.append(
            Conversation(
                f"no-more-{n}", (method,), (Sends(request), SaysNoMore(), Arrives(), Answers(says()))
            )
        )
    return found


def broken() -> list[Conversation]:
    """Answers that end before they are whole."""
    sized = says(b"Content-Length: 100", body=None) + b"half of it"
    chunked = says(CHUNKED, body=None) + chunk(b"half of it")
    torn = (
        sized, chunked, chunked + b"a\r\n01234", chunked + b"5", chunked + b"0\r\nX-T: 1\r\n", EARLY_HINTS + sized,
        says(body=None) + b"half of it",
    )  # fmt: skip
    found = []
    for reset in (False, True):
        for n, answer in enumerate(torn[: None if reset else -1]):
            steps = (Sends(asks()), Arrives(), Answers(answer), Hears(b"half of it"), HangsUp(reset=reset))
            found.append(Conversation(f"broken-{n}{'-reset' * reset}", (b"GET",), steps))
    return found


def batches() -> list[Conversation]:
    """Requests sent at once on one connection, answered in their order; some of them cut where they should not be."""
    kinds = ("get", "head", "post", "chunked", "bodiless", "streamed", "hinted", "not-found")
    found = [batch(f"batch-{kind}", (kind,) * 5) for kind in kinds]
    found += [batch(f"batch-mixed-{n}", kinds[n:] + kinds[:n], cut=37 * n) for n in range(len(kinds))]
    return [*found, batch("batch-long", kinds * 5)]


def batch(name: str, kinds: tuple[str, ...], cut: int = 0) -> Conversation:
    methods, said = [], b""
    steps: list[Step] = []
    for number, kind in enumerate(kinds):
        body = b"body-%d" % number
        request, answer = (
            asks(number=number, target=b"/batch/%d" % number),
            says(b"X-N: %d" % number, body=body),
        )
        if kind == "head":
            request, answer = asks(number=number, method=b"HEAD"), says(b"Content-Length: 7", body=None)
        elif kind == "post":
            request = asks(number=number, method=b"POST", body=body * 100)
        elif kind == "chunked":
            request = asks(CHUNKED, number=number, method=b"PATCH") + chunk(body) + b"0\r\nX-T: 1\r\n\r\n"
        elif kind == "bodiless":
            answer = says(status=b"204 Nothing", body=None)
        elif kind == "streamed":
            answer = says(CHUNKED, body=None) + chunk(body) + chunk(body * 50) + END
        elif kind == "hinted":
            answer = EARLY_HINTS + answer
        elif kind == "not-found":
            answer = says(status=b"404 Not Found", body=body)
        methods.append(request.split(b" ")[0])
        said += request
        steps += [Arrives(number), Answers(answer, number)]
    return Conversation(name, tuple(methods), (Sends(said, (cut,) if cut else ()), *steps))


# -- generated


def generated(count: int = 150) -> list[Conversation]:
    return [generate(random.Random(number), f"generated-{number}") for number in range(count)]


def generate(chance: random.Random, name: str) -> Conversation:
    """One to four requests on one connection, in turn or at once, with everything about them left to chance."""
    count = chance.choice((1, 2, 3, 4))
    at_once = chance.random() < 0.3
    methods, said = [], b""
    steps: list[Step] = []
    for number in range(count):
        is_last = number == count - 1
        method = chance.choice((*METHODS, b"POST", b"GET", b"HEAD"))
        request = any_request(chance, method, number, is_last)
        answer = any_answer(chance, method, can_read_chunks=b" HTTP/1.1\r\n" in request)
        if at_once:
            said += request
        else:
            steps.append(Sends(request, any_cuts(chance, request)))
        steps += [Arrives(number), Answers(answer, number, any_cuts(chance, answer))]
        steps += [] if at_once else [HearsAll(number)]
        methods.append(method)
    return Conversation(
        name, tuple(methods), (Sends(said, any_cuts(chance, said)), *steps) if at_once else tuple(steps)
    )


def any_request(chance: random.Random, method: bytes, number: int, is_last: bool) -> bytes:
    version = b"1.0" if is_last and chance.random() < 0.1 else b"1.1"
    lines = any_lines(chance)
    if is_last and chance.random() < 0.2:
        lines.append(CLOSE)
    kind = chance.choice(("none", "none", "length", "chunked"))
    target = any_target(chance)
    if kind == "chunked" and version == b"1.1":
        begins = asks(*lines, CHUNKED, method=method, target=target, number=number)
        return begins + any_chunks(chance)
    body = None if kind == "none" else any_body(chance)
    return asks(*lines, method=method, target=target, version=version, number=number, body=body)


def any_answer(chance: random.Random, method: bytes, *, can_read_chunks: bool) -> bytes:
    """An answer that has an end of its own."""
    lines, status = any_lines(chance), chance.choice((*STATUSES, b"204 No", b"304 Not"))
    before = EARLY_HINTS * (chance.random() < 0.1)
    if status.startswith((b"204", b"304")):
        return before + says(*lines, status=status, body=None)
    if method == b"HEAD":
        return before + says(*lines, b"Content-Length: %d" % chance.randrange(9999), status=status, body=None)
    if can_read_chunks and chance.random() < 0.4:
        return before + says(*lines, CHUNKED, status=status, body=None) + any_chunks(chance)
    return before + says(*lines, status=status, body=any_body(chance))


def any_lines(chance: random.Random) -> list[bytes]:
    lines = []
    for _ in range(chance.choice((0, 1, 3, 8, 20))):
        name = b"X-" * (chance.random() < 0.5) + some(chance, NAME_BYTES, chance.randint(1, 24))
        gap = chance.choice((b" ", b" ", b"", b"\t ", b"  "))
        lines.append(name + b":" + gap + some(chance, VALUE_BYTES, chance.choice((0, 1, 5, 40, 300))))
    return lines + chance.sample(lines, len(lines) // 4)


def any_target(chance: random.Random) -> bytes:
    parts = (
        "s" + some(chance, SEGMENT_BYTES, chance.randint(0, 12)).decode() + chance.choice(("", "", *ENCODED))
        for _ in range(chance.randint(0, 5))
    )
    query = b"?" + some(chance, QUERY_BYTES, chance.choice((0, 3, 30))) if chance.random() < 0.5 else b""
    return b"/" + "/".join(parts).encode() + query


def any_body(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 10, 100, 2000, 20_000)))


def any_chunks(chance: random.Random) -> bytes:
    pieces = (any_body(chance) for _ in range(chance.randint(0, 5)))
    extensions = (b"", b"", b";a", b" ;b=c", b';d="e;f"')
    trailers = b"".join(line + b"\r\n" for line in any_lines(chance)) if chance.random() < 0.3 else b""
    return (
        b"".join(chunk(piece, chance.choice(extensions)) for piece in pieces if piece)
        + b"0\r\n"
        + trailers
        + b"\r\n"
    )


def any_cuts(chance: random.Random, data: bytes) -> tuple[int, ...]:
    return tuple(sorted(chance.sample(range(len(data) + 1), min(len(data), chance.choice((0, 0, 1, 3, 10))))))


def some(chance: random.Random, alphabet: bytes, count: int) -> bytes:
    return bytes(chance.choices(alphabet, k=count))
