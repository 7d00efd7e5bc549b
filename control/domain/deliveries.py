"""Deliveries: which alert is to be told to which destination, when it is tried again, and when that ends. The job `alerts`
calls it; what is sent, and how, is `control.delivery`'s.

Nobody sends what was not claimed, and a claim is a lease: it ends when the outcome is written down, or after LEASE_S if
whoever had it was killed. So two processes never send the same, and what was on its way at a kill is sent again later,
under the same id. Pauses are of two kinds: a destination that fails is left alone, with everything that waits for it; and a
delivery that a receiver refuses while it takes others is tried ever more seldom. Clocks are Postgres's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from control.database import Connection
from control.domain import alerts
from control.domain.alerts import Alert

LEASE_S: Final = 60
FAN_OUT_MAX: Final = 500
CLAIM_MAX: Final = 64
"""On their way at once."""
PER_DESTINATION_MAX: Final = 4
"""At once, so that one receiver is not flooded, and a hanging one takes no more than its share."""

RETRY_FIRST_S: Final = 5.0
RETRY_MAX_S: Final = 3600.0
PATIENCE: Final = timedelta(days=1)
"""How long a destination may take nothing before it is disabled."""
FAILURES_MIN: Final = 5
"""So many in a row as well."""
SPELL_ENDS: Final = timedelta(hours=2)
"""A destination that nobody has tried for so long after its pause is not known to be failing any more."""

Verdict = Literal["retry", "give up", "disable"]


@dataclass(frozen=True, slots=True)
class Claimed:
    """One delivery that is now to be attempted, at `attempted_at`; `attempts` counts this one too. `refusals`: so
    often it alone was not taken, while others were."""

    alert: Alert
    destination: str
    attempts: int
    refusals: int
    attempted_at: datetime
    first_attempt_at: datetime
    previous_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Failure:
    """What the receiver said or did, in words without secrets. `is_gone`: it wants to hear nothing any more."""

    error: str
    is_gone: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Deliveries that are still to be made, and destinations that were disabled for want of success."""

    pending: int
    disabled: int


def pause_s(refusals: int, jitter: float) -> float:
    """How long a delivery waits that was refused so often while others were taken: doubling from 5 s to an hour, less a fifth
    of it times `jitter` (0 to 1), so that what failed together does not come back together.
    """
    return min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(refusals - 1, 20)) * (1 - jitter / 5)


def rest_s(failing_for_s: float, jitter: float, asked_s: float | None = None) -> float:
    """How long a destination that has been failing for so long is left alone: as long again, from 5 s to an hour, less a fifth
    of it times `jitter`. At least `asked_s`, if the receiver asked for that, and never more than an hour.
    """
    backed_off_s = min(RETRY_MAX_S, max(RETRY_FIRST_S, failing_for_s))
    return min(RETRY_MAX_S, max(backed_off_s * (1 - jitter / 5), asked_s or 0.0))


def verdict(
    now: datetime,
    failing_since: datetime,
    failures: int,
    first_attempt_at: datetime,
    has_taken_others: bool,
    is_gone: bool,
) -> Verdict:
    """What a failure leads to. `has_taken_others`: the destination took something since this was attempted before.

    A destination that takes nothing for a day is disabled, and keeps everything. One delivery is given up only where the
    receiver is well and did not take this one for a day.
    """
    if is_gone or (now - failing_since >= PATIENCE and failures >= FAILURES_MIN):
        return "disable"
    if has_taken_others and now - first_attempt_at >= PATIENCE:
        return "give up"
    return "retry"


async def fan_out(conn: Connection) -> int:
    """Make the deliveries of new alerts, at most FAN_OUT_MAX alerts at once; how many there were.

    Destinations that failed until they were disabled get theirs too, to be sent when somebody enables them; what an operator
    switched off does not.
    """
    return int(await conn.fetchval(_FAN_OUT, FAN_OUT_MAX))


_FAN_OUT: Final = """
WITH new AS (
    SELECT id, organization, threshold FROM alerts WHERE fanned_out_at IS NULL
     ORDER BY crossed_at, id LIMIT $1 FOR UPDATE SKIP LOCKED
), wanting AS (
    SELECT t.id, t.organization, t.min_threshold, t.disabled_at FROM alert_destinations t
     WHERE t.organization IN (SELECT organization FROM new) AND t.disabled_reason IS DISTINCT FROM 'operator'
     ORDER BY t.id FOR SHARE OF t
), made AS (
    INSERT INTO alert_deliveries (alert, destination, next_attempt_at)
    SELECT n.id, t.id, CASE WHEN t.disabled_at IS NULL THEN now() END
      FROM new n JOIN wanting t ON t.organization = n.organization AND n.threshold >= t.min_threshold
    ON CONFLICT DO NOTHING
), done AS (
    UPDATE alerts SET fanned_out_at = now() FROM new WHERE alerts.id = new.id
)
SELECT count(*) FROM new
"""


