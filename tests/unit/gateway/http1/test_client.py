"""A workload's connection: the same bytes in any split and at any pace are read alike; what is malformed is answered once."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1.client import PIPELINED_BYTES_MAX
from gateway.http1.client_end import DISCARD_BYTES_MAX, LINGER_S
from tests.unit.gateway.http1.referee import Read, read_answers
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import ANSWER, AUTHORIZATION, HOST, TOKEN, World, get, post, post_chunked

NO_TOKEN = b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n"
NO_TOKEN_BODY = b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
UPGRADE = get(b"/x", b"Connection: Upgrade", b"Upgrade: echo")
GRANT = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
WELL_FORMED = (
    get(), get(b"/a/../b?c=d", b"X-A: 1"), b"\r\n" + get(b"/after-an-empty-line"), post(b""), post(b"hello"),
    post_chunked(b"3\r\nabc\r\n0\r\n\r\n"), post_chunked(b"1;x=y\r\na\r\n2\r\nbc\r\n0\r\nSum: 1\r\n\r\n"),
    post_chunked(b"0\r\n\r\n"),
    get().replace(b"GET", b"HEAD", 1), NO_TOKEN, NO_TOKEN_BODY, get(b"/-/x"),
    get(b"/x", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    get(b"/x", b"X-Principal: forged", b"Connection: x-a", b"X-A: 1"),
)  # fmt: skip
LAST = (
    b"", b"", get(b"/x", b"Connection: close"), b"GET /unfinished HTT", b"\x00", b"NONSENSE\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n",
    b"GET /x HTTP/1.1\r\n\r\n", b"GET /\n", b"\r\n\r\n" + get(), post_chunked(b"3\r\nabcX"), post_chunked(b"zz\r\n"),
    get(b"/x").replace(b"HTTP/1.1", b"HTTP/1.0"), b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", post(b"abc")[:-1],
    get(b"/%2F"), get(b"/x", b"Expect: never"), get(b"/x", b"Host: again"),
    get(b"/x", b"Content-Length: 1", b"Content-Length: 1"),
    post_chunked(b"1\r\na\r\n0\r\nSum: 1\r\nX-Principal: forged\r\nSum_2: 2\r\n\r\n"),
    post_chunked(b"1\r\na\r\n0\r\nSum : 1\r\n\r\n") + get(), post_chunked(b"0\r\nHost: a b\r\n\r\n") + get(),
    UPGRADE + get(b"/early"), get(b"/x", b"Connection: Upgrade", b"Upgrade: websocket") + b"\x81\x05hello",
    post(b"abc", b"Connection: Upgrade", b"Upgrade: echo") + get(b"/early"),
)  # fmt: skip


def forwarded(world: World) -> list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]]:
    prefix = world.proxy.next_request_id()[:14]
    return [
        (read.method, read.target, [(name, value.replace(prefix, b"worker")) for name, value in read.fields], read.body)
        for read in world.upstream.all_requests
    ]  # fmt: skip


def serve(reads: list[tuple[bytes, bool]]) -> tuple[bytes, bool, object]:
    """What a client is sent that sends these reads (True: and waits until nothing moves); whether it was hung up on."""
    with World() as world:
        client = world.client()
        for data, waits in reads:
            client.say(data)
            if waits:
                world.settle_down()
        world.settle_down()
        received, is_over = world.plain(client.sent), client.has_ended or client.is_lost
        requests = forwarded(world)
        client.lose()
        world.settle_down()
        world.check_books()
        return received, is_over, requests


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """What a client says, and the same in any split, at any pace."""
    data = b"".join(draw(st.lists(st.sampled_from(WELL_FORMED), max_size=4))) + draw(st.sampled_from(LAST))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    bounds = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds) if start != end]
    return data, [(piece, draw(st.booleans())) for piece in pieces]


@settings(max_examples=120, deadline=None)
@given(conversations())
def test_any_split_at_any_pace_gives_the_same_answers_and_the_same_requests(
    conversation: tuple[bytes, list[tuple[bytes, bool]]],
) -> None:
    data, reads = conversation
    assert serve(reads) == serve([(data, True)] if data else [])


@pytest.mark.parametrize(
    "request_", [get(), post(b"hello"), post_chunked(b"3\r\nabc\r\n0\r\n\r\n"), NO_TOKEN_BODY]
)
def test_byte_by_byte_is_read_like_all_at_once(request_: bytes) -> None:
    data = request_ + b"\r\n" + get(b"/second") + b"GET /\x00"
    bytewise = [(data[at : at + 1], True) for at in range(len(data))]
    assert serve(bytewise) == serve([(data, True)])


TAMPERING = (
    b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b",", b";", b"0", b"1", b"x", b"_", b"\xff", b"\r\n\r\n",
    b"\r\n ", b"\r\nContent-Length: 1", b"\r\nTransfer-Encoding: chunked", b"\r\nHost: b", b"HTTP/1.0", b"/../", b"%2f",
    b"\r\nUpgrade: a",
)  # fmt: skip


@st.composite
def tampered(draw: st.DrawFn) -> tuple[bytes, list[tuple[bytes, bool]]]:
    """A conversation in which up to three places were changed by what smuggling is made of, in any split, at any pace."""
    data = b"".join(draw(st.lists(st.sampled_from(WELL_FORMED), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(TAMPERING)) + data[at + draw(st.integers(0, 2)) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    bounds = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds) if start != end]
    return data, [(piece, draw(st.booleans())) for piece in pieces]


@settings(max_examples=150, deadline=None)
@given(tampered())
def test_what_was_tampered_with_is_answered_and_passed_on_alike_in_any_split(
    conversation: tuple[bytes, list[tuple[bytes, bool]]],
) -> None:
    data, reads = conversation
    assert serve(reads) == serve([(data, True)])


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/2.0\r\nHost: a\nX: y\r\n\r\n", b"%b / HTTP/1.1\r\nX: y\nHost: a\r\n\r\n" % (b"M" * 40),
        b"GET /%b HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n" % (b"a" * 9000), b"GET / HTTP/1.1\r\n" + b"X: y\n" * 200 + b"\r\n",
        b"GET / HTTP/3\r\nX: " + b"y" * 40_000, b"GET / HTTP/1.1\r\nX: \x00" + b"y" * 40_000, b"\r\n\x00" + b"y" * 40_000,
    ],
    ids=lambda data: repr(data[:30]),
)  # fmt: skip
def test_of_two_things_that_are_wrong_the_first_is_told_in_any_split(data: bytes) -> None:
    at_once = serve([(data, True)])
    for size in (10, 1_000):
        assert serve([(data[at : at + size], False) for at in range(0, len(data), size)]) == at_once


@settings(max_examples=60, deadline=None)
@given(st.data(), st.binary(max_size=40))
def test_what_follows_a_granted_upgrade_is_the_tunnels_in_any_split(
    draws: st.DataObject, stream: bytes
) -> None:
    data = UPGRADE + stream + get(b"/no-request")
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    with World() as world:
        world.upstream.answers = lambda read: GRANT if read.leaves_http else b""
        client = world.client()
        for start, end in pairwise([0, *cuts, len(data)]):
            client.say(data[start:end])
            if draws.draw(st.booleans()):
                world.settle_down()
        client.end()
        world.settle_down()
        (line,) = world.upstream.lines
        assert bytes(line.sent).partition(b"\r\n\r\n")[2] == stream + get(b"/no-request")
        assert line.has_ended
        assert client.sent.count(b"HTTP/1.1 ") == 1
        line.end()
        world.settle_down()
        world.check_books()
        assert client.is_lost


def answers_to(client: Line) -> list[Read]:
    return read_answers(bytes(client.sent)) or []


def test_pipelined_requests_are_answered_one_by_one_in_order() -> None:
    with World() as world:
        world.upstream.answers = lambda read: ANSWER.replace(b"hello", read.target[-5:])
        client = world.client()
        client.say(b"".join(get(b"/n%04d" % number) for number in range(50)))
        world.turn(600)
        assert [answer.body for answer in answers_to(client)] == [b"n%04d" % number for number in range(50)]
        assert len(world.upstream.lines) == 1
        world.settle_down()
        world.check_books()


def test_many_small_requests_refused_in_one_read_are_each_answered() -> None:
    """Each is refused before the next is looked at; none may stand on the shoulders of the one before."""
    count = 3000
    with World() as world:
        client = world.client()
        client.say(NO_TOKEN_BODY * count)
        for _ in range(20):
            world.turn(count // 10)
        assert client.sent.count(b"HTTP/1.1 401 ") == count
        assert world.loop.failures == []


def test_what_is_pipelined_behind_a_request_under_way_is_bounded() -> None:
    large = get(b"/x", b"X-Filler: " + b"a" * 4000)
    with World() as world:
        world.is_prompt = False
        client = world.client()
        client.say(get())
        for _ in range(100):
            client.say(large)
        assert client.is_paused
        assert len(client.unread) * len(large) > 400_000 - 2 * PIPELINED_BYTES_MAX
        world.is_prompt = True
        world.turn(1000)
        world.settle_down()
        assert client.sent.count(b"hello") == 101
        world.check_books()


def test_a_small_body_of_a_refused_request_is_read_past_and_the_connection_kept() -> None:
    with World() as world:
        client = world.client()
        client.say(NO_TOKEN_BODY[:-2])
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 401 ")
        client.say(NO_TOKEN_BODY[-2:] + get())
        world.settle_down()
        assert client.sent.endswith(b"hello")
        assert not client.has_ended


@pytest.mark.parametrize(
    "framing", [b"Content-Length: %d" % (DISCARD_BYTES_MAX + 1), b"Transfer-Encoding: chunked"]
)
def test_a_large_or_open_ended_body_of_a_refused_request_ends_the_connection(framing: bytes) -> None:
    with World() as world:
        client = world.client()
        client.say(b"POST /x HTTP/1.1\r\n" + HOST + framing + b"\r\n\r\n")
        world.settle_down()
        assert b"\r\nConnection: close\r\n" in client.sent
        assert client.has_ended
        world.advance(LINGER_S + 0.3)
        assert client.is_lost


def test_after_a_malformed_request_nothing_more_is_read_as_one() -> None:
    with World() as world:
        client = world.client()
        client.say(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n" + get())
        client.say(get())
        world.settle_down()
        assert client.sent.count(b"HTTP/1.1 ") == 1
        assert client.has_ended
        assert world.upstream.all_requests == []
        assert not world.redis.commands["admit"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 40_000, 414), (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431), (b"G" * 40_000, 414),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
        (post(b"")[:-2].replace(b"Content-Length: 0", b"Content-Length: 99999999999999") + b"\r\n", 413),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused_with_the_status_that_says_so(data: bytes, status: int) -> None:
    with World() as world:
        client = world.client()
        for at in range(0, len(data), 1000):
            client.say(data[at : at + 1000])
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 %d " % status)
        assert client.has_ended


def test_a_chunked_body_beyond_the_bound_is_cut_off_and_settled() -> None:
    with World(body_bytes_max=10) as world:
        client = world.client()
        client.say(post_chunked(b"8\r\nabcdefgh\r\n"))
        world.settle_down()
        client.say(b"8\r\nabcdefgh\r\n")
        world.settle_down()
        assert client.sent.startswith(b"HTTP/1.1 413 ")
        assert client.has_ended
        assert world.upstream.lines[0].is_lost, "the upstream must not take the beginning for the whole"
        world.check_books()


def test_an_upstream_that_asks_for_the_body_is_heard() -> None:
    with World() as world:
        world.upstream.answers = None
        client = world.client()
        client.say(post(b"abc", b"Expect: 100-continue")[:-3])
        world.settle_down()
        (line,) = world.upstream.lines
        assert b"\r\nExpect: 100-continue\r\n" in line.sent
        line.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.say(b"abc")
        line.say(ANSWER)
        world.settle_down()
        assert client.sent.endswith(b"hello")
        world.check_books()


def test_an_interim_answer_has_no_length_that_could_be_taken_for_that_of_a_body() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nLink: </a>\r\n\r\n"
    with World() as world:
        world.upstream.answers = lambda _: interim + ANSWER
        client = world.client()
        client.say(get())
        world.settle_down()
        assert client.sent.startswith(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n"
        )


def test_a_thousand_interim_answers_in_one_read_are_passed_on() -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    with World() as world:
        world.upstream.answers = lambda _: interim * 3000 + ANSWER
        client = world.client()
        client.say(get())
        world.settle_down()
        assert client.sent.count(b"103 Early Hints") == 3000
        assert client.sent.endswith(b"hello")
        world.check_books()


def test_the_token_goes_nowhere_but_into_the_gateway() -> None:
    with World() as world:
        client = world.client()
        client.say(get() + post(b"abc", b"X-Api-Key: " + TOKEN) + get(b"/-/") + get(b"/%2F"))
        world.settle_down()
        everything = bytes(client.sent) + b"".join(bytes(line.sent) for line in world.upstream.lines)
        everything += b"".join(world.redis.events) + bytes(world.redis.line.sent if world.redis.line else b"")
        assert client.sent.count(b"HTTP/1.1 ") == 4
        assert TOKEN not in everything
        assert AUTHORIZATION not in everything
