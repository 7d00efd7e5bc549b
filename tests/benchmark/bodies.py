"""Large bodies through HAProxy, which passes bytes, and through the gateway, which does its whole job: megabytes a CPU second.

Answers are files that nginx sends with sendfile; uploads are read to their end by nginx before it answers. wrk makes the load
but for the largest bodies: of those a turn sees so few that the ones it breaks off at its end would count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmark import duel, nginx, rig, whole_requests
from tests.benchmark.contender import Contender
from tests.benchmark.duel import Duel
from tests.benchmark.load import Load, Offer, Wrk
from tests.benchmark.peers import HAProxy
from tests.benchmark.rig import Rig
from tests.benchmark.whole_job import WholeJob
from tests.benchmark.whole_requests import Statuses

_KIB, _MIB = 2**10, 2**20


@dataclass(frozen=True, slots=True)
class Kind:
    """One load: bodies of one size in one direction, on few connections."""

    shown: str
    body_bytes: int
    connections: int
    is_upload: bool

    @property
    def name(self) -> str:
        return f"{self.shown} {'uploads' if self.is_upload else 'answers'}"

    def offer(self, seconds: int) -> Offer:
        path = nginx.UPLOADS if self.is_upload else f"{nginx.FILES}{self.body_bytes}"
        sent, got = (self.body_bytes, 0) if self.is_upload else (0, self.body_bytes)
        if self.body_bytes > _MIB:
            return WholeBodies(seconds, self.connections, path, upload_bytes=sent, answer_bytes=got)
        return Wrk(seconds, self.connections, path, upload_bytes=sent, answer_bytes_min=got)


_SIZES = (("64 KiB", 64 * _KIB, 64), ("1 MiB", _MIB, 8), ("100 MiB", 100 * _MIB, 2))
KINDS = tuple(Kind(*size, is_upload) for is_upload in (False, True) for size in _SIZES)


def measure(on: Rig, *, seconds: int, turns: int, progress: Callable[[str], None]) -> Duel:
    """Raises BenchmarkFailed when a contender does not start or a load gives no figures."""
    served = on.folder / rig.FILES
    if not served.is_dir():
        return Duel(absent={"bodies": "the upstream is to be nginx, which is not installed"})
    for kind in KINDS:
        if not kind.is_upload:
            with (served / str(kind.body_bytes)).open("wb") as file:
                for _ in range(kind.body_bytes // (64 * _KIB)):
                    file.write(b"a" * 64 * _KIB)
    offers = {kind.name: kind.offer(seconds) for kind in KINDS}
    return duel.fight(
        on, [HAProxy(), WholeJob()], offers, warm_up=KINDS[0].offer(1), turns=turns, progress=progress
    )


@dataclass(frozen=True, slots=True)
class WholeBodies:
    """A thread a connection that sends a request, reads all of its answer, and sends the next if there is time."""

    seconds: int
    connections: int
    path: str
    upload_bytes: int = 0
    answer_bytes: int = 0

    unfinished_max = 0

    def drive(self, contender: Contender, rig: Rig) -> Load:
        upload = bytes(self.upload_bytes)
        return whole_requests.drive(
            lambda: self._requests(contender.port, contender.charged(rig).token, upload),
            seconds=self.seconds,
            connections=self.connections,
            core=rig.load_core,
        )

    def _requests(self, port: int, token: str, upload: bytes) -> Statuses:
        line = f"POST {self.path}" if upload else f"GET {self.path}"
        length = f"Content-Length: {len(upload)}\r\n" if upload else ""
        head = f"{line} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n{length}\r\n"
        buffer = bytearray(whole_requests.BUFFER_BYTES)
        with whole_requests.connect(port) as connection:
            while True:
                connection.sendall(head.encode())
                connection.sendall(upload)
                status, length_got = whole_requests.read_answer(connection, buffer)
                if length_got < self.answer_bytes:
                    raise ConnectionError(f"{length_got} bytes answered")
                yield status
