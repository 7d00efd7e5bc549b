"""Names of receivers: a name server that does not answer holds up nobody but those whom it is asked about."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from control.delivery import mail
from control.delivery import resolver as resolver_module
from control.delivery.mail import MailServer
from control.delivery.message import of_test
from control.delivery.resolver import NotResolvedInTime, Resolver
from control.domain import deliveries
from gateway.contract.ids import OrganizationTag
from tests.integration.jobs.alert_world import alerted_in
from tests.integration.jobs.world import World
from tests.integration.receivers import receiving, until

BOUND_S = 30.0
ORGANIZATION = OrganizationTag("abcdef")
AT = datetime(2031, 1, 31, tzinfo=UTC)


@dataclass(slots=True)
class NameServer:
    """Does not answer for *.silent.example until it is let; every other name is looked up as ever."""

    asked: list[str] = field(default_factory=list)
    answers: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    found, system = NameServer(), socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if not str(host).endswith(".silent.example"):
            return system(host, *arguments, **options)
        found.asked.append(str(host))
        assert found.answers.wait(BOUND_S)
        return system("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield found
    found.answers.set()


async def test_receivers_whose_names_hang_hold_up_no_other_and_no_connection_of_the_process(
    world: World, names: NameServer
) -> None:
    silent, well = await alerted_in(world), await alerted_in(world)
    silent.resolver = Resolver(patience_s=1.0)
    async with receiving() as receiver:
        lost = [await silent.add(url=f"http://n{number}.silent.example/") for number in range(20)]
        await well.add(url=receiver.url.replace("127.0.0.1", "localhost"))
        await silent.cross(silent.crossing(), well.crossing())
        telling = asyncio.create_task(silent.tell())
        await until(lambda: len(receiver.taken) == 1)
        assert not telling.done(), "the others are still waited for"
        async with asyncio.timeout(BOUND_S):  # by name, with the threads that reconnections have
            await asyncio.get_running_loop().getaddrinfo("localhost", None)
        told = await telling

    assert (told.delivered, told.failed) == (1, 20)
    errors = {(await silent.destination(each)).last_error for each in lost}
    assert errors == {"its host's name was not resolved in time"}


async def test_a_name_is_looked_up_once_at_a_time_and_who_comes_late_does_not_wait(names: NameServer) -> None:
    resolver = Resolver(patience_s=0.2)
    first = await asyncio.gather(
        *(resolver.resolve("one.silent.example", 80) for _ in range(50)), return_exceptions=True
    )
    assert {type(each) for each in first} == {NotResolvedInTime}
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(NotResolvedInTime):
            await resolver.resolve("one.silent.example", 80)
    assert time.monotonic() - began < 5, "not a patience each"
    assert names.asked == ["one.silent.example"]

    names.answers.set()
    assert await _resolved(resolver, "one.silent.example") == [("127.0.0.1", 80)]


async def _resolved(resolver: Resolver, host: str) -> list[tuple[str, int]]:
    """Once its name server answers."""
    async with asyncio.timeout(BOUND_S):
        while True:
            with suppress(NotResolvedInTime):
                return [(found["host"], found["port"]) for found in await resolver.resolve(host, 80)]
            await asyncio.sleep(0.01)


async def test_no_more_threads_look_names_up_than_may(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_module, "THREADS_MAX", 16)
    resolver = Resolver(patience_s=0.5)
    hosts = [f"n{number}.silent.example" for number in range(40)]
    before = threading.active_count()
    found = await asyncio.gather(*(resolver.resolve(host, 80) for host in hosts), return_exceptions=True)
    assert {type(each) for each in found} == {NotResolvedInTime}
    assert threading.active_count() - before <= 16 == len(names.asked)
    names.answers.set()
    await until(lambda: threading.active_count() <= before)


async def test_a_mail_server_whose_name_hangs_is_given_up_on(names: NameServer) -> None:
    server = MailServer("mail.silent.example", 25, "alerts@example.com", uses_tls=False, starttls="auto")
    resolver, started = Resolver(patience_s=0.2), time.monotonic()
    message = of_test("test_1", ORGANIZATION, "acme", AT)
    outcomes = await asyncio.gather(
        *(
            mail.send(server, resolver, ["a@example.com"], message, f"ad_{number}", BOUND_S)
            for number in range(deliveries.CLAIM_MAX)
        )
    )
    assert {outcome.error for outcome in outcomes} == {"the mail server's name was not resolved in time"}
    assert time.monotonic() - started < BOUND_S
    assert names.asked == ["mail.silent.example"]