async def claim(conn: Connection, room: int = CLAIM_MAX) -> list[Claimed]:
    """Lease what is due, at most `room`, fairly by destination: PER_DESTINATION_MAX at a time, one for a failing one."""
    rows = await conn.fetch(_CLAIM, PER_DESTINATION_MAX, room, LEASE_S)
    return [
        Claimed(
            alerts.alert_of_row(row),
            row["destination"],
            row["attempts"],
            row["refusals"],
            row["last_attempt_at"],
            row["first_attempt_at"],
            row["previous_attempt_at"],
        )
        for row in rows
    ]


# This is done each second, and costs by the destinations that something waits for, not by how much waits: `waiting` goes from
# one of them to the next in the index, and from each the first few are taken. Materialized, because a planner that cannot
# know how few those are would rather read all. The conditions on `d` are there twice on purpose: the first finds, by one
# picture of the table; the second holds for the row as it is once it is locked, which another process may have claimed since.
_CLAIM: Final = f"""
WITH RECURSIVE waiting AS (
    (SELECT destination FROM alert_deliveries WHERE status = 'pending' ORDER BY destination LIMIT 1)
    UNION ALL
    SELECT (SELECT d.destination FROM alert_deliveries d
             WHERE d.status = 'pending' AND d.destination > w.destination ORDER BY d.destination LIMIT 1)
      FROM waiting w WHERE w.destination IS NOT NULL
), due AS MATERIALIZED (
    SELECT first.alert, t.id AS destination
      FROM waiting w JOIN alert_destinations t ON t.id = w.destination
     CROSS JOIN LATERAL (
        SELECT CASE WHEN t.failing_since IS NULL THEN $1 ELSE 1 END - count(*) AS room FROM alert_deliveries l
         WHERE l.destination = t.id AND l.leased_until > now()
     ) AS free
     CROSS JOIN LATERAL (
        SELECT d.alert, d.next_attempt_at, row_number() OVER (ORDER BY d.next_attempt_at, d.alert) AS place
          FROM alert_deliveries d
         WHERE d.destination = t.id AND d.status = 'pending' AND d.next_attempt_at <= now()
           AND (d.leased_until IS NULL OR d.leased_until <= now())
         ORDER BY d.next_attempt_at, d.alert LIMIT greatest(free.room, 0)
     ) AS first
     WHERE t.disabled_at IS NULL AND (t.paused_until IS NULL OR t.paused_until <= now())
     ORDER BY first.place, first.next_attempt_at LIMIT $2
), chosen AS MATERIALIZED (
    SELECT locked.* FROM due
     CROSS JOIN LATERAL (
        SELECT d.alert, d.destination, d.last_attempt_at FROM alert_deliveries d
         WHERE d.alert = due.alert AND d.destination = due.destination AND d.status = 'pending'
           AND d.next_attempt_at <= now() AND (d.leased_until IS NULL OR d.leased_until <= now())
         FOR UPDATE SKIP LOCKED
     ) AS locked
), claimed AS (
    UPDATE alert_deliveries d
       SET attempts = d.attempts + 1, leased_until = now() + $3 * interval '1 second', last_attempt_at = now(),
           first_attempt_at = coalesce(d.first_attempt_at, now())
      FROM chosen c WHERE d.alert = c.alert AND d.destination = c.destination
    RETURNING d.alert, d.destination, d.attempts, d.refusals, d.last_attempt_at, d.first_attempt_at,
              c.last_attempt_at AS previous_attempt_at
)
SELECT {alerts.COLUMNS}, c.destination, c.attempts, c.refusals, c.last_attempt_at, c.first_attempt_at, c.previous_attempt_at
  FROM claimed c JOIN alerts a ON a.id = c.alert
"""  # noqa: S608


async def succeeded(conn: Connection, claimed: Claimed, note: str | None = None) -> None:
    """The destination has it. `note` is what it said beside, such as an address that it refused."""
    async with conn.transaction():
        await took_something(conn, claimed.destination, claimed.attempted_at)
        await conn.execute(
            """UPDATE alert_deliveries
                  SET status = 'delivered', delivered_at = now(), next_attempt_at = NULL, leased_until = NULL, last_error = $3
                WHERE alert = $1 AND destination = $2""",
            claimed.alert.id,
            claimed.destination,
            note,
        )


async def took_something(conn: Connection, destination: str, attempted_at: datetime) -> None:
    """The destination took an alert or a test, which it was sent at `attempted_at`. In the caller's transaction.

    That ends a spell of failures, and its pause, unless it began to fail after that: what was sent beside a success, and
    refused with "come back in an hour", is the later word. One that is disabled stays so.
    """
    await conn.execute(
        """UPDATE alert_destinations SET delivered_at = now() WHERE id = $1 AND disabled_at IS NULL""",
        destination,
    )
    await conn.execute(
        """UPDATE alert_destinations SET failures = 0, failing_since = NULL, paused_until = NULL, last_error = NULL
            WHERE id = $1 AND disabled_at IS NULL AND (failing_since IS NULL OR failing_since < $2)""",
        destination,
        attempted_at,
    )


