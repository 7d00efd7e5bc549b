"""Traffic that works straight against an upstream works through the gateway, byte for byte.

Each conversation is had twice, over raw sockets: straight with an upstream, and through the gateway with the same one. What
arrived and what came back must be equal, but for what the operations guide names under "What is changed on the way".
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.system import differential_cases as cases
from tests.system import differential_timelines as timelines
from tests.system.conversations import Arrival, Conversation, Framing, Heard, Message, name_of, value_of
from tests.system.director import Director
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway
from tests.system.loop_thread import LoopThread

# -- What is changed on the way. All names are in lower case; what is not named here has to be equal, order included.

REMOVED_FROM_REQUESTS = {
    "authorization", "x-api-key", "proxy-authorization", "x-principal", "x-principal-id", "x-principal-organization",
    "x-principal-key-id", "keep-alive", "proxy-connection", "http2-settings",
}  # fmt: skip
"""And names that only fold to one of these, or of the next two; what Connection nominates; every field with a token of ours."""

PUT_IN_PLACE_OF_THE_CLIENTS = {
    "host", "x-principal", "x-principal-id", "x-principal-organization", "x-principal-key-id", "x-request-id",
    "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded",
}  # fmt: skip
"""Each exactly once, as `told_by_the_gateway` has it; `via` is added once to those that came."""

REBUILT_IN_REQUESTS = {"content-length", "transfer-encoding", "expect", "connection", "te", "upgrade"}

REMOVED_FROM_ANSWERS = {"keep-alive", "proxy-connection"}
"""And names that only fold to one of these, or of the next; and what Connection nominates."""

REBUILT_IN_ANSWERS = {"content-length", "transfer-encoding", "connection", "upgrade", "x-request-id"}

TARGETS_NORMALISED = {
    b"http://gateway.test/a?b": b"/a?b", b"HTTP://GATEWAY.test": b"/", b"/a/../b//c/./d/%7e?x=%7e/../": b"/b/c/d/~?x=%7e/../",
    b"/%c3%a9/%41%2d": b"/%C3%A9/A-", b"//": b"/", b"/a/b/..": b"/a/",
}  # fmt: skip

FRAMINGS_CHANGED = {("until close", b"HTTP/1.1"): "chunked"}
"""Of an answer with a body, by the client's version: its connection need not end with the upstream's."""

FRAMINGS_REMOVED = {(204, "length"), (204, "chunked"), (304, "chunked")}
"""Of an answer without a body, by its status; and of interim answers."""

VERSIONS = (b"HTTP/1.0", b"HTTP/1.1")
"""Each hop speaks its own: the gateway always 1.1."""

TOKEN_OF_OURS = re.compile(rb"tk_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}")


# -- The comparison: what is different that may not be


def without(lines: Sequence[bytes], names: set[str], *, folded: bool = False) -> list[bytes]:
    """The lines that have none of the names; `folded`: nor one that some upstream reads as one of them."""
    named = ((line, name_of(line)) for line in lines)
    return [line for line, name in named if (re.sub("[^0-9a-z]", "-", name) if folded else name) not in names]


def nominated(message: Message) -> set[str]:
    return {option.decode("latin-1") for option in message.options} - {
        "content-length",
        "close",
        "keep-alive",
        "",
    }


def told_by_the_gateway(workload: Workload, asked: Arrival, port: int) -> dict[str, bytes]:
    """Patterns of what the gateway says in place of the client, of a request that came straight."""
    version, host, ids = asked.start[-3:], b"".join(asked.all("host")), asked.all("x-request-id")
    told = {
        "host": b"127.0.0.1:%d" % port,
        "x-principal": workload.principal.encode(), "x-principal-id": workload.account.encode(),
        "x-principal-organization": workload.organization_name.encode(), "x-principal-key-id": workload.key.encode(),
        "x-forwarded-for": b"127.0.0.1", "x-forwarded-proto": b"http", **({"x-forwarded-host": host} if host else {}),
        "forwarded": b"for=127.0.0.1;" + (b"host=%b;" % host if host else b"") + b"proto=http",
    }  # fmt: skip
    is_sane = len(ids) == 1 and re.fullmatch(rb"[0-9A-Za-z._~:+/=@-]{1,128}", ids[0])
    patterns = {name: re.escape(value) for name, value in told.items()}
    patterns["x-request-id"] = re.escape(ids[0]) if is_sane else rb"[0-9a-f]{24}"
    patterns["via"] = re.escape(version) + rb" tollkeeper-[0-9a-f]{10}"
    return patterns


def changes_of_request(asked: Arrival, arrived: Arrival, patterns: dict[str, bytes]) -> Iterator[str]:
    method, target, version = asked.start.split(b" ")
    start = b" ".join((method, TARGETS_NORMALISED.get(target, target), VERSIONS[1]))
    if arrived.start != start or version not in VERSIONS:
        yield f"request line {start!r}: {arrived.start!r}"
    rest = list(arrived.lines)
    for name, pattern in patterns.items():
        found = [line for line in rest if name_of(line) == name]
        count = 1 + len(asked.all(name)) * (name == "via")
        if len(found) != count or not re.fullmatch(pattern, value_of(found[-1])):
            yield f"{name} is not told once, as it ought to be: {found}"
        else:
            del rest[len(rest) - 1 - rest[::-1].index(found[-1])]
    expected = passed_on(without(asked.lines, nominated(asked)))
    if without(rest, REBUILT_IN_REQUESTS) != expected:
        yield f"fields {expected}: {rest}"
    yield from changes_of_hop(asked, arrived)
    yield from changes_of_body(asked, arrived, asked.framing, passed_on(asked.trailers))


def passed_on(lines: Sequence[bytes]) -> list[bytes]:
    """Those of a request's fields, or of its trailers, that are to arrive as they are."""
    handled = REMOVED_FROM_REQUESTS | PUT_IN_PLACE_OF_THE_CLIENTS | REBUILT_IN_REQUESTS
    return [line for line in without(lines, handled, folded=True) if not TOKEN_OF_OURS.search(line)]


