"""Alerts: what the drain found is told to the destinations of its organization, once each, until each has taken it.

New alerts become deliveries, one a destination; what is due is claimed, sent at once, and written down answer by answer. Killed
before a receiver answered, or between its answer and the row, a delivery is claimed again when its lease ends, and sent under
the same id. When it is tried again, and when that ends, is `control.domain.deliveries`' to say.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias, TypeVar

import asyncpg
import structlog

from control.delivery.courier import TIMEOUT_S, Courier
from control.delivery.mail import MailServer
from control.delivery.message import of_alert
from control.delivery.outcome import Outcome
from control.delivery.resolver import Resolver
from control.domain import deliveries, destinations
from control.domain.deliveries import CLAIM_MAX, FAN_OUT_MAX, Claimed, Failure
from control.domain.destinations import SEALING_PURPOSE, Destination
from control.jobs.context import Context
from control.sealing import Sealing
from control.settings import ControlSettings

RUN_MAX_S: Final = 30.0
COUNT_INTERVAL_S: Final = 15.0
"""Between two counts of all that waits, which may be much."""
LOCKED_MAX: Final = 3
"""Times in a row that a row is found locked before that is a failure."""
LOOK_INTERVAL_S: Final = 1.0
_JITTER_STEPS: Final = 1_000

_T = TypeVar("_T")
_Sent: TypeAlias = tuple[Claimed, Destination, Outcome]

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Post:
    """What the sending of alerts needs to know of the installation; one a process."""

    sealing: Sealing
    server: MailServer | None
    timeout_s: float = TIMEOUT_S
    resolver: Resolver = field(default_factory=Resolver)
    count_due: float = 0.0
    """When what waits is counted next."""

    @classmethod
    def of(cls, settings: ControlSettings) -> Post:
        return cls(Sealing(settings.read_pepper(), SEALING_PURPOSE), MailServer.of(settings))

    def courier(self) -> Courier:
        return Courier(self.sealing, self.server, self.resolver, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class Told:
    """What a run did: alerts that became deliveries, and attempts by what came of them."""

    fanned_out: int = 0
    delivered: int = 0
    failed: int = 0


async def run_once(context: Context, post: Post) -> Told:
    """Tell what is due, until nothing is, the context is stopping, or RUN_MAX_S are over; what is begun is finished.

    What comes up meanwhile is begun as soon as there is room, so a receiver that hangs holds up no other.
    """
    fanned_out = delivered = failed = 0
    give_over_at = time.monotonic() + RUN_MAX_S
    sending: set[asyncio.Task[_Sent]] = set()
    async with post.courier() as courier:
        try:
            while True:
                new = await _unless_locked(partial(deliveries.fan_out, context.postgres))
                fanned_out += new
                is_over = context.stopping.is_set() or time.monotonic() > give_over_at
                if not is_over:
                    sending |= await _begin(context, courier, CLAIM_MAX - len(sending))
                context.is_well()  # how receivers are is not how the job is
                if not sending and (is_over or new < FAN_OUT_MAX):
                    break
                if not sending:
                    continue
                done, sending = await asyncio.wait(
                    sending, timeout=LOOK_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    is_delivered = await _unless_locked(partial(_write_down, context, task.result()))
                    delivered += is_delivered
                    failed += not is_delivered
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
    if time.monotonic() >= post.count_due:
        post.count_due = time.monotonic() + COUNT_INTERVAL_S
        waiting = await deliveries.waiting(context.postgres)
        context.metrics.alert_deliveries_pending.set(waiting.pending)
        context.metrics.alert_destinations_disabled.set(waiting.disabled)
    return Told(fanned_out, delivered, failed)


async def _unless_locked(write: Callable[[], Awaitable[_T]]) -> _T:
    """Again, where somebody held the rows for too long, or wanted them in another order: what receivers have taken is to be
    written down, and what is on its way to others has nothing to do with it."""
    for _ in range(LOCKED_MAX - 1):
        with suppress(asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError):
            return await write()
    return await write()


async def _begin(context: Context, courier: Courier, room: int) -> set[asyncio.Task[_Sent]]:
    """Claim up to `room` of what is due, and begin to send it."""
    claimed = await deliveries.claim(context.postgres, room) if room else []
    known = await destinations.by_id(context.postgres, list({each.destination for each in claimed}))
    # One that was deleted since the claim took its deliveries with it.
    return {
        asyncio.create_task(_send(courier, each, known[each.destination]))
        for each in claimed
        if each.destination in known
    }


async def _send(courier: Courier, claimed: Claimed, destination: Destination) -> _Sent:
    return claimed, destination, await courier.deliver(destination, of_alert(claimed.alert))


async def _write_down(context: Context, sent: _Sent) -> bool:
    """Whether it was taken."""
    one, destination, outcome = sent
    result = context.metrics.alert_deliveries
    if outcome.error is None:
        await deliveries.succeeded(context.postgres, one, outcome.note)
        result.labels(destination.kind, "delivered").inc()
        return True
    failure = Failure(outcome.error, outcome.is_gone, outcome.retry_after_s)
    verdict = await deliveries.failed(
        context.postgres, one, failure, secrets.randbelow(_JITTER_STEPS) / _JITTER_STEPS
    )
    result.labels(destination.kind, "given_up" if verdict == "give up" else "failed").inc()
    said = {"destination": destination.id, "kind": destination.kind, "error": outcome.error}
    if verdict == "disable":
        _log.warning("alert_destination_disabled", reason="gone" if outcome.is_gone else "failing", **said)
    elif verdict == "give up":
        _log.warning("alert_given_up", alert=one.alert.id, **said)
    else:
        _log.info("alert_not_delivered", alert=one.alert.id, attempts=one.attempts, **said)
    return False
