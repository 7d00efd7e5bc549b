"""What is to be started on this machine, and where it answers once it is. Pure, but for asking whether a port is free.

Made by ``starting.py`` from options, carried out by ``stack.py``. Light: the command line imports it at every start.
"""

import socket
from dataclasses import asdict, dataclass
from pathlib import Path

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to start, and where. Port 0 means any free one. Exactly one of ``upstream`` and ``config`` is set."""

    port: int
    control_port: int
    management_port: int
    workers: int | None = None
    upstream: str | None = None
    config: Path | None = None
    redis_url: str | None = None
    postgres_dsn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where everything answers: URLs as clients need them, those of the servers with their passwords."""

    gateway: str
    control: str
    management: str
    operator_token: str | None
    redis: str
    postgres: str

    def as_json(self) -> dict[str, str | None]:
        return asdict(self)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
