"""Every expected "no", as a value and not as an exception. Pure.

`reasons` is the closed list, with status and public words; `http1.own_answer` says a refusal in the dialect of the route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from gateway.contract.ids import Level
from gateway.contract.money import format_credits
from gateway.contract.token import holds_token
from gateway.quota_fields import CONCURRENT, MICROCREDITS, Quota
from gateway.reasons import RETRY_AFTER_S, WORDS, Reason

__all__ = [
    "Entity", "Reason", "Refusal", "budget_exceeded", "connection_refusal", "cut_for_budget", "cut_for_cap",
    "expired", "not_in_force", "rate_limited", "read_admission", "rfc3339", "too_many_in_flight", "unpriced",
    "upstream_refusal",
]  # fmt: skip

RETRY_BUDGET_S_MAX: Final = 3600
"""The longest wait for credits that Retry-After speaks of: clients sleep for as long as they are told, days included."""

UNPRICED_VALUE_LENGTH_MAX: Final = 80

_MINUTE_S: Final = 60
_NOTHING_PASSES: Final = "A limit of 0 lets nothing through."
_ABOUT_LIMITS: Final = frozenset((b"budget", b"rate", b"in_flight"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A "no" with what is to be said about it.

    `code` is finer than the reason where the caller has proved to know the secret (`key_revoked`, `account_inactive`…).
    `metadata` is public and goes into the body; `status` overrides the table's (a head error has its own). `param` is what the
    request is to change. `retry_after_s` overrides what is usual for the reason; 0: waiting does not help. `quota` is the limit
    that header fields tell of.
    """

    reason: Reason
    code: str | None = None
    detail: str | None = None
    status: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: int | None = None
    param: str | None = None
    quota: Quota | None = None

    @property
    def public_code(self) -> str:
        return self.code or self.reason.value

    @property
    def public_status(self) -> int:
        return self.status or WORDS[self.reason].status

    @property
    def public_detail(self) -> str:
        words = WORDS[self.reason]
        return self.detail or words.detail or words.title

    @property
    def title(self) -> str:
        return WORDS[self.reason].title

    @property
    def error_type(self) -> str:
        """The type of error that SDKs make of it."""
        return WORDS[self.reason].error_type

    @property
    def public_retry_after_s(self) -> int | None:
        """When to try again; 0: never, for all that is known; None: nothing is to be said about it."""
        usual_s = RETRY_AFTER_S.get(self.reason)
        return usual_s if self.retry_after_s is None else self.retry_after_s


_PHASE_WORDS: Final[Mapping[str, str]] = {
    "connect": "while the gateway connected to it",
    "sending": "while it was sent the request",
    "first_byte": "before the first byte of its answer",
    "answer": "before its answer was whole",
    "between_bytes": "within its answer",
}


def upstream_refusal(reason: Reason, phase: str, route: str, position: int | None = None) -> Refusal:
    """The upstream failed: which route's, which of its targets (counted from 1), and in which phase of the request."""
    metadata: dict[str, Any] = {"route": route, "phase": phase}
    if position is not None:
        metadata["target"] = position + 1
    words = f"{WORDS[reason].detail.removesuffix('.')}: it failed {_PHASE_WORDS[phase]}."
    if reason in (Reason.OVERLOADED, Reason.UPSTREAM_UNHEALTHY):
        words = WORDS[reason].detail
    return Refusal(reason, detail=words, metadata=metadata)


_CONNECTION_REASONS: Final[Mapping[str, Reason]] = {
    "unreachable": Reason.UPSTREAM_UNREACHABLE,
    "timeout": Reason.UPSTREAM_TIMEOUT,
    "full": Reason.OVERLOADED,
    "late": Reason.OVERLOADED,
    "unhealthy": Reason.UPSTREAM_UNHEALTHY,
}


def connection_refusal(kind: str, route: str, position: int | None = None) -> Refusal:
    """No connection to the upstream. `kind` is that of `ConnectionFailed`, or "late": none became free in time."""
    return upstream_refusal(_CONNECTION_REASONS[kind], "connect", route, position)


_STATUS_WORDS: Final[Mapping[tuple[str, str], str]] = {
    ("key", "disabled"): "The key is disabled. Somebody who manages the account can enable it again.",
    ("key", "revoked"): "The key is revoked. Create a new key for the account and use that one.",
    ("account", "inactive"): "The account is inactive. An administrator can activate it again.",
    ("account", "deleted"): "The account is deleted. Its keys will never work again.",
    ("organization", "inactive"): "The organization is inactive.",
    ("organization", "deleted"): "The organization is deleted.",
}


def not_in_force(level: Level, status: str) -> Refusal:
    """The key is known and the secret is right, but key, account or organization is switched off."""
    return Refusal(Reason.INVALID_TOKEN, code=f"{level}_{status}", detail=_STATUS_WORDS.get((level, status)))


