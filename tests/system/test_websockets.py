"""WebSockets, with a real client and server of them: whatever they say to each other straight, they say through the gateway."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.extensions import permessage_deflate as deflate
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from control.embedded import wait_until
from tests.certificates import client_context, make_authority, write_pair
from tests.system.installation import Addresses, Gateway, Installation, Workload, another_gateway

MIB = 1 << 20
MESSAGES = 10_000
STEP_TIMEOUT_S = 60.0
LETTERS = "Grüße, 世界 👋 and so on. "
CHANGED_ON_THE_WAY = ("date", "sec-websocket-accept", "x-request-id")

Options = dict[str, Any]
QUIET: Options = {"max_size": None, "ping_interval": None}
Data = str | bytes
Message = Data | list[Data]
"""A list is one message in several fragments."""
Handler = Callable[[ServerConnection], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to the server: straight, or through a gateway."""

    origin: str
    headers: dict[str, str]
    tls: ssl.SSLContext | None = None

    def __call__(self, path: str, **more: Any) -> connect:
        given = QUIET | {"proxy": None, "ssl": self.tls} | more
        return connect(f"{self.origin}/tunnel/{path}", additional_headers=self.headers, **given)


@pytest.fixture
def straight(far_listener: socket) -> Way:
    return Way(f"ws://127.0.0.1:{far_listener.getsockname()[1]}", {})


@pytest.fixture
async def workload(installation: Installation) -> Workload:
    return await installation.workload()


@pytest.fixture
def through(tunnel_gateway: Gateway, workload: Workload) -> Way:
    return Way(f"ws://127.0.0.1:{tunnel_gateway.port}", workload.bearer)


@pytest.fixture(scope="module")
def tls_gateway(
    addresses: Addresses, data_dir: Path, tunnel_routes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, ssl.SSLContext]]:
    authority = make_authority("websockets")
    pair = write_pair(tmp_path_factory.mktemp("certificates"), "gateway", authority)
    start = partial(another_gateway, addresses.redis, data_dir / "pepper", data_dir / "gateways.log")
    files = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    with start(tunnel_routes, limit_files=None, **files) as gateway:
        yield gateway, client_context(authority)


@pytest.fixture
def through_tls(tls_gateway: tuple[Gateway, ssl.SSLContext], workload: Workload) -> Way:
    gateway, context = tls_gateway
    return Way(f"wss://localhost:{gateway.port}", workload.bearer, context)


@asynccontextmanager
async def served(listener: socket, handler: Handler, **more: Any) -> AsyncIterator[None]:
    async with asyncio.timeout(STEP_TIMEOUT_S), serve(handler, sock=listener.dup(), **(QUIET | more)):
        yield


async def echo(server: ServerConnection) -> None:
    """Sends everything back, in the fragments in which it came."""
    while True:
        try:
            fragments = [fragment async for fragment in server.recv_streaming()]
        except ConnectionClosed:
            return
        await server.send(fragments[0] if len(fragments) == 1 else fragments)


