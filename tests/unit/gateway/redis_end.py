"""The far end of the gateway's connection to Redis: reads commands, keeps what the scripts would keep, answers when told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis

from gateway.contract import scripts
from gateway.contract.layout import META, SCHEMA_VERSION
from gateway.contract.records import IDENTITY_FIELDS
from gateway.redis_pipe import bulk
from tests.unit.gateway.wires import Line

_NAMES: Final = {script.sha.encode(): script.name for script in scripts.ALL}
WINDOWS: Final = b"0|0|0"
STARTED_AT_MS: Final = 1_700_000_000_000


def encode(reply: Any) -> bytes:
    """A reply in RESP: bytes, None, an int, a list of these, or an error as an exception."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, Exception):
        return b"-%b\r\n" % str(reply).encode()
    return bulk(reply)


@dataclass(slots=True)
class RedisEnd:
    """One server over all its connections. `refusal` is what admit answers instead of a hold, if anything."""

    now_ms: Callable[[], int] = lambda: STARTED_AT_MS
    is_loaded: bool = True
    refusal: list[Any] | None = None
    has_places: bool = False
    """Whether the key may have only so many requests in flight: admit says so with the hold."""
    room: int | None = None
    """Microcredits that are left for holds to grow into; None: endless."""
    records: dict[bytes, list[bytes | None]] = field(default_factory=dict)
    holds: set[bytes] = field(default_factory=set)
    admitted: list[bytes] = field(default_factory=list)
    settled: Counter[bytes] = field(default_factory=Counter)
    costs: dict[bytes, int] = field(default_factory=dict)
    events: list[bytes] = field(default_factory=list)
    commands: Counter[str] = field(default_factory=Counter)
    replies: Callable[[list[bytes]], Any] | None = None
    """What to answer to each command instead of `run`."""
    line: Line | None = None
    _reader: hiredis.Reader = field(default_factory=hiredis.Reader)
    _seen: int = 0
    _waiting: list[list[bytes]] = field(default_factory=list)

    def connect(self, line: Line) -> None:
        """A new connection: what was not answered on the one before never will be."""
        self.line, self._reader, self._seen = line, hiredis.Reader(), 0
        self._waiting.clear()

    @property
    def waiting(self) -> list[str]:
        """Names of the commands that have arrived and are not answered."""
        self._read()
        return [self.name_of(command) for command in self._waiting]

    def answer(self, count: int | None = None) -> int:
        """Run and answer the next `count` commands (all, if None); how many there were."""
        self._read()
        batch = self._waiting[:count]
        del self._waiting[:count]
        replies = b"".join(encode((self.replies or self.run)(command)) for command in batch)
        if replies and self.line is not None:
            self.line.say(replies)
        return len(batch)

    def run_unanswered(self) -> None:
        """Run what has arrived, and let the answers be lost."""
        self._read()
        for command in self._waiting:
            self.run(command)
        self._waiting.clear()

    def drop_unanswered(self) -> None:
        """What has arrived is never run: it was lost with its connection."""
        self._read()
        self._waiting.clear()

    def run(self, command: list[bytes]) -> Any:
        name, *arguments = command
        self.commands[self.name_of(command)] += 1
        if name == b"EVALSHA":
            sha, count, *rest = arguments
            return self._script(_NAMES[sha], rest[: int(count)], rest[int(count) :])
        if name == b"HMGET" and arguments[0] == META.encode():
            return [b"%d" % SCHEMA_VERSION, b"16", b"epoch" if self.is_loaded else None]
        if name == b"HGET":
            return b"epoch" if self.is_loaded else None
        if name == b"HMGET":
            return self.records.get(arguments[0], [None] * len(IDENTITY_FIELDS))
        if name == b"TIME":
            return [b"%d" % (self.now_ms() // 1000), b"%d" % (self.now_ms() % 1000 * 1000)]
        if name == b"XADD":
            self.events.append(arguments[-1])
            return b"1-1"
        assert name in (b"CLIENT", b"SCRIPT"), name
        return b"OK"

    def _script(self, name: str, keys: list[bytes], arguments: list[bytes]) -> Any:
        if name == "admit":
            wanted_until, _, *each = arguments
            assert len(keys) == 1 + len(each)
            if wanted_until and self.now_ms() > int(wanted_until):
                return [[b"late"] for _ in each[::3]]
            return [self._admit(amount, head) for amount, head in zip(each[1::3], each[2::3], strict=True)]
        if name == "settle":
            _, *each = arguments
            assert len(keys) == 2 + len(each)
            return [self._settle(*each[first : first + 3]) for first in range(0, len(each), 3)]
        assert name == "extend", name
        return self.extend(*arguments)

    def _admit(self, amount: bytes, head: bytes) -> Any:
        if self.refusal is not None:
            return self.refusal
        hold = b"%b|%b|%d|%b" % (head, amount, self.now_ms(), WINDOWS)
        self.holds.add(hold)
        self.admitted.append(hold)
        return [b"placed", hold] if self.has_places else hold

    def _settle(self, hold: bytes, cost: bytes, event: bytes) -> int:
        if hold not in self.holds:
            return 0
        self.holds.remove(hold)
        self.settled[hold] += 1
        self.costs[hold] = int(cost)
        self.events.append(event)
        return 1

    def extend(self, hold: bytes, added: bytes, _: bytes) -> Any:
        """Push the deadline; top up, as long as `room` lasts."""
        if hold not in self.holds:
            return [b"gone"]
        if int(added) == 0:
            return hold
        if self.room is not None and int(added) > self.room:
            return [b"budget", b"account", 5_000, 1_000, 4_000 - self.room, 0]
        if self.room is not None:
            self.room -= int(added)
        head, amount, rest = hold.split(b"|", 6)[:5], hold.split(b"|")[5], hold.split(b"|")[6:]
        grown = b"|".join((*head, b"%d" % (int(amount) + int(added)), *rest))
        self.holds.remove(hold)
        self.holds.add(grown)
        self.admitted[self.admitted.index(hold)] = grown
        return grown

    def _read(self) -> None:
        if self.line is None:
            return
        self._reader.feed(bytes(self.line.sent[self._seen :]))
        self._seen = len(self.line.sent)
        while (command := self._reader.gets()) is not False:
            self._waiting.append(command)

    @staticmethod
    def name_of(command: list[bytes]) -> str:
        if command[0] == b"EVALSHA":
            return _NAMES[command[1]]
        return re.sub(r"\W", "", command[0].decode()).lower()
