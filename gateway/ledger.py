"""Admit, settle, extend: the gateway's side of the scripts, over the pipe. Acts.

What is admitted and settled in one turn of the loop goes out together (batches). A settlement is kept until Redis has
confirmed it and is sent again after a lost connection: the script settles a hold once however often it is asked. What could
not be kept (a bound is reached, the process dies) the expire job settles later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import hiredis
import structlog

from gateway.batches import Batches
from gateway.caller import Caller
from gateway.contract import layout, scripts
from gateway.contract.layout import Layout
from gateway.redis_pipe import OnReply, PipeLost, RedisAddress, RedisPipe, Reply, bulk, encode_command

SETTLEMENTS_KEPT_MAX: Final = 100_000
SETTLEMENT_ATTEMPTS_MAX: Final = 20
"""How often a settlement is sent that Redis answers with an error of the command's own, one attempt a tick. After that the
expire job settles the hold, at its whole amount."""

_ERROR_LOGGED_EVERY_S: Final = 1.0
_META_POLL_S: Final = 0.25
_CLOCK_ASKED_EVERY_S: Final = 5.0
_CLOCK_MARGIN_S: Final = 0.3
_RESENT_AT_ONCE: Final = 1_000
_NOT_DUE: Final = bulk("")
"""Settle whether or not the deadline has passed."""
_NOT_SENT: Final = PipeLost("Redis is not connected")

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


def _settle_arguments(hold: bytes, cost: int, event: bytes) -> tuple[bytes, ...]:
    sizes = (len(hold), hold, len(b"%d" % cost), cost, len(event))
    return (b"$%d\r\n%b\r\n$%d\r\n%d\r\n$%d\r\n" % sizes, event, b"\r\n")


class _Settlement:
    """One settlement, until it is confirmed."""

    __slots__ = ("_ledger", "arguments", "attempts", "caller", "otherwise", "then")

    def __init__(
        self,
        ledger: Ledger,
        caller: Caller,
        arguments: tuple[bytes, ...],
        otherwise: tuple[bytes, ...] | None,
        then: Callable[[], None] | None,
    ) -> None:
        self._ledger = ledger
        self.then = then
        self.caller = caller
        self.arguments = arguments
        self.otherwise = otherwise
        self.attempts = 0

    def __call__(self, reply: Reply) -> None:
        if reply == 0 and self.otherwise is not None:
            self.arguments, self.otherwise = self.otherwise, None
            self._ledger.send(self, may_wait=False)
            return
        if reply == 0:
            self._ledger.settled_elsewhere += 1
        elif reply != 1:
            self._ledger.keep(self, reply)
        self.go_on()

    def go_on(self) -> None:
        """Whoever waited for the settlement waits no longer, whether it went well or is still to be sent again."""
        then, self.then = self.then, None
        if then is not None:
            then()


class Ledger:
    """Sends the scripts to the node of each shard (today one node serves all shards: `_pipe` is where that would branch).

    `is_ready` is False, and nothing is to be admitted, until Redis is connected and says that it is loaded.
    """

    def __init__(
        self,
        address: RedisAddress,
        names: Layout,
        *,
        timeout_s: float,
        depth_max: int,
        hold_ttl_ms: int,
        client_name: str,
    ) -> None:
        self.names = names
        self._depth_max = depth_max
        self._hold_ttl = bulk(hold_ttl_ms)
        holds = [bulk(names.holds(shard)) for shard in range(names.shards)]
        events = [bulk(names.events(shard)) for shard in range(names.shards)]
        self._admissions = Batches(scripts.ADMIT, holds.__getitem__, 1)
        self._settlements = Batches(scripts.SETTLE, lambda shard: holds[shard] + events[shard], 2)
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
            address, timeout_s=timeout_s, client_name=client_name,
            on_connected=self._on_connected, on_lost=self._on_lost, on_flush=self._send_gathered,
        )  # fmt: skip

    @property
    def pipe(self) -> RedisPipe:
        return self._pipe

    @property
    def unsettled(self) -> int:
        """Settlements waiting for Redis to come back."""
        return len(self._kept)

    @property
    def depth(self) -> int:
        """Admissions and settlements that Redis has not answered yet."""
        return self._admissions.unanswered + self._settlements.unanswered

    @property
    def is_full(self) -> bool:
        """Whether so much waits for Redis that no more is to be asked of it."""
        return self.depth >= self._depth_max

    @property
    def now_ms(self) -> int | None:
        """The time by Redis's clock, as far as it is known."""
        ahead_s = self._clock_ahead_s
        return None if ahead_s is None else int((self._loop.time() + ahead_s) * 1000)

    def start(self) -> None:
        self._pipe.start()

    async def close(self) -> None:
        await self._pipe.close()

    def admit(
        self, caller: Caller, amount: bytes, request_id: bytes, route: bytes, on_reply: OnReply
    ) -> bool:
        """Ask for a hold of `amount` (an argument in RESP). False if there is no connection to ask on."""
        if not self._pipe.flush_soon():
            return False
        middle = caller.hold_middle
        head = b"$%d\r\n%b%b%b\r\n" % (
            len(request_id) + len(middle) + len(route), request_id, middle, route,
        )  # fmt: skip
        self._admissions.add(caller.shard, caller.levels, (caller.digest, amount, head), on_reply)
        return True

    def _send_gathered(self) -> None:
        """What was asked for in this turn, settlements first: the credits that they free are there for the admissions."""
        pipe = self._pipe
        self._settlements.send(pipe.send, _NOT_SENT, _NOT_DUE)
        self._admissions.send(pipe.send, _NOT_SENT, self._wanted_until, self._hold_ttl)

    def refresh_wanted_until(self) -> None:
        """Say anew, in Redis's time, how long answers to admit are waited for (from now on: the pipe's bound)."""
        if self._clock_ahead_s is not None:
            until_s = self._loop.time() + self._clock_ahead_s + self._timeout_s + _CLOCK_MARGIN_S
            self._wanted_until = bulk(int(until_s * 1000))

    def settle(
        self,
        caller: Caller,
        hold: bytes,
        cost: int,
        event: bytes,
        *,
        frees: bool,
        otherwise: tuple[bytes, bytes] | None = None,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Settle a hold, whatever it takes: at once, or as soon as Redis is back.

        `frees` says that credits or places return to the limits, which somebody may be waiting for. Else the settlement waits
        up to a millisecond for company, or for the next admit, which it precedes.
        `otherwise` is what the hold, and with it the event, may be instead, if there is no such hold: only one of the two is.
        `then` is called when Redis has answered, or when it is known that the answer will be late.
        """
        other = _settle_arguments(otherwise[0], cost, otherwise[1]) if otherwise is not None else None
        settlement = _Settlement(self, caller, _settle_arguments(hold, cost, event), other, then)
        self.send(settlement, may_wait=not frees)

    def send(self, settlement: _Settlement, *, may_wait: bool) -> None:
        """Send a settlement with those of this turn; or keep it, if there is no connection."""
        caller = settlement.caller
        if self._pipe.flush_soon(may_wait=may_wait):
            self._settlements.add(caller.shard, caller.levels, settlement.arguments, settlement)
        else:
            self.keep(settlement, None)
            settlement.go_on()

    def extend(self, caller: Caller, hold: bytes, added: int, on_reply: OnReply) -> bool:
        """Push a hold's deadline, and top it up by `added` microcredits. False if there is no connection."""
        return self._pipe.send((caller.extend_prefix, bulk(hold), bulk(added), self._hold_ttl), on_reply)

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
            self.ask_clock()
        if not self.is_ready and self._pipe.is_connected and not self._meta_asked and now >= self._next_poll:
            self._next_poll = now + _META_POLL_S
            self._ask_meta()
        if self._kept and self._pipe.is_connected and not self.is_full:
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

    def ask_clock(self, on_answer: Callable[[], None] | None = None) -> None:
        """How far Redis's clock is ahead of ours. Ours is monotonic, so the answer drifts only as Redis's is set. `on_answer`
        is called in any case, also if there is none."""

        def on_reply(reply: Reply) -> None:
            if isinstance(reply, list):
                self._clock_ahead_s = int(reply[0]) + int(reply[1]) / 1_000_000 - self._loop.time()
                self.refresh_wanted_until()
            if on_answer is not None:
                on_answer()

        if not self._pipe.send((encode_command("TIME"),), on_reply) and on_answer is not None:
            on_answer()

    def _on_connected(self) -> None:
        self._load_scripts()
        self.ask_clock()
        self._next_poll = 0.0
        self._ask_meta()

    def _on_lost(self) -> None:
        self._meta_asked = False
        self._reloading = False
        self.suspect("Redis is not connected")
        self._send_gathered()  # nowhere: who asked in this turn is told

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
        """Send again what was kept. What Redis has found fault with goes alone, so that it takes nobody along."""
        for _ in range(min(len(self._kept), _RESENT_AT_ONCE)):
            settlement = self._kept.popleft()
            caller = settlement.caller
            if settlement.attempts:
                self._send_gathered()
            self._settlements.add(caller.shard, caller.levels, settlement.arguments, settlement)
            if settlement.attempts:
                self._send_gathered()
        self._pipe.flush_soon()
