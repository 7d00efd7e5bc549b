"""Why requests are refused: one closed list, with its status and public words in one table. Pure.

`refusals` makes values of it; reasons are also labels of metrics and stand in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


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
    UNPRICED = "unpriced"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TOO_MANY_CONNECTIONS = "too_many_connections"


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of a reason where nothing finer is known."""

    status: int
    title: str
    detail: str
    error_type: str
    """The type of error that SDKs make of it."""


WORDS: Final[Mapping[Reason, Words]] = {
    Reason.MISSING_TOKEN: Words(
        401, "A key is required", "Send a key's token as Authorization: Bearer, as X-Api-Key, or as the password of "
        "Authorization: Basic.", "authentication_error",
    ),
    Reason.INVALID_TOKEN: Words(
        401, "The key is not valid", "The token is mistyped, unknown, or no longer in force.", "authentication_error",
    ),
    Reason.ROUTE_FORBIDDEN: Words(
        403, "The key may not use this route", "The key's scopes do not include this route.", "permission_error",
    ),
    Reason.ADDRESS_FORBIDDEN: Words(
        403, "The key may not be used from this address", "The key has a list of allowed addresses.", "permission_error",
    ),
    Reason.BUDGET_EXCEEDED: Words(402, "A credit limit is reached", "", "insufficient_quota"),
    Reason.RATE_LIMITED: Words(429, "Too many requests a minute", "Slow down and try again.", "rate_limit_error"),
    Reason.TOO_MANY_IN_FLIGHT: Words(
        429, "Too many requests in flight", "Wait for one to finish and try again.", "rate_limit_error",
    ),
    Reason.NOT_READY: Words(
        503, "The gateway is not ready", "Credit limits cannot be checked right now, so nothing is let through. "
        "Try again shortly.", "api_error",
    ),
    Reason.OVERLOADED: Words(
        503, "The gateway is overloaded", "A queue is full. Try again shortly.", "api_error",
    ),
    Reason.BAD_REQUEST: Words(400, "The request is malformed", "", "invalid_request_error"),
    Reason.NO_SUCH_ROUTE: Words(
        404, "No route serves this path", "The gateway has no route for this host, path and method.",
        "invalid_request_error",
    ),
    Reason.REQUEST_TIMEOUT: Words(
        408, "The request took too long to arrive", "", "invalid_request_error",
    ),
    Reason.BODY_TOO_LARGE: Words(413, "The body is too large", "", "invalid_request_error"),
    Reason.UPSTREAM_UNREACHABLE: Words(
        502, "The upstream cannot be reached", "The gateway could not connect to the service behind this route.",
        "api_error",
    ),
    Reason.UPSTREAM_FAILED: Words(
        502, "The upstream failed", "The service behind this route closed the connection or answered something that "
        "is not HTTP.", "api_error",
    ),
    Reason.UPSTREAM_TIMEOUT: Words(
        504, "The upstream took too long", "The service behind this route did not answer in time.", "api_error",
    ),
    Reason.UPSTREAM_UNHEALTHY: Words(
        503, "The upstream is not well", "No target of this route passes its health checks. Try again shortly.", "api_error",
    ),
    Reason.LOOP_DETECTED: Words(
        508, "The request goes round in a circle", "It has passed through this gateway before: an upstream sends it back.",
        "api_error",
    ),
    Reason.CERTIFICATE_REQUIRED: Words(
        403, "A client certificate is required", "This route asks for a client certificate, and the connection has none.",
        "permission_error",
    ),
    Reason.UNPRICED: Words(
        400, "What is asked for has no price", "This route has no rate for what the request asks for.", "invalid_request_error",
    ),
    Reason.METHOD_NOT_ALLOWED: Words(
        405, "The method is not allowed here", "Ask with GET or HEAD.", "invalid_request_error",
    ),
    Reason.TOO_MANY_CONNECTIONS: Words(
        503, "Too many connections", "Close connections that are not needed, or reuse them, and try again shortly.",
        "api_error",
    ),
}  # fmt: skip

RETRY_AFTER_S: Final[Mapping[Reason, int]] = {
    Reason.NOT_READY: 1, Reason.OVERLOADED: 1, Reason.TOO_MANY_IN_FLIGHT: 1, Reason.UPSTREAM_UNHEALTHY: 1,
    Reason.TOO_MANY_CONNECTIONS: 1,
}  # fmt: skip
"""Where waiting helps, and for how long at first."""