def changes_of_hop(asked: Arrival, arrived: Arrival) -> Iterator[str]:
    """Of the fields that are written anew for the next hop."""
    trailers = [b"trailers"] if any(b"trailers" in value for value in asked.all("te")) else []
    has_body = asked.framing not in {("none", 0), ("length", 0)}
    expects = asked.all("expect") if has_body and asked.start.endswith(VERSIONS[1]) else []
    wanted = b", ".join(asked.all("upgrade")) if b"upgrade" in asked.options else b""
    upgrade = [b"made-up/1"] if b"made-up/1" in wanted else []  # the other protocols asked for are HTTP
    options = {b"te"} if trailers else {b"upgrade"} if upgrade else set()
    found = (arrived.all("te"), arrived.all("expect"), arrived.all("upgrade"), arrived.options)
    if found != (trailers, expects, upgrade, options):
        yield f"TE, Expect, Upgrade and Connection {(trailers, expects, upgrade, options)}: {found}"


def changes_of_answer(said: Message, came: Message, asked: Arrival, public_id: bytes) -> Iterator[str]:
    start = said.start.replace(VERSIONS[0], VERSIONS[1], 1)
    if came.start != start:
        yield f"status line {start!r}: {came.start!r}"
    handled = REMOVED_FROM_ANSWERS | REBUILT_IN_ANSWERS
    expected = without(without(said.lines, nominated(said)), handled, folded=True)
    if without(came.lines, REBUILT_IN_ANSWERS) != expected:
        yield f"fields {expected}: {came.lines}"
    ids = [public_id] if said.status >= 200 else []
    if came.all("x-request-id") != ids:
        yield f"X-Request-Id {ids}: {came.all('x-request-id')}"
    kind, length = said.framing
    if said.status < 200 or (said.status, kind) in FRAMINGS_REMOVED:
        kind, length = "none", 0
    kind = FRAMINGS_CHANGED.get((kind, asked.start[-8:]), kind)
    yield from changes_of_body(said, came, (kind, length), without(said.trailers, handled, folded=True))


def changes_of_body(sent: Message, got: Message, framing: Framing, trailers: list[bytes]) -> Iterator[str]:
    written = {"length": [b"Content-Length: %d" % framing[1]], "chunked": [b"Transfer-Encoding: chunked"]}
    lines = [line for line in got.lines if name_of(line) in ("content-length", "transfer-encoding")]
    if lines != written.get(framing[0], []):
        yield f"framing {framing}: {lines}"
    if got.body != sent.body:
        yield f"body {len(sent.body)} bytes, {bytes(sent.body[:40])!r}: {len(got.body)}, {bytes(got.body[:40])!r}"
    if got.is_whole != sent.is_whole:
        yield f"is whole {sent.is_whole}: {got.is_whole}"
    if got.trailers != (trailers if sent.is_whole else []):
        yield f"trailers {trailers}: {got.trailers}"
    if got.extensions:
        yield f"no chunk extensions: {got.extensions}"


