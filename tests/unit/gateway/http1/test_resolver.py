"""Names of upstreams: looked up when they are needed and once at a time, again when they are old, and never forgotten because
the name server is away."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.http1 import resolver as resolver_module
from gateway.http1.resolver import Resolver
from tests.unit.gateway.wires import StoppedClock

TTL_S = 10.0
NO_SUCH_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

Found = tuple[str, ...] | Exception


class NameServer(StoppedClock):
    """A loop whose names are the test's. `is_prompt`: it answers at once; else when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, Found] = {"up.example": ("10.0.0.1", "10.0.0.2")}
        self.asked: list[str] = []
        self.is_prompt = True
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        self.asked.append(host)
        if not self.is_prompt:
            answered = self.create_future()
            self._waiting.append((host, answered))
            await answered
        found = self.names.get(host, NO_SUCH_NAME)
        if isinstance(found, Exception):
            raise found
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, kind, 6, "", (address, port))
            for address in found
            for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM)
        ]

    def answer(self) -> None:
        for _, answered in self._waiting:
            answered.set_result(None)
        self._waiting.clear()
        self.turn(3)

    def resolver(self) -> Resolver:
        async def make() -> Resolver:
            return Resolver(TTL_S)

        return self.run_until_complete(make())

    def asks(self, resolver: Resolver, host: str = "up.example") -> asyncio.Task[tuple[str, ...]]:
        """Somebody who needs the addresses of a host."""
        task = self.create_task(resolver.addresses(host))
        self.turn(3)
        return task


@pytest.fixture
def loop() -> Iterator[NameServer]:
    loop = NameServer()
    yield loop
    gc.collect()
    loop.turn()
    loop.end()
    assert loop.failures == []


@pytest.mark.parametrize("address", ["10.0.0.1", "::1", "2001:db8::1"])
def test_an_address_is_its_own_and_nobody_is_asked(loop: NameServer, address: str) -> None:
    resolver = loop.resolver()
    assert loop.asks(resolver, address).result() == (address,)
    assert resolver.is_current(address, address)
    resolver.refresh(address)
    loop.turn(3)
    assert loop.asked == []


def test_a_name_has_each_of_its_addresses_once_in_the_order_given(loop: NameServer) -> None:
    loop.names["up.example"] = ("10.0.0.2", "10.0.0.1", "2001:db8::1", "10.0.0.2")
    assert loop.asks(loop.resolver()).result() == ("10.0.0.2", "10.0.0.1", "2001:db8::1")


def test_a_name_is_looked_up_again_only_when_it_is_old(loop: NameServer) -> None:
    resolver = loop.resolver()
    for seconds in (0, 5, 9.9):
        loop.now = 1000 + seconds
        assert loop.asks(resolver).result() == ("10.0.0.1", "10.0.0.2")
    assert loop.asked == ["up.example"]
    loop.names["up.example"] = ("10.0.0.3",)
    loop.now = 1000 + TTL_S
    assert loop.asks(resolver).result() == ("10.0.0.1", "10.0.0.2"), "what is known is given at once"
    loop.turn(3)
    assert loop.asked == ["up.example"] * 2
    assert loop.asks(resolver).result() == ("10.0.0.3",)
    assert loop.asked == ["up.example"] * 2


def test_all_who_need_a_name_at_once_wait_for_one_look_up(loop: NameServer) -> None:
    resolver = loop.resolver()
    loop.is_prompt = False
    waiting = [loop.asks(resolver) for _ in range(5)]
    other = loop.asks(resolver, "10.0.0.9")
    assert other.done()
    assert not any(task.done() for task in waiting)
    loop.answer()
    assert {task.result() for task in waiting} == {("10.0.0.1", "10.0.0.2")}
    assert loop.asked == ["up.example"]


def test_one_who_gives_up_waiting_takes_nothing_from_the_others(loop: NameServer) -> None:
    resolver = loop.resolver()
    loop.is_prompt = False
    impatient, patient = loop.asks(resolver), loop.asks(resolver)
    impatient.cancel()
    loop.turn(2)
    loop.answer()
    assert impatient.cancelled()
    assert patient.result() == ("10.0.0.1", "10.0.0.2")


@pytest.mark.parametrize("error", [NO_SUCH_NAME, UnicodeError("label too long"), OSError("no name server")])
def test_a_name_that_nobody_knows_is_an_error_each_time(loop: NameServer, error: Exception) -> None:
    resolver = loop.resolver()
    loop.names["up.example"] = error
    for count in (1, 2):
        with pytest.raises(OSError):
            loop.asks(resolver).result()
        assert loop.asked == ["up.example"] * count
    loop.names["up.example"] = ("10.0.0.1",)
    assert loop.asks(resolver).result() == ("10.0.0.1",)


