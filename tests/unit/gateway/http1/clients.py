"""Clients over TLS and from chosen addresses, for tests of a workload's connection."""

from __future__ import annotations

from typing import Any

from gateway.http1.client import ClientConnection
from tests.unit.gateway.http1.referee import read_answers
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import HOST, World, get

MALFORMED = b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
NO_TOKEN = b"GET /x HTTP/1.1\r\n" + HOST + b"\r\n"


class TlsLine(Line):
    """A line as TLS has it: nobody can say that nothing more comes but by closing."""

    def __init__(
        self, world: World, protocol: ClientConnection, certificate: dict[str, object] | None
    ) -> None:
        super().__init__(world.loop, protocol)
        self._extra = {"sslcontext": object(), "peercert": certificate or {}}

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._extra.get(name, super().get_extra_info(name, default))

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError


def tls_client(world: World, certificate: dict[str, object] | None = None) -> TlsLine:
    protocol = ClientConnection(world.proxy)
    line = TlsLine(world, protocol, certificate)
    protocol.connection_made(line)
    return line


def client_from(world: World, address: str) -> Line:
    return world.loop.line(ClientConnection(world.proxy, address))


def statuses(client: Line) -> list[int]:
    return [answer.status for answer in read_answers(bytes(client.sent)) or []]


def asks(world: World, client: Line, request: bytes = get()) -> None:
    client.say(request)
    world.settle_down()