def messages(count: int, seed: int) -> Iterator[Message]:
    """Mostly small ones, of every kind of length that a frame can have; each thirteenth in fragments."""
    generator = random.Random(seed)
    borders = [0, 1, 125, 126, 127, 65_535, 65_536, MIB - 1, MIB]
    for number in range(count):
        size = generator.choice(borders[:5]) if number % 3 == 0 else int(generator.expovariate(1 / 500))
        if number % 500 == 0:
            size = borders[number // 500 % len(borders)]
        text = (LETTERS * (size // len(LETTERS) + 1))[:size]
        data: Data = text if (number + number // 500) % 2 else generator.randbytes(size)
        if number % 13 != 9:  # so that one of 1 MiB is
            yield data
        else:
            cuts = sorted(generator.choices(range(size + 1), k=generator.randrange(1, 5)))
            yield [data[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)]


Heard = tuple[type, list[int], bytes]


def heard(fragments: list[Data]) -> Heard:
    """What is compared of a message: its kind, how it was cut, and the digest of the whole."""
    digest = hashlib.sha256()
    for fragment in fragments:
        digest.update(fragment.encode() if isinstance(fragment, str) else fragment)
    return type(fragments[0]), [len(fragment) for fragment in fragments], digest.digest()


async def conversation(client: ClientConnection, count: int) -> list[Heard]:
    """Send so many messages without waiting for their echoes; what comes back."""

    async def speak() -> None:
        for message in messages(count, seed=1):
            await client.send(message)

    speaking = asyncio.create_task(speak())
    found = [heard([fragment async for fragment in client.recv_streaming()]) for _ in range(count)]
    await speaking
    return found


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_ten_thousand_messages_come_back_as_without_a_gateway(
    installation: Installation, far_listener: socket, straight: Way, through: Way, through_tls: Way,
    workload: Workload, compression: str | None,
) -> None:  # fmt: skip
    way = through_tls if compression else through
    async with served(far_listener, echo, compression=compression):
        async with straight("echo", compression=compression) as client:
            expected = await conversation(client, MESSAGES)
        async with way("echo", compression=compression) as client:
            found = await conversation(client, MESSAGES)
    assert found == expected
    said = [message if isinstance(message, list) else [message] for message in messages(MESSAGES, seed=1)]
    assert [(kind, digest) for kind, _, digest in found] == [heard(message)[::2] for message in said]
    size = sum(len(fragment) for message in said for fragment in message)
    (row,) = await installation.settled(workload.tag)
    assert (row["outcome"], row["status"]) == ("completed", 101)
    if not compression:
        assert min(row["bytes_in"], row["bytes_out"]) > size


async def pings(one: ClientConnection | ServerConnection) -> list[bytes]:
    """Ping with every length that a ping may have; those that were answered."""
    payloads = [random.Random(size).randbytes(size) for size in (1, 2, 64, 124, 125)]
    waiters = [await one.ping(payload) for payload in payloads]
    assert all(latency >= 0 for latency in await asyncio.gather(*waiters))
    await (await one.ping())  # with a payload of its own
    await one.pong(b"nobody asked")
    return payloads


async def test_pings_are_answered_both_ways_also_within_a_fragmented_message(
    far_listener: socket, straight: Way, through: Way, through_tls: Way
) -> None:
    answered: list[list[bytes]] = []

    async def ping_and_echo(server: ServerConnection) -> None:
        answered.append(await pings(server))
        await echo(server)

    async def cut_by_a_ping(client: ClientConnection) -> AsyncIterator[str]:
        yield "before"
        await (await client.ping(b"between"))
        yield "after"

    async with served(far_listener, ping_and_echo):
        for way in (straight, through, through_tls):
            async with way("ping") as client:
                answered.append(await pings(client))
                await client.send(cut_by_a_ping(client))
                assert await client.recv() == "beforeafter"
    assert answered == answered[:1] * 6


async def test_keep_alive_pings_keep_a_connection(far_listener: socket, straight: Way, through: Way) -> None:
    often: Options = {"ping_interval": 0.05, "ping_timeout": 15}
    async with served(far_listener, echo, **often):
        for way in (straight, through):
            async with way("echo", **often) as client:
                measured: set[float] = set()
                while len(measured) < 5:  # each answer to a ping sets it anew
                    measured.add(client.latency)
                    await asyncio.sleep(0.02)
                await client.send("still here")
                assert await client.recv() == "still here"


CLOSES = [
    (1000, ""),
    (1001, "going away"),
    (1008, "policy"),
    (1011, "é" * 61),
    (3000, "registered"),
    (4999, "x" * 123),
]


@dataclass(slots=True)
class End:
    """How a connection ended for one side: code and reason as received and as sent."""

    received: tuple[int, str] | None
    sent: tuple[int, str] | None

    @classmethod
    async def of(cls, one: ClientConnection | ServerConnection) -> End:
        try:
            while True:
                await one.recv()
        except ConnectionClosed as end:
            return cls(*((close.code, close.reason) if close else None for close in (end.rcvd, end.sent)))


@dataclass(slots=True)
class Ends:
    """How connections ended, by the last segment of their path."""

    at_client: dict[str, End] = field(default_factory=dict)
    at_server: dict[str, End] = field(default_factory=dict)

    async def note(self, server: ServerConnection) -> None:
        self.at_server[last_segment(server)] = await End.of(server)

    async def are_known(self, count: int) -> None:
        await wait_until(lambda: len(self.at_server) >= count, 15, f"the ends of {count} connections")


def last_segment(server: ServerConnection) -> str:
    assert server.request is not None
    return server.request.path.rpartition("/")[2]


@pytest.mark.parametrize("who", ["client", "server"])
async def test_close_codes_and_reasons_arrive_whoever_closes(
    installation: Installation, far_listener: socket, straight: Way, through: Way, through_tls: Way,
    workload: Workload, who: str,
) -> None:  # fmt: skip
    ends = Ends()

    async def close(server: ServerConnection) -> None:
        if who == "server":
            await server.send("last words")
            await server.close(*CLOSES[int(last_segment(server)) % len(CLOSES)])
        await ends.note(server)

    ways = [way for way in (straight, through, through_tls) for _ in CLOSES]
    async with served(far_listener, close):
        for number, way in enumerate(ways):
            async with way(str(number)) as client:
                if who == "server":
                    assert await client.recv() == "last words"
                else:
                    await client.close(*CLOSES[number % len(CLOSES)])
                ends.at_client[str(number)] = await End.of(client)
        await ends.are_known(len(ways))
    expected = {str(n): End(CLOSES[n % len(CLOSES)], CLOSES[n % len(CLOSES)]) for n in range(len(ways))}
    assert ends.at_client == expected
    assert ends.at_server == expected
    rows = await installation.settled(workload.tag)
    assert [(row["outcome"], row["status"]) for row in rows] == [("completed", 101)] * 2 * len(CLOSES)


async def test_a_connection_that_breaks_is_seen_to_break_at_the_other_side(
    installation: Installation, far_listener: socket, straight: Way, through: Way, through_tls: Way, workload: Workload
) -> None:  # fmt: skip
    ends = Ends()

    async def break_off(server: ServerConnection) -> None:
        await server.send("ready")
        if last_segment(server).startswith("server"):
            assert await server.recv() == "now"
            server.transport.abort()
        await ends.note(server)

    async with served(far_listener, break_off):
        for number, way in enumerate((straight, through, through_tls)):
            for who in ("server", "client"):
                async with way(f"{who}-{number}") as client:
                    assert await client.recv() == "ready"
                    if who == "client":
                        client.transport.abort()
                    else:
                        await client.send("now")
                    ends.at_client[f"{who}-{number}"] = await End.of(client)
        await ends.are_known(6)
    assert set(ends.at_client) == set(ends.at_server)
    for end in (*ends.at_client.values(), *ends.at_server.values()):
        assert end == End(None, None)
    assert len(await installation.settled(workload.tag)) == 4


async def test_a_message_that_is_too_large_is_refused_by_the_same_close(
    far_listener: socket, straight: Way, through: Way
) -> None:
    ends = Ends()

    async def say_much(server: ServerConnection) -> None:
        await server.send("x" * MIB)
        await ends.note(server)

    async with served(far_listener, say_much):
        for name, way in (("straight", straight), ("through", through)):
            async with way(name, max_size=1000) as client:
                ends.at_client[name] = await End.of(client)
        await ends.are_known(2)
    assert ends.at_client["through"] == ends.at_client["straight"]
    assert ends.at_server["through"] == ends.at_server["straight"]
    assert ends.at_client["through"].sent == ends.at_server["through"].received
    assert (ends.at_server["through"].received or (0,))[0] == 1009


def subprotocols(*names: str) -> Options:
    return {"subprotocols": [Subprotocol(name) for name in names], "compression": None}


PARAMETERS = (
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
    "server_max_window_bits=9; client_max_window_bits=11"
)
NO_SUBPROTOCOL = subprotocols("other") | {"select_subprotocol": lambda *_: None}
OFFERS: dict[str, tuple[Options, Options, list[str], str | None]] = {
    "compression": ({}, {}, ["permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"], None),
    "none by the client": ({"compression": None}, {}, [], None),
    "none by the server": ({}, {"compression": None}, [], None),
    "compression with parameters": (
        {"extensions": [deflate.ClientPerMessageDeflateFactory(True, True, 10, 11)]},
        {"extensions": [deflate.ServerPerMessageDeflateFactory(True, True, 9, 12)]}, [PARAMETERS], None,
    ),
    "a subprotocol": (subprotocols("b", "a"), subprotocols("a", "other"), [], "a"),
    "no subprotocol": ({"compression": None}, NO_SUBPROTOCOL, [], None),
}  # fmt: skip
"""What the client offers and what the server takes, the extensions that come of it, and the subprotocol."""


@pytest.mark.parametrize(
    ("offered", "taken", "extensions", "subprotocol"), OFFERS.values(), ids=OFFERS.keys()
)
async def test_extensions_and_subprotocols_are_agreed_on_as_without_a_gateway(
    far_listener: socket, straight: Way, through: Way,
    offered: Options, taken: Options, extensions: list[str], subprotocol: str | None,
) -> None:  # fmt: skip
    async def agreed(way: Way) -> list[tuple[str, str]]:
        async with way("echo", **offered) as client:
            await client.send(LETTERS * 100)
            assert await client.recv() == LETTERS * 100
            assert client.subprotocol == subprotocol
            assert client.response is not None
            assert client.response.headers.get_all("Sec-WebSocket-Extensions") == extensions
            fields = client.response.headers.raw_items()
            return sorted(pair for pair in fields if pair[0].lower() not in CHANGED_ON_THE_WAY)

    async with served(far_listener, echo, **taken):
        assert await agreed(through) == await agreed(straight)


async def test_a_handshake_that_the_server_refuses_is_refused_in_its_words(
    far_listener: socket, straight: Way, through: Way
) -> None:
    def refuse(server: ServerConnection, _request: Request) -> Response:
        return server.respond(HTTPStatus.IM_A_TEAPOT, "no tea here\n")

    async def refusal(way: Way) -> tuple[int, bytes | bytearray | None]:
        with pytest.raises(InvalidStatus) as refused:
            async with way("echo"):
                pass
        return refused.value.response.status_code, refused.value.response.body

    async with served(far_listener, echo, process_request=refuse):
        assert await refusal(straight) == await refusal(through) == (418, b"no tea here\n")
