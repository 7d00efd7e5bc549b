"""An upstream's connection: an answer is read alike in any split and at any pace, and what is malformed never looks whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from gateway.contract import usage_event
from gateway.contract.usage_event import UsageEvent
from gateway.routing import Timeouts
from tests.unit.gateway.http1.answers import (
    BAD_BODIES,
    BAD_HEADS,
    CUT_SHORT,
    GET,
    HEAD,
    INTERIM,
    OK,
    POISON,
    UPGRADE,
    Answer,
    Reads,
    answers,
    bytewise,
    pairs,
    splits,
    tampered,
    whole,
)
from tests.unit.gateway.http1.referee import Reading
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, ROUTE, World

QUICK = (replace(ROUTE, timeouts=Timeouts(1.0, 1.0, 1.0, 1.0)),)


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was told, without the framing between hops, and what was written down about it."""

    interim: tuple[bytes, ...]
    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    trailers: bytes
    is_whole: bool
    is_hung_up_on: bool
    outcome: str
    upstream_is_kept: bool

    @property
    def is_clean(self) -> bool:
        """Whether the client takes it for the upstream's whole answer."""
        return self.is_whole and self.outcome == "completed"

    @property
    def sketch(self) -> Told:
        """The same without how much of a broken answer came through: that is the split's own."""
        if self.is_whole:
            return self
        return replace(self, body=b"", trailers=b"")


def read_chunks(data: bytes) -> tuple[bytes, bytes, bool]:
    """Body, trailers and whether it is whole; fails if it is not chunked coding, or if something follows."""
    body = b""
    while True:
        size, line_end, rest = data.partition(b"\r\n")
        if not line_end:
            assert data == b"", "cut within our own chunk"
            return body, b"", False
        count = int(size, 16)
        if count == 0:
            trailers, _, behind = (b"\r\n" + rest).partition(b"\r\n\r\n")
            assert behind == b""
            return body, trailers.removeprefix(b"\r\n"), True
        assert rest[count : count + 2] == b"\r\n"
        body, data = body + rest[:count], rest[count + 2 :]


def told(client: Line, request: bytes, outcome: str, upstream_is_kept: bool) -> Told:
    data, interim = bytes(client.sent), []
    while True:
        head, head_end, data = data.partition(b"\r\n\r\n")
        assert head_end
        first, *lines = head.split(b"\r\n")
        status = int(first[9:12])
        if status >= 200 or status == 101:
            break
        interim.append(head)
    fields = pairs(lines)
    named = dict(fields)
    assert [name for name, _ in fields].count(b"x-request-id") == 1
    is_over = client.has_ended or client.is_lost
    body, trailers, is_whole = data, b"", is_over and outcome == "completed"
    if request.startswith(b"HEAD") or status in (204, 304):
        assert data == b""
        is_whole = True
    elif b"transfer-encoding" in named:
        assert b"content-length" not in named
        body, trailers, is_whole = read_chunks(data)
    elif b"content-length" in named:
        assert len(data) <= int(named[b"content-length"])
        is_whole = len(data) == int(named[b"content-length"])
    if outcome == "upstream_failed" and is_whole:
        body = b"our own words"  # which name the request
        assert named[b"content-type"] == b"application/problem+json"
    kept = tuple(pair for pair in fields if pair[0] not in (b"x-request-id", b"content-length"))
    return Told(tuple(interim), status, kept, body, trailers, is_whole, is_over, outcome, upstream_is_kept)


def outcome_in(world: World) -> str:
    (settled,) = (usage_event.decode(data) for data in world.redis.events)
    assert isinstance(settled, UsageEvent)
    return settled.outcome


def next_is_answered_afresh(world: World, client: Line, seen: Line) -> bool:
    """Ask once more; the answer must be the one that is given then. Whether it came on the same connection."""
    if client.is_closing() or client.has_ended:
        client = world.client()
    start, sent_before = len(client.sent), len(seen.sent)
    client.say(GET)
    world.settle_down()
    line = world.upstream.lines[-1]
    assert len(client.sent) == start, "answered before the upstream was asked"
    assert (line is seen) == (len(seen.sent) > sent_before)
    line.say(ANSWER)
    world.settle_down()
    assert client.sent[start:].startswith(b"HTTP/1.1 200 OK\r\n")
    assert client.sent.endswith(b"\r\n\r\nhello")
    client.lose()
    return line is seen


def answered(world: World, reads: Reads, request: bytes = GET, then: str = "") -> Told:
    """What becomes of one request whose upstream says this, and then ends, is lost or falls silent. The books balance after."""
    world.forget()
    world.upstream.answers = None
    client = world.client()
    client.say(request)
    world.settle_down()
    (line,) = world.upstream.lines
    for data, waits in reads:
        if not line.is_closing():
            line.say(data)
        if waits:
            world.settle_down()
    if then == "ends":
        line.end()
    elif then == "lost":
        line.lose()
    world.settle_down()
    world.advance(2.5, 0.5)
    world.settle_down()
    outcome = outcome_in(world)
    is_kept = not line.is_closing()
    found = told(client, request, outcome, is_kept)
    assert found.is_clean or not is_kept, "kept after a bad answer"
    assert next_is_answered_afresh(world, client, line) == is_kept
    client.lose()
    world.settle_down()
    world.check_books()
    return found


