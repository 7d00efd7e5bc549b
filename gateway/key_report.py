"""What a key is told about itself: its status, and the limits of its whole chain as they stand now. Pure.

Read from the records of key, account and organization in Redis. A window that has ended counts for nothing, and a grant that
has expired is lost, though no script may have looked since: both are worked out here as `admit` would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.contract.grants import lost_by, unpacked
from gateway.contract.ids import LEVELS, Level, organization_id
from gateway.contract.money import Microcredits, format_credits
from gateway.contract.periods import NEVER_ENDS_MS, PERIODS, window_at
from gateway.contract.records import COUNTER_FIELDS, Counters, Identity, read_counters
from gateway.refusals import Refusal, expired, not_in_force, rfc3339

_RULE_FIELDS: Final = (
    "status", "digest", "expires_at", "limit", "period", "billing_day", "since", "enforcement", "grants", "rpm", "burst",
    "in_flight_max",
)  # fmt: skip
RECORD_FIELDS: Final = _RULE_FIELDS + COUNTER_FIELDS
"""What is to be read of each of the three records; a field that a level does not have is read as None."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One level: its rules, and its counters as they are now. Credits in microcredits; None: no limit."""

    status: str
    digest: bytes | None
    expires_at_ms: int
    """0: never."""
    limit: int | None
    """What is granted and not lost, at a prepaid organization."""
    spent: int
    held: int
    period: str
    resets_at_ms: int
    """0: never."""
    enforces: bool
    observed: int
    per_minute: int | None
    burst: int | None
    in_flight_max: int | None
    in_flight: int

    @property
    def remaining(self) -> int | None:
        return None if self.limit is None else max(self.limit - self.spent - self.held, 0)


def read_standing(values: Sequence[bytes | None], now_ms: int) -> Standing | None:
    """The answer to HMGET RECORD_FIELDS, at a moment of Redis's clock; None if there is no such record. Raises ValueError if
    what is there cannot be read."""
    rules = dict(zip(_RULE_FIELDS, values[: len(_RULE_FIELDS)], strict=True))
    status = rules["status"]
    if status is None:
        return None
    limit, period = _number(rules["limit"]), _text(rules["period"]) or "never"
    if period not in PERIODS:
        raise ValueError(f"not a period: {period[:40]!r}")
    window = window_at(
        period,
        now_ms,
        billing_day=_number(rules["billing_day"]) or 1,
        since_ms=_number(rules["since"]) or 0,
    )
    counters = read_counters(values[len(_RULE_FIELDS) :])
    if counters is None:
        raise ValueError("the record has no counters")
    if window.start_ms > counters.window_ms:
        counters = Counters(window.start_ms, Microcredits(0), Microcredits(0), counters.in_flight)
    if limit is not None:
        grants = unpacked(_text(rules["grants"]))
        limit -= lost_by(grants, now_ms, counters.spent + counters.held, counters.lost)
    per_minute = _number(rules["rpm"])
    return Standing(
        status=_text(status), digest=rules["digest"], expires_at_ms=_number(rules["expires_at"]) or 0,
        limit=limit, spent=counters.spent, held=counters.held, period=period,
        resets_at_ms=0 if window.end_ms == NEVER_ENDS_MS else window.end_ms,
        enforces=rules["enforcement"] != b"observe", observed=counters.observed, per_minute=per_minute,
        burst=None if per_minute is None else _number(rules["burst"]) or per_minute,
        in_flight_max=_number(rules["in_flight_max"]), in_flight=counters.in_flight,
    )  # fmt: skip


def key_report(identity: Identity, chain: tuple[Standing, Standing, Standing], now_ms: int) -> dict[str, Any]:
    """What is answered: ready for JSON, credits as decimal strings, times in RFC 3339."""
    key, account, organization = chain
    refusal = _why_not(chain, now_ms)
    return {
        "id": identity.key_id,
        "status": "active" if refusal is None else refusal.public_code.removeprefix("key_"),
        "detail": None if refusal is None else refusal.public_detail,
        "expires_at": _moment(key.expires_at_ms),
        "principal": identity.principal,
        "at": rfc3339(now_ms),
        "binding": binding(chain),
        "key": {"id": identity.key_id, "status": key.status, **_limits(key), **_pace(key)},
        "account": {
            "id": identity.account_id, "name": identity.account_name, "kind": identity.account_kind,
            "status": account.status, **_limits(account), **_pace(account),
        },
        "organization": {
            "id": organization_id(identity.organization_tag), "name": identity.organization_name,
            "status": organization.status, **_limits(organization),
        },
    }  # fmt: skip


def binding(chain: tuple[Standing, Standing, Standing]) -> Level | None:
    """The level with the least credits left, of those that refuse; of equal ones the lowest, which `admit` asks first. None:
    nothing limits."""
    left = [
        (level.remaining, name)
        for name, level in zip(LEVELS, chain, strict=True)
        if level.remaining is not None and level.enforces
    ]
    return min(left, key=lambda pair: pair[0])[1] if left else None


def _why_not(chain: tuple[Standing, Standing, Standing], now_ms: int) -> Refusal | None:
    """Why requests with the key are refused whatever they cost, in the order in which `admit` looks."""
    for name, level in zip(LEVELS, chain, strict=True):
        if level.status != "active":
            return not_in_force(name, level.status)
    expires_at_ms = chain[0].expires_at_ms
    return expired(expires_at_ms) if 0 < expires_at_ms <= now_ms else None


def _limits(level: Standing) -> dict[str, Any]:
    return {
        "limit": _amount(level.limit),
        "spent": _amount(level.spent),
        "held": _amount(level.held),
        "remaining": _amount(level.remaining),
        "reset_period": level.period,
        "resets_at": _moment(level.resets_at_ms),
        "enforcement": "enforce" if level.enforces else "observe",
        "observed": level.observed,
    }


def _pace(level: Standing) -> dict[str, Any]:
    return {
        "requests_per_minute": level.per_minute,
        "burst": level.burst,
        "requests_in_flight": level.in_flight_max,
        "in_flight": level.in_flight,
    }


def _amount(microcredits: int | None) -> str | None:
    return None if microcredits is None else format_credits(microcredits)


def _moment(moment_ms: int) -> str | None:
    return rfc3339(moment_ms) if moment_ms else None


def _number(value: bytes | None) -> int | None:
    return int(value) if value else None


def _text(value: bytes | None) -> str:
    return value.decode() if value is not None else ""