def changes_of_end(asked: Arrival, said: Message, heard: Heard, *, says_no_more: bool) -> Iterator[str]:
    """The client's connection ends where it must, and the last answer says so."""
    last, is_old = heard.came[-1][-1], asked.start.endswith(VERSIONS[0])
    must = (
        b"close" in asked.options
        or (is_old and (b"keep-alive" not in asked.options or said.framing[0] == "until close"))
        or not asked.is_whole
        or b"upgrade" in asked.options
    )
    expected = {b"close"} if must else {b"keep-alive"} if is_old else set()
    if last.options - {b"upgrade"} != expected:
        yield f"Connection {expected}: {last.options}"
    if heard.is_closed != (must or not last.is_whole or says_no_more):
        yield f"the last answer says {last.options}, but the connection {'ends' if heard.is_closed else 'stays'}"


def changes(
    conversation: Conversation, straight: Heard, through: Heard, workload: Workload, port: int
) -> Iterator[str]:
    """What is different about a conversation that may not be."""
    if straight.failure or through.failure:
        yield f"straight: {straight.failure or 'had'}; through the gateway: {through.failure or 'had'}"
        return
    counts = [len(straight.arrived), len(straight.came), len(through.arrived), len(through.came)]
    if counts != [len(conversation.methods)] * 4:
        yield f"{len(conversation.methods)} requests and answers: {counts}"
        return
    for asked, arrived in zip(straight.arrived, through.arrived, strict=True):
        yield from changes_of_request(asked, arrived, told_by_the_gateway(workload, asked, port))
    for number, (said, came) in enumerate(zip(straight.came, through.came, strict=True)):
        asked, public_id = straight.arrived[number], through.arrived[number].all("x-request-id")[:1]
        if len(said) != len(came):
            yield f"answers {[each.start for each in said]}: {[each.start for each in came]}"
        for one, other in zip(said, came, strict=False):
            yield from changes_of_answer(one, other, asked, b"".join(public_id))
    last = straight.came[-1][-1]
    yield from changes_of_end(straight.arrived[-1], last, through, says_no_more=conversation.says_no_more)


# -- The conversations

FAMILIES: dict[str, Callable[[], list[Conversation]]] = {
    "requests": cases.requests, "pieces": cases.cut_up, "answers": cases.answers, "answers without a body": cases.without_body,
    "versions": cases.versions,
    "sizes": cases.sizes, "interim answers": timelines.interim, "early answers": timelines.early, "streams": timelines.streams,
    "broken answers": timelines.broken, "batches": timelines.batches, "anything": timelines.generated,
}  # fmt: skip

ROUTES = """
[[route]]
name = "everything"
path = "/"
upstream = "http://127.0.0.1:{port}"
timeouts = {{ first_byte_s = 30, between_bytes_s = 30, half_closed_s = 20 }}
"""

Had = list[tuple[Conversation, Heard, Heard]]


@cache
def conversations_of(family: str) -> list[Conversation]:
    return FAMILIES[family]()


@pytest.fixture(scope="module")
def director(loop_thread: LoopThread) -> Iterator[Director]:
    director = Director(loop_thread)
    yield director
    director.close()


@pytest.fixture(scope="module")
def gateway(addresses: Addresses, data_dir: Path, director: Director) -> Iterator[Gateway]:
    routes, log = data_dir / "everything.toml", data_dir / "gateways.log"
    routes.write_text(ROUTES.format(port=director.port))
    with another_gateway(addresses.redis, data_dir / "pepper", log, routes) as started:
        yield started


@pytest.fixture
async def workload(installation: Installation) -> Workload:
    return await installation.workload()


async def play(
    director: Director, conversations: Sequence[Conversation], gateway: Gateway, workload: Workload
) -> Had:
    return await asyncio.to_thread(director.play, conversations, gateway.port, workload.token)


def test_the_conversations_are_many_and_each_has_a_name_of_its_own() -> None:
    conversations = [each for family in FAMILIES for each in conversations_of(family)]
    assert sum(len(conversation.methods) for conversation in conversations) >= 700
    assert len({conversation.name for conversation in conversations}) == len(conversations)


@pytest.mark.parametrize("family", FAMILIES)
async def test_nothing_is_changed_on_the_way_but_what_is_said_to_be(
    director: Director, gateway: Gateway, workload: Workload, family: str
) -> None:
    found = [
        f"{conversation.name}: {change}"
        for conversation, straight, through in await play(
            director, conversations_of(family), gateway, workload
        )
        for change in changes(conversation, straight, through, workload, director.port)
    ]
    assert not found, "\n".join(found)