@settings(max_examples=150, deadline=None)
@given(st.data(), answers(), st.sampled_from((b"", b"", POISON, b"\r\n", b"x")))
def test_a_good_answer_arrives_whole_in_any_split_and_what_follows_it_is_nobodys(
    data: st.DataObject, answer: Answer, extra: bytes
) -> None:
    if answer.ends_with_connection:
        extra = b""
    then = "ends" if answer.ends_with_connection else ""
    reads = data.draw(splits(answer.data + extra))
    with World(QUICK) as world:
        found = answered(world, reads, answer.request, then)
    own = (b"connection", b"transfer-encoding")
    assert tuple(pair for pair in found.fields if pair[0] not in own) == answer.fields
    assert (found.status, found.body, found.is_clean) == (answer.status, answer.body, True)
    assert pairs(found.trailers.split(b"\r\n")) == pairs(answer.trailers.removesuffix(b"\r\n").split(b"\r\n"))
    assert len(found.interim) == answer.interim
    assert found.upstream_is_kept == (answer.is_kept and not extra)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("extra", [POISON, b"\r\n", b"x"])
def test_what_an_upstream_says_unasked_between_two_answers_ends_its_connection(
    extra: bytes, waits: bool
) -> None:
    with World(QUICK) as world:
        found = answered(world, [(ANSWER, waits), (extra, waits)])
    assert (found.body, found.is_clean, found.upstream_is_kept) == (b"hello", True, False)


def must_be_bad(found: Told, data: bytes) -> None:
    assert found.outcome == "upstream_failed"
    assert not found.upstream_is_kept
    if found.is_whole:
        assert found.status in (502, 504)
        assert found.body == b"our own words"
    else:
        assert found.status == 200
        assert found.is_hung_up_on
        assert b"hello".startswith(found.body) or data.count(b"a\r\n") > 1


@pytest.mark.parametrize("data", [*BAD_HEADS, *BAD_BODIES], ids=range(len(BAD_HEADS + BAD_BODIES)))
def test_a_malformed_answer_is_a_502_or_breaks_off_all_at_once_and_byte_by_byte(data: bytes) -> None:
    with World(QUICK) as world:
        found = answered(world, whole(data))
        must_be_bad(found, data)
        assert found.is_whole == (data in BAD_HEADS)
        assert answered(world, bytewise(data)).sketch == found.sketch


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from([bad for bad in BAD_HEADS + BAD_BODIES if len(bad) < 2_000]))
def test_a_malformed_answer_is_as_bad_in_any_split(data: st.DataObject, bad: bytes) -> None:
    reads = data.draw(splits(bad))
    with World(QUICK) as world:
        found = answered(world, reads)
        must_be_bad(found, bad)
        assert found.sketch == answered(world, whole(bad)).sketch


@pytest.mark.parametrize("then", ["ends", "lost", "silent"])
@pytest.mark.parametrize("cut", CUT_SHORT, ids=range(len(CUT_SHORT)))
def test_an_answer_that_stops_is_never_taken_for_whole(cut: bytes, then: str) -> None:
    with World(QUICK) as world:
        found = answered(world, whole(cut), GET, then)
        must_be_bad(found, cut)
        assert answered(world, bytewise(cut), GET, then).sketch == found.sketch


def test_an_answer_without_a_length_whose_connection_is_reset_is_not_whole() -> None:
    with World(QUICK) as world:
        must_be_bad(answered(world, whole(OK + b"\r\nhel"), GET, "lost"), b"")
        assert answered(world, whole(OK + b"\r\nhel"), GET, "ends").is_clean


def must_be_llhttps_reading(found: Told, data: bytes) -> None:
    reading = Reading(of_answers=True)
    reading.feed(data)
    messages = [read for read in reading.messages if read.status >= 200]
    if not messages or (reading.is_refused and not messages[0].is_whole):
        event("only we accept")
        return
    event("both accept")
    assert found.status == messages[0].status
    assert found.body == messages[0].body


@settings(max_examples=200, deadline=None)
@given(st.data(), tampered())
@example(None, (b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nab", UPGRADE, "lost"))
def test_a_tampered_answer_is_read_alike_in_any_split_and_as_somebody_else_reads_it(
    data: st.DataObject | None, case: tuple[bytes, bytes, str]
) -> None:
    said, request, then = case
    reads = data.draw(splits(said)) if data is not None else bytewise(said)
    with World(QUICK) as world:
        found = answered(world, reads, request, then)
        assert found.sketch == answered(world, whole(said), request, then).sketch
    event("clean" if found.is_clean else "bad")
    if found.is_clean and request != HEAD and found.status != 101:
        must_be_llhttps_reading(found, said)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.binary(max_size=40), st.sampled_from((b"", INTERIM[0])))
def test_what_follows_a_granted_upgrade_passes_as_it_is_in_any_split(
    data: st.DataObject, stream: bytes, before: bytes
) -> None:
    stream += POISON + b"0\r\n\r\n"
    switch = before + b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: Echo\r\nX-A: 1\r\n\r\n"
    reads = data.draw(splits(switch + stream))
    with World(QUICK) as world:
        found = answered(world, reads, UPGRADE, "ends")
    assert (found.status, found.body, found.outcome) == (101, stream, "completed")
    assert (b"upgrade", b"Echo") in found.fields
    assert (b"x-a", b"1") in found.fields
    assert not found.upstream_is_kept