def expired(expires_at_ms: int) -> Refusal:
    moment = rfc3339(expires_at_ms)
    return Refusal(
        Reason.INVALID_TOKEN, code="key_expired",
        detail=f"The key expired at {moment}. Create a new key for the account and use that one.",
        metadata={"expired_at": moment},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entity:
    """Whose limit it is: the id by which the control plane knows it, and the name by which people do (keys: None)."""

    id: str
    name: str | None = None


def budget_exceeded(
    level: Level,
    entity: Entity,
    estimate: int,
    counters: tuple[int, int, int, int],
    quota_status: int,
    now_ms: int | None = None,
) -> Refusal:
    """No room at `level`. `counters` are limit, spent, held (microcredits) and resets_at_ms (0: never). Without `now_ms`, by
    Redis's clock, nothing is said about how long it takes until then."""
    limit, spent, _, resets_at_ms = counters
    resets_at = rfc3339(resets_at_ms) if resets_at_ms else None
    when = f"It starts afresh at {resets_at}." if resets_at else "It never starts afresh."
    how_to_fix = _more_credits(level, estimate, limit, spent, is_resetting=resets_at is not None)
    detail = (
        f"The credit limit of the {level} {entity.name or entity.id} leaves {format_credits(_left(counters))} of "
        f"{format_credits(limit)} credits, and this request may cost {format_credits(estimate)}. {when} {how_to_fix}"
    )
    quota = _credits_quota(entity, counters, now_ms)
    helps = quota.reset_s is not None and quota.reset_s <= RETRY_BUDGET_S_MAX and 0 < limit >= estimate
    return Refusal(
        Reason.BUDGET_EXCEEDED, detail=detail, status=quota_status, quota=quota,
        retry_after_s=max(quota.reset_s or 0, 1) if helps else 0,
        metadata={
            **_whose(level, entity), **_credits(counters), "estimate": format_credits(estimate), "resets_at": resets_at,
            "how_to_fix": how_to_fix,
        },
    )  # fmt: skip


def cut_for_budget(level: Level, entity: Entity, counters: tuple[int, int, int, int]) -> Refusal:
    """The answer is under way and costs more than was held, and `level` has no room for more. `counters` as above."""
    limit, _, _, resets_at_ms = counters
    resets_at = rfc3339(resets_at_ms) if resets_at_ms else None
    how_to_fix = _raisable(level)
    detail = (
        f"The credits ran out while the answer was under way: the credit limit of the {level} {entity.name or entity.id} "
        f"leaves {format_credits(_left(counters))} of {format_credits(limit)} credits. The answer ends here, and what was used "
        f"is charged. {how_to_fix}"
    )
    return Refusal(
        Reason.BUDGET_EXCEEDED, detail=detail,
        metadata={
            **_whose(level, entity), **_credits(counters), "resets_at": resets_at, "how_to_fix": how_to_fix,
        },
    )  # fmt: skip


def cut_for_cap(route: str, cap: int) -> Refusal:
    """The answer is under way and has come to cost what one request on `route` may cost at most."""
    detail = (
        f"A request on this route may cost {format_credits(cap)} credits at most, and this one has come to that. The answer "
        f"ends here. Ask for less at once, or whoever runs the gateway to raise cap_per_request of the route {route}."
    )
    metadata = {"route": route, "cap_per_request": format_credits(cap)}
    return Refusal(Reason.BUDGET_EXCEEDED, code="cap_reached", detail=detail, metadata=metadata)


def _more_credits(level: Level, estimate: int, limit: int, spent: int, *, is_resetting: bool) -> str:
    """What is to be done about a limit without room."""
    if limit == 0:
        return f"{_NOTHING_PASSES} {_raisable(level)}"
    if estimate > limit:
        return (
            f"One such request may cost more than the whole limit: ask for less at once. {_raisable(level)}"
        )
    if spent + estimate <= limit and spent < limit:
        return f"Requests under way hold the rest, and give back what they do not use: send fewer at a time. {_raisable(level)}"
    return f"Wait for it to start afresh. {_raisable(level)}" if is_resetting else _raisable(level)


def _raisable(level: Level) -> str:
    more = " or grant more credits" if level == "organization" else ""
    return f"Whoever manages the {level} can raise the limit{more}."


def _left(counters: tuple[int, int, int, int]) -> int:
    limit, spent, held, _ = counters
    return max(limit - spent - held, 0)


def _whose(level: Level, entity: Entity) -> dict[str, Any]:
    return {"level": level, "id": entity.id, **({"name": entity.name} if entity.name else {})}


def _credits(counters: tuple[int, int, int, int]) -> dict[str, Any]:
    limit, spent, held, _ = counters
    return {
        "limit": format_credits(limit), "spent": format_credits(spent), "held": format_credits(held),
        "remaining": format_credits(_left(counters)),
    }  # fmt: skip


def _credits_quota(entity: Entity, counters: tuple[int, int, int, int], now_ms: int | None) -> Quota:
    limit, _, _, resets_at_ms = counters
    reset_s = _seconds(resets_at_ms - now_ms) if resets_at_ms and now_ms is not None else None
    return Quota("credits", entity.id, limit, _left(counters), unit=MICROCREDITS, reset_s=reset_s)


def _seconds(duration_ms: int) -> int:
    """Whole seconds, rounded up."""
    return max(-(-duration_ms // 1000), 0)


def rate_limited(level: Level, entity: Entity, per_minute: int, burst: int, retry_after_ms: int) -> Refusal:
    """More requests a minute than `level` may send: the next one is in time after `retry_after_ms`."""
    retry_after_s = max(_seconds(retry_after_ms), 1)
    how_to_fix = f"Send requests more evenly. Whoever manages the {level} can raise the limit."
    at_once = f", {burst} of them at once" if burst != per_minute else ""
    detail = (
        f"The {level} {entity.name or entity.id} may send {per_minute} requests a minute{at_once}. "
        f"The next one is in time in {retry_after_s} s. {how_to_fix}"
    )
    return Refusal(
        Reason.RATE_LIMITED, detail=detail, retry_after_s=retry_after_s,
        quota=Quota(
            "requests-per-minute", entity.id, per_minute, window_s=_MINUTE_S, reset_s=retry_after_s, burst=burst
        ),
        metadata={
            **_whose(level, entity), "limit": per_minute, "burst": burst, "retry_after_s": retry_after_s,
            "how_to_fix": how_to_fix,
        },
    )  # fmt: skip


def too_many_in_flight(level: Level, entity: Entity, most: int, in_flight: int) -> Refusal:
    """As many requests of `level` are under way as may be at one time. Where that is none, waiting does not help."""
    wait = "Send the next when one has ended." if most else _NOTHING_PASSES
    how_to_fix = f"{wait} Whoever manages the {level} can raise the limit."
    retry_after_s = RETRY_AFTER_S[Reason.TOO_MANY_IN_FLIGHT] if most else 0
    detail = f"The {level} {entity.name or entity.id} may have {most} requests in flight, and {in_flight} are. {how_to_fix}"
    return Refusal(
        Reason.TOO_MANY_IN_FLIGHT, detail=detail, retry_after_s=retry_after_s,
        quota=Quota("requests-in-flight", entity.id, most, max(most - in_flight, 0), unit=CONCURRENT),
        metadata={
            **_whose(level, entity), "limit": most, "in_flight": in_flight, "retry_after_s": retry_after_s or None,
            "how_to_fix": how_to_fix,
        },
    )  # fmt: skip


def unpriced(field: str, value: str | None, route: str) -> Refusal:
    """What a request costs on `route` depends on its `field` (such as "/model"), and its value has no rate; or no value was
    found (None) in what is read of a request before it is admitted."""
    if value is None:
        detail = (
            f"What a request costs here depends on its {field}, and this request has none where the gateway looks for it: send "
            f"it near the start of a JSON body."
        )
    else:
        value = _printable(value)
        detail = (
            f'There is no rate for {field} "{value}", and nothing is free by accident. Use another, or ask whoever runs the '
            f"gateway to add it to the rates of the route {route}."
        )
    metadata = {"route": route, "field": field, "value": value}
    return Refusal(Reason.UNPRICED, detail=detail, param=field, metadata=metadata)


def _printable(value: str) -> str:
    """A caller's words as they may be repeated: short, on one line, and no token."""
    if holds_token(value.encode("utf-8", "replace")):
        return "…"
    cut = value[:UNPRICED_VALUE_LENGTH_MAX]
    return "".join(char if char.isprintable() else "\ufffd" for char in cut) + ("…" if cut != value else "")


def read_admission(
    reply: Sequence[Any],
    entities: Mapping[Level, Entity],
    estimate: int,
    quota_status: int,
    now_ms: int | None = None,
) -> Refusal | None:
    """A refusal out of the answer of admit or extend; None for the answers that are not about the caller. `now_ms` is the
    time by Redis's clock."""
    word = reply[0]
    if word in _ABOUT_LIMITS:
        level: Level = reply[1].decode()
        figures = [int(figure) for figure in reply[2:]]
        entity = entities[level]
        if word == b"rate":
            return rate_limited(level, entity, *figures)
        if word == b"in_flight":
            return too_many_in_flight(level, entity, *figures)
        limit, spent, held, resets_at_ms = figures
        return budget_exceeded(
            level, entity, estimate, (limit, spent, held, resets_at_ms), quota_status, now_ms
        )
    if word == b"status":
        return not_in_force(reply[1].decode(), reply[2].decode())
    if word == b"expired":
        return expired(int(reply[1]))
    return None


def rfc3339(moment_ms: int) -> str:
    """Milliseconds since 1970 as a time in UTC, to the second."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