SPOILED: dict[str, Callable[[Arrival, Message], object]] = {
    "another method": lambda arrived, _: setattr(arrived, "start", arrived.start.replace(b"POST", b"PUT")),
    "another target": lambda arrived, _: setattr(arrived, "start", arrived.start.replace(b"where", b"Where")),
    "a field less": lambda arrived, _: arrived.lines.remove(b"X-A:  1 "),
    "a blank less in a field": lambda arrived, _: arrived.lines.__setitem__(
        slice(0, 2), [b"X-Case: spoiled/0", b"X-A: 1"]
    ),
    "other order": lambda arrived, _: arrived.lines.reverse(),
    "a field more": lambda arrived, _: arrived.lines.append(b"X-B: 1"),
    "a second principal": lambda arrived, _: arrived.lines.append(b"X-Principal: member/acme/root"),
    "a token": lambda arrived, _: arrived.lines.append(b"X-B: " + cases.ANOTHER_TOKEN),
    "a byte of the body": lambda arrived, _: arrived.body.__setitem__(0, 0),
    "a trailer less": lambda arrived, _: arrived.trailers.clear(),
    "half a body": lambda arrived, _: setattr(arrived, "is_whole", False),
    "an extension": lambda arrived, _: arrived.extensions.append(b"a=b"),
    "another status": lambda _, came: setattr(came, "start", b"HTTP/1.1 201 OK"),
    "another reason": lambda _, came: setattr(came, "start", b"HTTP/1.1 200 Fine"),
    "another id": lambda _, came: came.lines.__setitem__(-1, b"X-Request-Id: 0"),
    "a field of the hop": lambda _, came: came.lines.append(b"Keep-Alive: 5"),
    "an end that nobody asked for": lambda _, came: came.lines.append(b"Connection: close"),
    "less of an answer": lambda _, came: came.body.pop(),
    "an answer without trailers": lambda _, came: came.trailers.clear(),
    "another framing": lambda _, came: came.lines.append(b"Content-Length: 4"),
}
"""What might go wrong with a request, or with an answer, on the way."""


@pytest.mark.parametrize("how", SPOILED)
async def test_the_comparison_finds_what_is_changed(
    director: Director, gateway: Gateway, workload: Workload, how: str
) -> None:
    request = cases.asks(b"X-A:  1 ", cases.CHUNKED, method=b"POST") + cases.ODD_CHUNKS[12]
    answer = cases.says(b"X-A: 1", cases.CHUNKED, body=None) + cases.ODD_CHUNKS[12]
    ((conversation, straight, through),) = await play(
        director, [cases.plain("spoiled", request, answer)], gateway, workload
    )
    assert list(changes(conversation, straight, through, workload, director.port)) == []
    SPOILED[how](through.arrived[0], through.came[0][0])
    assert list(changes(conversation, straight, through, workload, director.port))


async def test_every_request_of_a_conversation_has_its_row_with_the_bytes_that_passed(
    director: Director, gateway: Gateway, workload: Workload, installation: Installation
) -> None:
    families = ("sizes", "batches", "early answers")
    conversations = [each for family in families for each in conversations_of(family)]
    expected: Counter[tuple[str, int, int, int]] = Counter()
    for _, _, through in await play(director, conversations, gateway, workload):
        for arrived, came in zip(through.arrived, through.came, strict=True):
            expected[arrived.method.decode(), came[-1].status, len(arrived.body), len(came[-1].body)] += 1
        expected["GET", 204, 0, 0] += not through.is_closed  # one more, to see whether it goes on
    rows = await installation.settled(workload.tag)
    found = Counter((row["method"], row["status"], row["bytes_in"], row["bytes_out"]) for row in rows)
    assert found == expected
    assert {row["outcome"] for row in rows} == {"completed"}


async def test_an_answers_fields_for_its_own_hop_and_its_framing_are_never_copied(
    director: Director, gateway: Gateway, workload: Workload
) -> None:
    own = (
        b"Connection: X-Hop, keep-alive", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Proxy-Connection: close", b"Upgrade: h2c",
        b"X-Request-Id: its own", b"X-End: kept",
    )  # fmt: skip
    chunked = cases.says(*own, b"transfer-encoding: Chunked", body=None) + b"04;a=b\r\nfine\r\n0\r\n\r\n"
    sized = cases.says(*own, b"content-length: 004", body=None) + b"fine"
    pair = [
        cases.plain("own-chunked", cases.asks(), chunked),
        cases.plain("own-sized", cases.asks(), sized),
    ]
    had = await play(director, pair, gateway, workload)
    lines = [through.came[0][0].lines for _, _, through in had]
    ids = [b"X-Request-Id: %b" % through.arrived[0].all("x-request-id")[0] for _, _, through in had]
    assert sorted(lines[0]) == sorted([b"X-End: kept", b"Transfer-Encoding: chunked", ids[0]])
    assert sorted(lines[1]) == sorted([b"X-End: kept", b"Content-Length: 4", ids[1]])
