"""A whole worker on lines: clients, Redis and upstreams are played by the test, and time moves when it says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.contract import layout, token
from gateway.contract.ids import AccountId, KeyId
from gateway.contract.money import Microcredits
from gateway.contract.token import Pepper
from gateway.http1.client import ClientConnection
from gateway.logs import AccessLog
from gateway.pricing import Price
from gateway.proxy import Proxy
from gateway.routing import Route, RouteTable, Timeouts, Upstream
from gateway.settings import GatewaySettings
from tests.unit.gateway.http1.referee import Read, Reading
from tests.unit.gateway.redis_end import STARTED_AT_MS, RedisEnd
from tests.unit.gateway.wires import Line, StoppedClock

PEPPER: Final = Pepper(bytes(range(32)))
_BODY: Final = b"tk_Acme010123456789_" + b"s3cr3t" * 7 + b"x"
TOKEN: Final = _BODY + token.checksum(_BODY).encode()
KEY: Final = KeyId("Acme010123456789")
ACCOUNT: Final = AccountId("sa_Acme010123456789")
HOST: Final = b"Host: gateway.example\r\n"
AUTHORIZATION: Final = b"Authorization: Bearer " + TOKEN + b"\r\n"
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
ROUTE: Final = Route(
    "models", b"/", (Upstream("http", "up.example", 80),), hold=Microcredits(1000),
    price=Price(Microcredits(700), kib_in=Microcredits(10)), timeouts=Timeouts(2.0, 20.0, 10.0),
)  # fmt: skip


def get(path: bytes = b"/x", *lines: bytes) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b%b\r\n" % (
        path,
        HOST,
        AUTHORIZATION,
        b"".join(line + b"\r\n" for line in lines),
    )


def post(body: bytes, *lines: bytes) -> bytes:
    """A POST with its length, and its body."""
    extra = b"".join(line + b"\r\n" for line in lines)
    return b"POST /x HTTP/1.1\r\n%b%bContent-Length: %d\r\n%b\r\n%b" % (
        HOST,
        AUTHORIZATION,
        len(body),
        extra,
        body,
    )


def post_chunked(coded: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\n%b%bTransfer-Encoding: chunked\r\n\r\n%b" % (HOST, AUTHORIZATION, coded)


@dataclass(slots=True)
class UpstreamEnd:
    """The far ends of all connections to upstreams. With `answers`, each whole request is answered once."""

    answers: Callable[[Read], bytes] | None = lambda _: ANSWER
    refuses: Exception | None = None
    opens: bool = True
    resets_at_once: bool = False
    answers_at: dict[str, Callable[[Read], bytes] | None] = field(default_factory=dict)
    """Hosts that answer otherwise than `answers` says."""
    refuses_at: dict[str, Exception] = field(default_factory=dict)
    """Hosts that cannot be connected to, each for its own reason."""
    silent: set[str] = field(default_factory=set)
    """Hosts that do not pick up."""
    calls: list[str] = field(default_factory=list)
    """Hosts that a connection was asked for to, in order."""
    lines: list[Line] = field(default_factory=list)
    _hosts: dict[Line, str] = field(default_factory=dict)
    _readings: dict[Line, tuple[Reading, int]] = field(default_factory=dict)
    _answered: dict[Line, int] = field(default_factory=dict)
    _looked_at: dict[Line, int] = field(default_factory=dict)
    _waiting: list[tuple[asyncio.Future[Line], Callable[[], Line], str]] = field(default_factory=list)

    def call(
        self, loop: StoppedClock, factory: Callable[[], asyncio.Protocol], host: str = "up.example"
    ) -> asyncio.Future[Line]:
        future: asyncio.Future[Line] = loop.create_future()
        self.calls.append(host)
        self._waiting.append((future, lambda: loop.line(factory()), host))
        self.open_waiting()
        return future

    def open_waiting(self) -> None:
        """Let connections that are asked for come about, or fail."""
        for called in list(self._waiting) if self.opens else ():
            future, make, host = called
            if host in self.silent and not future.cancelled():
                continue
            self._waiting.remove(called)
            if future.cancelled():
                continue
            refusal = self.refuses_at.get(host, self.refuses)
            if refusal is not None:
                future.set_exception(refusal)
                continue
            line = make()
            self.lines.append(line)
            self._hosts[line] = host
            if self.resets_at_once:
                line.lose()  # before who asked for the connection is told that there is one
                future.get_loop().call_soon(future.set_result, line)
            else:
                future.set_result(line)

    def requests(self, line: Line) -> list[Read]:
        """What arrived whole on one line."""
        reading, seen = self._readings.get(line, (Reading(), 0))
        if len(line.sent) > seen:
            reading.feed(bytes(line.sent[seen:]))
        self._readings[line] = (reading, len(line.sent))
        return [read for read in reading.messages if read.is_whole]

    @property
    def all_requests(self) -> list[Read]:
        return [read for line in self.lines for read in self.requests(line)]

    def lines_at(self, host: str) -> list[Line]:
        """The connections to one host."""
        return [line for line in self.lines if self._hosts[line] == host]

    def requests_at(self, host: str) -> list[Read]:
        """What arrived whole at one host."""
        return [read for line in self.lines_at(host) for read in self.requests(line)]

    def answer(self) -> None:
        """Answer what arrived whole since the last time."""
        for line in self.lines:
            answers = self.answers_at.get(self._hosts.get(line, ""), self.answers)
            if answers is None:
                continue
            answered = self._answered.get(line, 0)
            if len(line.sent) == self._looked_at.get(line):
                continue
            self._looked_at[line] = len(line.sent)
            whole = self.requests(line)
            self._answered[line] = len(whole)
            for read in whole[answered:]:
                line.say(answers(read))

    def forget(self) -> None:
        """Hang up, and count from here."""
        for line in self.lines:
            line.lose()
        self.lines.clear()
        self.calls.clear()


class World:
    """One worker, ready to serve. `is_prompt`: Redis and upstream answer in every turn, without being told."""

    def __init__(
        self, routes: Sequence[Route] = (ROUTE,), *, knows_caller: bool = True, **settings: Any
    ) -> None:
        self.loop = StoppedClock()
        self.redis = RedisEnd(now_ms=lambda: STARTED_AT_MS + round(self.loop.now * 1000))
        self.upstream = UpstreamEnd()
        self.is_prompt = True
        self.loop.answer_call = self._answer_call
        self._publish()
        given = GatewaySettings(redis_url="redis://redis.example:6379", **settings)

        async def make() -> Proxy:
            proxy = Proxy(given, RouteTable(routes), PEPPER, AccessLog(0))
            proxy.start()
            return proxy

        self.proxy = self.loop.run_until_complete(make())
        self.turn(20)
        assert self.proxy.is_ready
        if knows_caller:
            line = self.client()
            line.say(get())
            self.settle_down()
            line.lose()
            self.settle_down()
            self.forget()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.directory.close()
        self.loop.end()

    def _publish(self) -> None:
        digest = token.digest(PEPPER, TOKEN)
        record = [digest, b"hash", ACCOUNT.encode(), b"build-bot", b"service-account", b"Acme01", b"acme"]
        self.redis.records[layout.Layout(16).key(KEY).encode()] = list(record)

    def _answer_call(
        self, host: str, port: int, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.Future[Line]:
        if host != "redis.example":
            return self.upstream.call(self.loop, factory, host)
        future: asyncio.Future[Line] = self.loop.create_future()
        line = self.loop.line(factory())
        self.redis.connect(line)
        future.set_result(line)
        return future

    def forget(self) -> None:
        """Count from here: what was admitted, settled and forwarded before does not matter."""
        self.redis.admitted.clear()
        self.redis.settled.clear()
        self.redis.costs.clear()
        self.redis.events.clear()
        self.upstream.forget()
        self.turn(3)
        self.redis.commands.clear()

    def use_routes(self, *routes: Route) -> None:
        """Serve by another route table. Raises TlsFilesError."""

        async def use() -> None:
            self.proxy.use_routes(RouteTable(routes))

        self.loop.run_until_complete(use())

    def client(self) -> Line:
        return self.loop.line(ClientConnection(self.proxy))

    def turn(self, count: int = 1) -> None:
        """Let everything run that needs no time; the far ends answer if they are prompt."""
        for _ in range(count):
            self.loop.turn(2)
            if self.is_prompt:
                self.redis.answer()
                self.upstream.open_waiting()
                self.upstream.answer()

    def advance(self, seconds: float, step_s: float = 0.1) -> None:
        """Let time pass, a tenth of a second at a time."""
        passed = 0.0
        while passed < seconds:
            self.loop.now += step_s
            passed += step_s
            self.turn()

    def settle_down(self) -> None:
        """Until nothing is left to do at this moment, but for what waits for time to pass."""
        self.turn(10)
        self.loop.now += 0.002  # a settlement may wait a millisecond for company
        self.turn(10)

    def plain(self, data: bytes | bytearray) -> bytes:
        """What was sent, with the worker's random part of request ids replaced."""
        return bytes(data).replace(self.proxy.next_request_id()[:14], b"worker")

    def check_books(self, *, may_be_sent_twice: bool = False) -> None:
        """Every hold that was placed is settled once, nothing is left under way, and no callback failed.

        `may_be_sent_twice`: a settlement's answer may have been lost, and then sending it again finds that it was done.
        """
        assert self.loop.failures == []
        assert self.redis.holds == set()
        assert self.redis.settled == dict.fromkeys(self.redis.admitted, 1)
        assert self.proxy.in_flight == 0
        assert self.proxy.ledger.unsettled == 0
        assert self.proxy.ledger.settled_elsewhere == 0 or may_be_sent_twice
        assert {pool.waiting for lane in self.proxy.lanes.values() for pool in lane.targets.pools} <= {0}