def test_a_look_up_that_fails_when_nobody_waits_for_it_any_more_is_no_defect(loop: NameServer) -> None:
    """The name server is slower than whoever connects is patient, and then says that there is no such name."""
    resolver = loop.resolver()
    loop.is_prompt = False
    loop.names["up.example"] = NO_SUCH_NAME
    loop.asks(resolver).cancel()
    loop.turn(2)
    loop.answer()
    gc.collect()
    loop.turn(2)
    assert loop.failures == []


def test_a_name_without_an_address_is_one_that_nobody_knows(loop: NameServer) -> None:
    resolver = loop.resolver()
    loop.names["up.example"] = ()
    with pytest.raises(OSError):
        loop.asks(resolver).result()
    loop.names["up.example"] = ("10.0.0.1",)
    loop.asks(resolver)
    loop.names["up.example"] = ()
    loop.now += TTL_S
    for _ in range(2):
        assert loop.asks(resolver).result() == ("10.0.0.1",)


def test_a_name_server_that_is_away_takes_no_upstream_with_it(loop: NameServer) -> None:
    resolver = loop.resolver()
    loop.asks(resolver)
    known = loop.names["up.example"]
    loop.names["up.example"] = NO_SUCH_NAME
    for count in range(2, 6):
        loop.now += TTL_S
        for _ in range(3):
            assert loop.asks(resolver).result() == known
        assert len(loop.asked) == count, "it is asked again as often as before"
    assert resolver.is_current("up.example", "10.0.0.1")
    loop.now += TTL_S
    loop.names["up.example"] = ("10.0.0.3",)
    loop.asks(resolver)
    assert loop.asks(resolver).result() == ("10.0.0.3",)


def test_a_name_server_that_hangs_makes_nobody_wait_for_a_name_that_is_known(loop: NameServer) -> None:
    resolver = loop.resolver()
    known = loop.asks(resolver).result()
    loop.is_prompt = False
    for _ in range(5):
        loop.now += TTL_S
        assert loop.asks(resolver).result() == known
    assert len(loop.asked) == 2, "it is asked once, and not again before it has answered"
    loop.names["up.example"] = ("10.0.0.3",)
    loop.answer()
    assert loop.asks(resolver).result() == ("10.0.0.3",)


def test_it_is_complained_of_once_and_not_at_each_look_up(
    loop: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[str, dict[str, object]]] = []

    class Log:
        def warning(self, event: str, **said: object) -> None:
            lines.append((event, said))

    monkeypatch.setattr(resolver_module, "log", Log())
    resolver = loop.resolver()
    for error in (None, NO_SUCH_NAME, NO_SUCH_NAME, None, NO_SUCH_NAME):
        loop.names["up.example"] = error or ("10.0.0.1",)
        loop.asks(resolver)
        loop.now += TTL_S
    line = ("name_not_resolved", {"host": "up.example", "error": "Name or service not known"})
    assert lines == [line, line]


def test_an_address_is_current_until_it_is_known_to_be_another_ones(loop: NameServer) -> None:
    resolver = loop.resolver()
    assert resolver.is_current("up.example", "10.0.0.9"), "nothing is known of the name yet"
    loop.asks(resolver)
    assert resolver.is_current("up.example", "10.0.0.2")
    assert not resolver.is_current("up.example", "10.0.0.9")
    loop.names["up.example"] = ("10.0.0.2", "10.0.0.9")
    loop.now += TTL_S
    loop.asks(resolver)
    assert [resolver.is_current("up.example", f"10.0.0.{last}") for last in (1, 2, 9)] == [False, True, True]


def test_a_name_that_connections_lead_to_is_refreshed_when_it_is_old_and_not_before(loop: NameServer) -> None:
    resolver = loop.resolver()
    resolver.refresh("up.example")
    loop.turn(3)
    assert loop.asked == [], "no connection can lead to a name that was never looked up"
    loop.asks(resolver)
    loop.now += TTL_S - 0.1
    resolver.refresh("up.example")
    loop.turn(3)
    assert len(loop.asked) == 1
    loop.now += 0.1
    loop.is_prompt = False
    loop.names["up.example"] = ("10.0.0.3",)
    for _ in range(3):
        resolver.refresh("up.example")
        loop.turn(3)
    assert len(loop.asked) == 2, "once at a time"
    assert resolver.is_current("up.example", "10.0.0.1")
    loop.answer()
    assert not resolver.is_current("up.example", "10.0.0.1")
    waiting = loop.asks(resolver)
    assert waiting.result() == ("10.0.0.3",)


def test_what_is_known_is_bounded(loop: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver_module, "_NAMES_MAX", 3)
    resolver = loop.resolver()
    for number in range(10):
        loop.names[f"{number}.example"] = (f"10.0.0.{number}",)
        assert loop.asks(resolver, f"{number}.example").result() == (f"10.0.0.{number}",)
        assert len(resolver._known) <= 3


def test_the_end_leaves_no_look_up_behind(loop: NameServer) -> None:
    resolver = loop.resolver()
    loop.is_prompt = False
    waiting = loop.asks(resolver)
    resolver.close()
    loop.turn(3)
    assert waiting.cancelled()
    assert asyncio.all_tasks(loop) == set()
