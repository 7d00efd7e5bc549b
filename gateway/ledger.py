"""Admit, settle, extend: the gateway's side of the scripts, over the pipe. Acts.

`Caller` carries the commands of one key, prepared up to the parts that change: formatting a script call then costs a
tuple. A settlement is kept until Redis has confirmed it and is sent again after a lost connection: the script settles a hold
once however often it is asked. What could not be kept (a bound is reached, the process dies) the expire job settles later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import hiredis
import structlog

from gateway.contract import layout, scripts
from gateway.contract.layout import Layout
from gateway.contract.records import Identity
from gateway.contract.token import Digest
from gateway.recording import caller_fields
from gateway.redis_pipe import OnReply, PipeLost, RedisAddress, RedisPipe, Reply, bulk, encode_command

SETTLEMENTS_KEPT_MAX: Final = 100_000
SETTLEMENT_ATTEMPTS_MAX: Final = 20
"""How often a settlement is sent that Redis answers with an error of the command's own, one attempt a tick. After that the
expire job settles the hold, at its whole amount."""

_ERROR_LOGGED_EVERY_S: Final = 1.0
_META_POLL_S: Final = 0.25
_CLOCK_ASKED_EVERY_S: Final = 5.0
_CLOCK_MARGIN_S: Final = 0.3
_PASSING_ERRORS: Final = frozenset(
    (
        "LOADING",
        "BUSY",
        "OOM",
        "MISCONF",
        "READONLY",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "NOREPLICAS",
        "NOAUTH",
    )
)
"""First words of errors that are about the node, not about the command: they pass, and until then nothing is admitted."""

log = structlog.get_logger("gateway.ledger")


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """A recognised key: who it is, and its commands in RESP up to the first argument that changes."""

    identity: Identity
    shard: int
    principal_fields: bytes
    """The X-Principal… lines for the upstream, each with its CRLF."""
    admit_prefix: bytes
    settle_prefix: bytes
    extend_prefix: bytes
    hold_middle: bytes
    """`|key|account|organization|`, between request id and route in a hold."""
    event_fields: bytes
    """Who, in a usage event."""

    @classmethod
    def prepare(cls, identity: Identity, digest: Digest, names: Layout) -> Caller:
        shard = names.shard_of(identity.organization_tag)
        levels = (
            names.key(identity.key_id),
            names.account(identity.account_id),
            names.organization(identity.organization_tag),
        )
        keys = b"".join(bulk(name) for name in (*levels, names.holds(shard)))
        middle = f"|{identity.key_id}|{identity.account_id}|{identity.organization_tag}|".encode()
        principal = (
            f"X-Principal: {identity.principal}\r\nX-Principal-Id: {identity.account_id}\r\n"
            f"X-Principal-Organization: {identity.organization_name}\r\nX-Principal-Key-Id: {identity.key_id}\r\n"
        )
        return cls(
            identity=identity,
            shard=shard,
            principal_fields=principal.encode(),
            admit_prefix=_evalsha(scripts.ADMIT, 4, arguments=5) + keys + bulk(digest),
            settle_prefix=_evalsha(scripts.SETTLE, 5, arguments=4) + keys + bulk(names.events(shard)),
            extend_prefix=_evalsha(scripts.EXTEND, 4, arguments=3) + keys,
            hold_middle=middle,
            event_fields=caller_fields(identity),
        )


def _evalsha(script: scripts.Script, keys: int, *, arguments: int) -> bytes:
    return b"*%d\r\n" % (3 + keys + arguments) + bulk("EVALSHA") + bulk(script.sha) + bulk(keys)


def admit_arguments(amount: int, hold_ttl_ms: int) -> bytes:
    """The arguments of admit that a route fixes: amount and time to the deadline."""
    return bulk(amount) + bulk(hold_ttl_ms)


class _Settlement:
    """One settle command, until it is confirmed."""

    __slots__ = ("_ledger", "attempts", "command")

    def __init__(self, ledger: Ledger, command: tuple[bytes, ...]) -> None:
        self._ledger = ledger
        self.command = command
        self.attempts = 0

    def __call__(self, reply: Reply) -> None:
        if reply == 1 or reply == 0:
            if reply == 0:
                self._ledger.settled_elsewhere += 1
            return
        self._ledger.keep(self, reply)


class Ledger:
    """Sends the scripts to the node of each shard (today one node serves all shards: `_pipe` is where that would branch).

    `is_ready` is False, and nothing is to be admitted, until Redis is connected and says that it is loaded.
    """

    def __init__(
        self, address: RedisAddress, names: Layout, *, timeout_s: float, depth_max: int, client_name: str
    ) -> None:
        self.names = names
        self.is_ready = False
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._clock_ahead_s: float | None = None
        self._wanted_until = bulk("")
        self._clock_due = 0.0
        self._error_log_due = 0.0
        self.settled_elsewhere = 0
        self.settlements_dropped = 0
        self.script_errors = 0
        self._why_not_ready = "Redis is not connected"
        self._kept: deque[_Settlement] = deque()
        self._meta_asked = False
        self._next_poll = 0.0
        self._reloading = False
        self._pipe = RedisPipe(
            address, timeout_s=timeout_s, depth_max=depth_max, client_name=client_name,
            on_connected=self._on_connected, on_lost=self._on_lost,
        )  # fmt: skip

    @property
    def pipe(self) -> RedisPipe:
        return self._pipe

    @property
    def unsettled(self) -> int:
        """Settlements waiting for Redis to come back."""
        return len(self._kept)

    def start(self) -> None:
        self._pipe.start()

    async def close(self) -> None:
        await self._pipe.close()

    def admit(
        self, caller: Caller, arguments: bytes, request_id: bytes, route: bytes, on_reply: OnReply
    ) -> bool:
        """Ask for a hold. `arguments` are from `admit_arguments`. False if there is no connection to ask on."""
        middle = caller.hold_middle
        length = len(request_id) + len(middle) + len(route)
        return self._pipe.send(
            (
                caller.admit_prefix, arguments, b"$%d\r\n" % length, request_id, middle, route, b"\r\n",
                self._wanted_until,
            ),
            on_reply,
        )  # fmt: skip

    def refresh_wanted_until(self) -> None:
        """Say anew, in Redis's time, how long answers to admit are waited for (from now on: the pipe's bound)."""
        if self._clock_ahead_s is not None:
            until_s = self._loop.time() + self._clock_ahead_s + self._timeout_s + _CLOCK_MARGIN_S
            self._wanted_until = bulk(int(until_s * 1000))

    def settle(self, caller: Caller, hold: bytes, cost: int, event: bytes, *, frees: bool) -> None:
        """Settle a hold, whatever it takes: at once, or as soon as Redis is back.

        `frees` says that credits return to the limits, which somebody may be waiting for. A settlement that frees none (its
        cost is what was held) waits up to a millisecond for company, or for the next admit, which it precedes.
        """
        command = (
            caller.settle_prefix,
            b"$%d\r\n%b\r\n$%d\r\n%d\r\n$%d\r\n" % (len(hold), hold, len(b"%d" % cost), cost, len(event)),
            event,
            b"\r\n$0\r\n\r\n",
        )
        settlement = _Settlement(self, command)
        if not self._pipe.send(command, settlement, may_wait=not frees):
            self.keep(settlement, None)

    def extend(self, caller: Caller, hold: bytes, added: int, hold_ttl_ms: int, on_reply: OnReply) -> bool:
        """Push a hold's deadline, and top it up by `added` microcredits. False if there is no connection."""
        return self._pipe.send((caller.extend_prefix, bulk(hold), bulk(added), bulk(hold_ttl_ms)), on_reply)

    def append_event(self, shard: int, event: bytes, on_reply: OnReply) -> bool:
        """Append an event that settles nothing (a count of refusals) to a shard's stream."""
        command = encode_command("XADD", self.names.events(shard), "*", layout.EVENT_FIELD, event)
        return self._pipe.send((command,), on_reply)

    def keep(self, settlement: _Settlement, reply: Reply) -> None:
        """Remember a settlement that was not confirmed, and see to what stood in its way."""
        if isinstance(reply, hiredis.ReplyError) and not self.note_error(reply):
            settlement.attempts += 1
            if settlement.attempts >= SETTLEMENT_ATTEMPTS_MAX:
                self.settlements_dropped += 1
                return
        if len(self._kept) >= SETTLEMENTS_KEPT_MAX:
            self.settlements_dropped += 1
            return
        self._kept.append(settlement)

    def note_error(self, error: hiredis.ReplyError) -> bool:
        """A script call was answered with an error. True if it may go well later: scripts are being loaded again, or
        nothing is admitted until Redis says that it is well."""
        word = str(error).split(" ", 1)[0]
        if word == "NOSCRIPT":
            self._load_scripts()
            return True
        if word in _PASSING_ERRORS:
            self.suspect(word)
            if word == "READONLY":  # a primary no more: connect again, to whoever is it now
                self._pipe.reconnect()
            return True
        self.script_errors += 1
        if self._loop.time() >= self._error_log_due:
            self._error_log_due = self._loop.time() + _ERROR_LOGGED_EVERY_S
            log.error("script_failed", error=str(error)[:300])
        return False

    def suspect(self, why: str) -> None:
        """Admit nothing until Redis has said again that it is loaded."""
        if self.is_ready:
            log.error("ledger_not_ready", why=why)
        self.is_ready, self._why_not_ready = False, why
        self._next_poll = 0.0

    def on_tick(self, now: float) -> None:
        """A few times a second: bound the waits, look whether Redis is loaded, resend what is unsettled."""
        self._pipe.check_waits(now)
        self.refresh_wanted_until()
        if now >= self._clock_due:
            self._clock_due = now + _CLOCK_ASKED_EVERY_S
            self._ask_clock()
        if not self.is_ready and self._pipe.is_connected and not self._meta_asked and now >= self._next_poll:
            self._next_poll = now + _META_POLL_S
            self._ask_meta()
        if self._kept and self._pipe.is_connected and not self._pipe.is_full:
            self._resend()

    def confirm_loaded(self, on_answer: Callable[[bool], None]) -> None:
        """A record was missing: is it unknown (True: Redis is loaded), or is Redis not loaded (False)?"""

        def on_reply(reply: Reply) -> None:
            loaded = isinstance(reply, bytes)
            if not loaded:
                self.suspect("Redis is not loaded")
            on_answer(loaded)

        if not self._pipe.send((encode_command("HGET", layout.META, "epoch"),), on_reply):
            on_answer(False)

    def _on_connected(self) -> None:
        self._load_scripts()
        self._ask_clock()
        self._next_poll = 0.0
        self._ask_meta()

    def _on_lost(self) -> None:
        self._meta_asked = False
        self._reloading = False
        self.suspect("Redis is not connected")

    def _load_scripts(self) -> None:
        if self._reloading:
            return
        self._reloading = True

        def on_reply(reply: Reply) -> None:
            self._reloading = False
            if isinstance(reply, hiredis.ReplyError):
                self.suspect(str(reply).split(" ", 1)[0])

        for script in scripts.ALL:
            self._pipe.send((encode_command("SCRIPT", "LOAD", script.text),), on_reply)

    def _ask_clock(self) -> None:
        """How far Redis's clock is ahead of ours. Ours is monotonic, so the answer drifts only as Redis's is set."""

        def on_reply(reply: Reply) -> None:
            if isinstance(reply, list):
                self._clock_ahead_s = int(reply[0]) + int(reply[1]) / 1_000_000 - self._loop.time()
                self.refresh_wanted_until()

        self._pipe.send((encode_command("TIME"),), on_reply)

    def _ask_meta(self) -> None:
        self._meta_asked = True
        command = encode_command("HMGET", layout.META, "schema", "shards", "epoch")
        if not self._pipe.send((command,), self._on_meta):
            self._meta_asked = False

    def _on_meta(self, reply: Reply) -> None:
        self._meta_asked = False
        why = self._judge_meta(reply)
        if why is None:
            if not self.is_ready:
                log.info("ledger_ready")
            self.is_ready = True
        else:
            if why != self._why_not_ready:
                log.warning("ledger_not_ready", why=why)
            self.is_ready, self._why_not_ready = False, why

    def _judge_meta(self, reply: Reply) -> str | None:
        if isinstance(reply, PipeLost):
            return "Redis is not connected"
        if not isinstance(reply, list):
            return str(reply).split(" ", 1)[0]
        schema, shards, epoch = reply
        if epoch is None:
            return "Redis is not loaded: the control plane has not published yet"
        if schema != b"%d" % layout.SCHEMA_VERSION:
            return f"Redis has schema {schema!r}, this gateway speaks {layout.SCHEMA_VERSION}"
        if shards != b"%d" % self.names.shards:
            return f"Redis has {shards!r} shards, this gateway is set to {self.names.shards}"
        return None

    def _resend(self) -> None:
        for _ in range(min(len(self._kept), 1000)):
            settlement = self._kept.popleft()
            if not self._pipe.send(settlement.command, settlement):
                self._kept.appendleft(settlement)
                return
