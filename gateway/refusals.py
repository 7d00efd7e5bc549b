"""Every expected "no": one closed list, with its status and public words in one table. Pure.

A refusal is a value, not an exception. `render` turns it into a body in the dialect of the route: RFC 9457 problem JSON that
also carries the `error` object which OpenAI-style SDKs read, or the dialects of other SDKs. HTML never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import orjson

from gateway.contract.ids import Level
from gateway.contract.money import format_credits
from gateway.routing import Dialect


class Reason(StrEnum):
    """Why a request was not forwarded, or its answer not delivered. Bounded: used as a metric label."""

    MISSING_TOKEN = "missing_token"
    INVALID_TOKEN = "invalid_token"
    ROUTE_FORBIDDEN = "route_forbidden"
    ADDRESS_FORBIDDEN = "address_forbidden"
    BUDGET_EXCEEDED = "budget_exceeded"
    RATE_LIMITED = "rate_limited"
    TOO_MANY_IN_FLIGHT = "too_many_in_flight"
    NOT_READY = "not_ready"
    OVERLOADED = "overloaded"
    BAD_REQUEST = "bad_request"
    NO_SUCH_ROUTE = "no_such_route"
    REQUEST_TIMEOUT = "request_timeout"
    BODY_TOO_LARGE = "body_too_large"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_UNHEALTHY = "upstream_unhealthy"
    LOOP_DETECTED = "loop_detected"
    CERTIFICATE_REQUIRED = "certificate_required"
    TOO_MANY_CONNECTIONS = "too_many_connections"


@dataclass(frozen=True, slots=True)
class _Words:
    status: int
    title: str
    detail: str
    error_type: str


_TABLE: Final[Mapping[Reason, _Words]] = {
    Reason.MISSING_TOKEN: _Words(
        401, "A key is required", "Send a key's token as Authorization: Bearer, as X-Api-Key, or as the password of "
        "Authorization: Basic.", "authentication_error",
    ),
    Reason.INVALID_TOKEN: _Words(
        401, "The key is not valid", "The token is mistyped, unknown, or no longer in force.", "authentication_error",
    ),
    Reason.ROUTE_FORBIDDEN: _Words(
        403, "The key may not use this route", "The key's scopes do not include this route.", "permission_error",
    ),
    Reason.ADDRESS_FORBIDDEN: _Words(
        403, "The key may not be used from this address", "The key has a list of allowed addresses.", "permission_error",
    ),
    Reason.BUDGET_EXCEEDED: _Words(402, "A credit limit is reached", "", "insufficient_quota"),
    Reason.RATE_LIMITED: _Words(429, "Too many requests a minute", "Slow down and try again.", "rate_limit_error"),
    Reason.TOO_MANY_IN_FLIGHT: _Words(
        429, "Too many requests in flight", "Wait for one to finish and try again.", "rate_limit_error",
    ),
    Reason.NOT_READY: _Words(
        503, "The gateway is not ready", "Credit limits cannot be checked right now, so nothing is let through. "
        "Try again shortly.", "api_error",
    ),
    Reason.OVERLOADED: _Words(
        503, "The gateway is overloaded", "A queue is full. Try again shortly.", "api_error",
    ),
    Reason.BAD_REQUEST: _Words(400, "The request is malformed", "", "invalid_request_error"),
    Reason.NO_SUCH_ROUTE: _Words(
        404, "No route serves this path", "The gateway has no route for this host, path and method.",
        "invalid_request_error",
    ),
    Reason.REQUEST_TIMEOUT: _Words(
        408, "The request took too long to arrive", "", "invalid_request_error",
    ),
    Reason.BODY_TOO_LARGE: _Words(413, "The body is too large", "", "invalid_request_error"),
    Reason.UPSTREAM_UNREACHABLE: _Words(
        502, "The upstream cannot be reached", "The gateway could not connect to the service behind this route.",
        "api_error",
    ),
    Reason.UPSTREAM_FAILED: _Words(
        502, "The upstream failed", "The service behind this route closed the connection or answered something that "
        "is not HTTP.", "api_error",
    ),
    Reason.UPSTREAM_TIMEOUT: _Words(
        504, "The upstream took too long", "The service behind this route did not answer in time.", "api_error",
    ),
    Reason.UPSTREAM_UNHEALTHY: _Words(
        503, "The upstream is not well", "No target of this route passes its health checks. Try again shortly.", "api_error",
    ),
    Reason.LOOP_DETECTED: _Words(
        508, "The request goes round in a circle", "It has passed through this gateway before: an upstream sends it back.",
        "api_error",
    ),
    Reason.CERTIFICATE_REQUIRED: _Words(
        403, "A client certificate is required", "This route asks for a client certificate, and the connection has none.",
        "permission_error",
    ),
    Reason.TOO_MANY_CONNECTIONS: _Words(
        503, "Too many connections", "Close connections that are not needed, or reuse them, and try again shortly.",
        "api_error",
    ),
}  # fmt: skip

_RETRY_AFTER_S: Final = {
    Reason.NOT_READY: 1, Reason.OVERLOADED: 1, Reason.TOO_MANY_IN_FLIGHT: 1, Reason.UPSTREAM_UNHEALTHY: 1,
    Reason.TOO_MANY_CONNECTIONS: 1,
}  # fmt: skip
_CHALLENGES: Final = (
    (b"WWW-Authenticate", b'Bearer realm="tollkeeper"'),
    (b"WWW-Authenticate", b'Basic realm="tollkeeper", charset="UTF-8"'),
)
_INVALID_CHALLENGES: Final = (
    (b"WWW-Authenticate", b'Bearer realm="tollkeeper", error="invalid_token"'),
    (b"WWW-Authenticate", b'Basic realm="tollkeeper", charset="UTF-8"'),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A "no" with what is to be said about it.

    `code` is finer than the reason where the caller has proved to know the secret (`key_revoked`, `account_inactive`…).
    `metadata` is public and goes into the body; `status` overrides the table's (a head error has its own).
    """

    reason: Reason
    code: str | None = None
    detail: str | None = None
    status: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: int | None = None

    @property
    def public_code(self) -> str:
        return self.code or self.reason.value

    @property
    def public_status(self) -> int:
        return self.status or _TABLE[self.reason].status

    @property
    def public_detail(self) -> str:
        return self.detail or _TABLE[self.reason].detail


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
    words = f"{_TABLE[reason].detail.removesuffix('.')}: it failed {_PHASE_WORDS[phase]}."
    if reason in (Reason.OVERLOADED, Reason.UPSTREAM_UNHEALTHY):
        words = _TABLE[reason].detail
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
    moment = _rfc3339(expires_at_ms)
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
    level: Level, entity: Entity, estimate: int, counters: tuple[int, int, int, int], quota_status: int
) -> Refusal:
    """No room at `level`. `counters` are limit, spent, held (microcredits) and resets_at_ms (0: never)."""
    limit, spent, held, resets_at_ms = counters
    resets_at = _rfc3339(resets_at_ms) if resets_at_ms else None
    remaining = max(limit - spent - held, 0)
    when = f"It starts afresh at {resets_at}." if resets_at else "It never starts afresh."
    detail = (
        f"The credit limit of the {level} {entity.name or entity.id} leaves {format_credits(remaining)} of "
        f"{format_credits(limit)} credits, and this request may cost {format_credits(estimate)}. {when} "
        f"Whoever manages the {level} can raise the limit."
    )
    return Refusal(
        Reason.BUDGET_EXCEEDED, detail=detail, status=quota_status,
        metadata={
            "level": level, "id": entity.id, **({"name": entity.name} if entity.name else {}),
            "limit": format_credits(limit), "spent": format_credits(spent),
            "held": format_credits(held), "remaining": format_credits(remaining),
            "estimate": format_credits(estimate), "resets_at": resets_at,
        },
    )  # fmt: skip


def headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Fields that go with a refusal: challenges, Retry-After where waiting helps, x-should-retry where it does not."""
    fields: list[tuple[bytes, bytes]] = []
    if refusal.reason is Reason.MISSING_TOKEN:
        fields.extend(_CHALLENGES)
    elif refusal.reason is Reason.INVALID_TOKEN:
        fields.extend(_INVALID_CHALLENGES)
    elif refusal.reason is Reason.BUDGET_EXCEEDED and refusal.status == 429:
        fields.append((b"x-should-retry", b"false"))
    retry_after_s = refusal.retry_after_s or _RETRY_AFTER_S.get(refusal.reason)
    if retry_after_s is not None:
        fields.append((b"Retry-After", b"%d" % retry_after_s))
    return fields


def render(refusal: Refusal, dialect: Dialect, request_id: str) -> tuple[bytes, bytes]:
    """Content-Type and body of a refusal in a route's dialect."""
    words = _TABLE[refusal.reason]
    detail = refusal.public_detail or words.title
    if dialect == "plain":
        return b"text/plain; charset=utf-8", f"{words.title}: {detail} ({refusal.public_code})\n".encode()
    if dialect == "anthropic":
        anthropic: dict[str, Any] = {"type": words.error_type, "message": detail, "code": refusal.public_code}
        return b"application/json", orjson.dumps(
            {"type": "error", "error": anthropic, "request_id": request_id}
        )
    error: dict[str, Any] = {
        "message": detail, "type": words.error_type, "code": refusal.public_code, "param": None,
        "metadata": {**refusal.metadata, "request_id": request_id},
    }  # fmt: skip
    if dialect == "openai":
        return b"application/json", orjson.dumps({"error": error})
    problem = {
        "type": f"urn:tollkeeper:problem:{refusal.reason.value}",
        "title": words.title,
        "status": refusal.public_status,
        "detail": detail,
        "code": refusal.public_code,
        "request_id": request_id,
        **refusal.metadata,
        "error": error,
    }
    return b"application/problem+json", orjson.dumps(problem)


def read_admission(
    reply: Sequence[Any], entities: Mapping[Level, Entity], estimate: int, quota_status: int
) -> Refusal | None:
    """A refusal out of the answer of admit or extend; None for the answers that are not about the caller."""
    word = reply[0]
    if word == b"budget":
        level: Level = reply[1].decode()
        counters = (int(reply[2]), int(reply[3]), int(reply[4]), int(reply[5]))
        return budget_exceeded(level, entities[level], estimate, counters, quota_status)
    if word == b"status":
        return not_in_force(reply[1].decode(), reply[2].decode())
    if word == b"expired":
        return expired(int(reply[1]))
    return None


def _rfc3339(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
