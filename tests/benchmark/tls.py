"""TLS in front of nginx, which passes bytes, and of the gateway, which does its whole job.

Two loads: kept connections, where TLS costs its encryption; and a new connection for every request, where it costs a full
handshake, with a signature and a key exchange. wrk resumes sessions when it connects anew, so the second is not wrk's.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.benchmark import certificate, duel, load, whole_requests
from tests.benchmark.contender import Contender
from tests.benchmark.duel import Duel
from tests.benchmark.load import Load, Offer, Wrk
from tests.benchmark.peers import Nginx
from tests.benchmark.processes import BenchmarkFailed
from tests.benchmark.rig import Rig
from tests.benchmark.whole_job import WholeJob
from tests.benchmark.whole_requests import Statuses

KEPT, NEW = "kept connections", "new connections"
_NEW_CONNECTIONS = 8


class NginxTls(Nginx):
    name = "nginx-tls"
    scheme = "https"

    def listens(self, rig: Rig) -> str:
        files = certificate.of(rig.folder)
        return (
            f"listen 127.0.0.1:{self.port} ssl backlog=1024; ssl_protocols TLSv1.2 TLSv1.3; "
            f"ssl_certificate {files.certificate}; ssl_certificate_key {files.key};"
        )


class WholeJobTls(WholeJob):
    name = "whole-job-tls"
    scheme = "https"

    def _environment(self, rig: Rig) -> dict[str, str]:
        files = certificate.of(rig.folder)
        return super()._environment(rig) | {
            "TOLLKEEPER_TLS_CERTIFICATE": str(files.certificate),
            "TOLLKEEPER_TLS_KEY": str(files.key),
        }


def measure(on: Rig, *, seconds: int, turns: int, connections: int, progress: Callable[[str], None]) -> Duel:
    """Raises BenchmarkFailed when a contender does not start, speaks no TLS, or a load gives no figures."""
    context = _context(on)
    offers: Mapping[str, Offer] = {
        KEPT: Wrk(seconds, connections),
        NEW: NewConnections(seconds, min(_NEW_CONNECTIONS, connections), context),
    }
    return duel.fight(
        on, [NginxTls(), WholeJobTls()], offers, warm_up=Wrk(1, connections), turns=turns, progress=progress,
        look_at=lambda contender: _spoken(contender, context),
    )  # fmt: skip


def _context(on: Rig) -> ssl.SSLContext:
    """Of clients that trust the certificate of this run and no other. It keeps no sessions."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificate.of(on.folder).certificate)
    return context


def _connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = whole_requests.connect(port)
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
    except BaseException:
        plain.close()
        raise


def _spoken(contender: Contender, context: ssl.SSLContext) -> str:
    try:
        with _connect(contender.port, context) as connection:
            cipher = connection.cipher()
            return (
                f"{contender.name} speaks {connection.version()} with {cipher[0] if cipher else 'no cipher'}"
            )
    except OSError as error:
        raise BenchmarkFailed(f"{contender.name} does not speak TLS: {error}") from error


@dataclass(frozen=True, slots=True)
class NewConnections:
    """Each request on a connection of its own, with a full handshake, closed by both sides in order."""

    seconds: int
    connections: int
    context: ssl.SSLContext

    unfinished_max = 0

    def drive(self, contender: Contender, rig: Rig) -> Load:
        head = (
            f"GET {load.PATH} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
            f"Authorization: Bearer {contender.charged(rig).token}\r\n\r\n"
        )
        return whole_requests.drive(
            lambda: self._requests(contender.port, head.encode()),
            seconds=self.seconds,
            connections=self.connections,
            core=rig.load_core,
        )

    def _requests(self, port: int, head: bytes) -> Statuses:
        buffer = bytearray(whole_requests.BUFFER_BYTES)
        while True:
            with _connect(port, self.context) as connection:
                if connection.session_reused:
                    raise BenchmarkFailed("a session was resumed: that is no full handshake")
                connection.sendall(head)
                status, _ = whole_requests.read_answer(connection, buffer)
                with contextlib.suppress(OSError):
                    connection.unwrap()
            yield status
