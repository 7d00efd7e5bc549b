"""A tunnel that is cut: a WebSocket is told so behind a whole frame, never in the middle of one; others are broken off."""

from __future__ import annotations

import pytest

from gateway.exchange import FRAME_END_S
from gateway.http1.websocket import GOING_AWAY, POLICY_VIOLATION
from gateway.server import drain
from tests.unit.gateway.metered import BY_BYTES, asks, full_world, key_is_off, metered_world, settled
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import World, get

WEBSOCKET = get(
    b"/x", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)  # fmt: skip
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def frame(payload: bytes) -> bytes:
    assert len(payload) < 65_536
    if len(payload) < 126:
        return bytes((0x82, len(payload))) + payload
    return b"\x82\x7e" + len(payload).to_bytes(2, "big") + payload


def tunnel(world: World, request: bytes = WEBSOCKET, switched: bytes = SWITCHED) -> tuple[Line, Line]:
    client = asks(world, request)
    upstream = world.upstream.lines[-1]
    upstream.say(switched)
    world.settle_down()
    assert client.sent.startswith(b"HTTP/1.1 101 ")
    return client, upstream


def tunnelled(client: Line) -> bytes:
    return bytes(client.sent).partition(b"\r\n\r\n")[2]


def check_closed(data: bytes, code: int, words: bytes) -> None:
    """A whole close frame with this code."""
    assert data[:1] == b"\x88"
    assert data[1] == len(data) - 2
    assert int.from_bytes(data[2:4], "big") == code
    assert words in data


def test_a_websocket_is_closed_with_1008_behind_a_whole_frame() -> None:
    with full_world(BY_BYTES) as world:
        client, upstream = tunnel(world)
        upstream.say(frame(b"x" * 1_500))
        world.advance(0.3)
        data = tunnelled(client)
        assert data.startswith(frame(b"x" * 1_500))
        check_closed(data[len(frame(b"x" * 1_500)) :], POLICY_VIOLATION, b"credits ran out")
        assert (client.has_ended, upstream.is_lost) == (True, True)
        done = settled(world)
        assert (done.outcome, done.status, done.cost) == ("cut", 101, 1_504)
        world.check_books()


@pytest.mark.parametrize("cut_at", [1, 3, 4, 100, 1_503])
def test_a_websocket_cut_in_the_middle_of_a_frame_gets_the_rest_of_it_and_nothing_behind_it(
    cut_at: int,
) -> None:
    with full_world(BY_BYTES) as world:
        client, upstream = tunnel(world)
        first, second = frame(b"x" * 1_500), frame(b"y" * 1_500)
        upstream.say(first + second[:cut_at])
        world.advance(0.3)
        assert tunnelled(client) == first + second[:cut_at]
        assert not upstream.is_lost
        upstream.say(second[cut_at:-1])
        world.turn(3)
        upstream.say(second[-1:] + frame(b"never"))
        world.settle_down()
        data = tunnelled(client)
        assert data.startswith(first + second)
        check_closed(data[len(first + second) :], POLICY_VIOLATION, b"credits ran out")
        assert settled(world).bytes_out == len(first + second)
        world.check_books()


def test_a_websocket_cut_in_a_frame_that_does_not_end_is_broken_off() -> None:
    with full_world(BY_BYTES) as world:
        client, upstream = tunnel(world)
        sent = frame(b"x" * 1_500)[:-1]
        upstream.say(sent)
        world.advance(FRAME_END_S + 0.5)
        assert tunnelled(client) == sent
        assert (client.is_closing(), upstream.is_lost) == (True, True)
        assert settled(world).outcome == "cut"
        world.check_books()


def test_a_tunnel_of_another_protocol_is_broken_off() -> None:
    with full_world(BY_BYTES) as world:
        switched = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        client, upstream = tunnel(world, get(b"/x", b"Connection: Upgrade", b"Upgrade: echo"), switched)
        upstream.say(b"x" * 1_500)
        world.advance(0.3)
        assert tunnelled(client) == b"x" * 1_500
        assert (client.is_closing(), upstream.is_lost) == (True, True)
        world.check_books()


def test_a_websocket_whose_key_is_off_is_closed_with_1008_and_one_that_meets_a_stop_with_1001() -> None:
    with metered_world() as world:
        client, _ = tunnel(world)
        key_is_off(world)
        world.advance(4.0)
        check_closed(tunnelled(client), POLICY_VIOLATION, b"The key is disabled")
        world.check_books()
    with metered_world() as world:
        client, _ = tunnel(world)
        world.loop.run_until_complete(drain(world.proxy, 0.0))
        world.settle_down()
        check_closed(tunnelled(client), GOING_AWAY, b"stopping")
        world.check_books()


def test_a_stop_does_not_wait_for_the_end_of_a_frame() -> None:
    with metered_world() as world:
        client, upstream = tunnel(world)
        upstream.say(frame(b"x" * 200)[:50])
        world.settle_down()
        world.loop.run_until_complete(drain(world.proxy, 0.0))
        world.settle_down()
        assert tunnelled(client) == frame(b"x" * 200)[:50]
        assert settled(world).outcome == "cut"
        world.check_books()


def test_a_websocket_whose_upstream_has_ended_is_told_nothing_more() -> None:
    with metered_world() as world:
        client, upstream = tunnel(world)
        upstream.end()
        world.settle_down()
        assert client.has_ended
        key_is_off(world)
        world.advance(4.0)
        assert tunnelled(client) == b""
        assert client.is_closing()
        assert settled(world).outcome == "cut"
        world.check_books()