async def failed(conn: Connection, claimed: Claimed, failure: Failure, jitter: float) -> Verdict:
    """Write down what went wrong and decide what comes of it. `jitter` is 0 to 1, drawn evenly.

    A destination that took others since this was attempted before is well, and refuses this one: it alone is put off. Else, or
    where it asks for time, it is the destination that fails.
    """
    async with conn.transaction():
        row = await conn.fetchrow(
            """SELECT failures, failing_since, paused_until, disabled_at, delivered_at, now() AS at FROM alert_destinations
                WHERE id = $1 FOR NO KEY UPDATE""",
            claimed.destination,
        )
        if row is None:  # deleted meanwhile, and its deliveries with it
            return "give up"
        previous, delivered_at, at = claimed.previous_attempt_at, row["delivered_at"], row["at"]
        has_taken_others = previous is not None and delivered_at is not None and delivered_at > previous
        is_refused = has_taken_others and failure.retry_after_s is None
        failing_since, failures = row["failing_since"], row["failures"]
        if not is_refused:
            is_over = row["paused_until"] is None or row["paused_until"] < at - SPELL_ENDS
            failing_since, failures = (at, 1) if is_over else (failing_since or at, failures + 1)
        decided = verdict(
            at, failing_since or at, failures, claimed.first_attempt_at, has_taken_others, failure.is_gone
        )
        is_enabled = row["disabled_at"] is None
        wait_s = pause_s(claimed.refusals + 1, jitter) if is_refused else 0.0
        is_waiting = decided == "retry" and is_enabled
        await _put_off(conn, claimed, failure.error, decided, wait_s if is_waiting else None)
        rests_s = 0.0
        if is_enabled and not is_refused:
            rests_s = rest_s((at - failing_since).total_seconds(), jitter, failure.retry_after_s)
        await conn.execute(
            """UPDATE alert_destinations
                  SET failures = $2, failing_since = $3, last_error = $4,
                      paused_until = CASE WHEN $5 > 0 THEN greatest(paused_until, now() + $5 * interval '1 second')
                                          ELSE paused_until END
                WHERE id = $1""",
            claimed.destination,
            failures,
            failing_since,
            failure.error,
            rests_s,
        )
        if is_enabled and decided == "disable":
            await disable(conn, claimed.destination, "gone" if failure.is_gone else "failing")
        return decided


async def _put_off(
    conn: Connection, claimed: Claimed, error: str, decided: Verdict, wait_s: float | None
) -> None:
    """The delivery goes on waiting: for a pause of its own, or behind the others of its destination (0). None: it does not
    come up again by itself."""
    await conn.execute(
        """UPDATE alert_deliveries
              SET status = $3, leased_until = NULL, last_error = $4, refusals = refusals + coalesce($5 > 0, false)::int,
                  next_attempt_at = now() + $5 * interval '1 second'
            WHERE alert = $1 AND destination = $2""",
        claimed.alert.id,
        claimed.destination,
        "failed" if decided == "give up" else "pending",
        error,
        wait_s,
    )


async def enable(conn: Connection, destination: str) -> None:
    """Forget its failures, and let everything that it did not take be due now, as if never tried."""
    await conn.execute(
        """UPDATE alert_destinations
              SET disabled_at = NULL, disabled_reason = NULL, failures = 0, failing_since = NULL, paused_until = NULL,
                  last_error = NULL
            WHERE id = $1""",
        destination,
    )
    await conn.execute(
        """UPDATE alert_deliveries
              SET status = 'pending', next_attempt_at = now(), attempts = 0, refusals = 0, first_attempt_at = NULL
            WHERE destination = $1 AND status <> 'delivered'""",
        destination,
    )


async def disable(conn: Connection, destination: str, reason: Literal["operator", "failing", "gone"]) -> None:
    """Send it nothing more; what it was not told stays until it is enabled."""
    await conn.execute(
        """UPDATE alert_destinations
              SET disabled_at = coalesce(disabled_at, now()), disabled_reason = $2, paused_until = NULL WHERE id = $1""",
        destination,
        reason,
    )
    await conn.execute(
        "UPDATE alert_deliveries SET next_attempt_at = NULL WHERE destination = $1 AND status = 'pending'",
        destination,
    )


async def waiting(conn: Connection) -> Waiting:
    row = await conn.fetchrow(
        """SELECT (SELECT count(*) FROM alert_deliveries WHERE status = 'pending') AS pending,
                  (SELECT count(*) FROM alert_destinations WHERE disabled_reason IN ('failing', 'gone')) AS disabled"""
    )
    assert row is not None
    return Waiting(row["pending"], row["disabled"])
