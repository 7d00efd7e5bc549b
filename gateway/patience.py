"""How long a request may stand still, by who is waited for. Pure."""

from __future__ import annotations

from enum import Enum
from typing import Final

from gateway.routing import Timeouts

HALF_TUNNEL_S: Final = 30.0
"""How long one direction of a tunnel may be silent when the other has ended."""


class Overdue(Enum):
    """Who has been waited for too long."""

    READER = "the client does not take the answer"
    TUNNEL = "nothing moves in the tunnel"
    BODY = "the client does not send the body"
    REST_OF_BODY = "the client does not send the rest of a body that was answered already"
    SENDING = "the upstream does not take the request"
    FIRST_BYTE = "the upstream does not begin its answer"
    BETWEEN_BYTES = "the upstream does not go on with its answer"


def least_patience_s(timeouts: Timeouts, body_timeout_s: float) -> float:
    """How long anything may stand still before `overdue` need be asked."""
    return min(
        timeouts.first_byte_s, timeouts.between_bytes_s, timeouts.tunnel_idle_s, body_timeout_s, HALF_TUNNEL_S
    )


def overdue(
    still_s: float,
    timeouts: Timeouts,
    body_timeout_s: float,
    *,
    is_tunnel: bool,
    client_is_full: bool,
    upstream_is_full: bool,
    body_done: bool,
    answer_begun: bool,
    answer_done: bool,
) -> Overdue | None:
    """Who is waited for, if nothing has moved for longer than is allowed for that. `body_timeout_s` is the client's."""
    limit_s = body_timeout_s
    if client_is_full:
        waited_for = Overdue.READER
    elif is_tunnel:
        waited_for, limit_s = Overdue.TUNNEL, timeouts.tunnel_idle_s
        if body_done or answer_done:
            limit_s = min(limit_s, HALF_TUNNEL_S)
    elif answer_done:
        waited_for = Overdue.REST_OF_BODY
    elif answer_begun:
        waited_for, limit_s = Overdue.BETWEEN_BYTES, timeouts.between_bytes_s
    elif body_done:
        waited_for, limit_s = Overdue.FIRST_BYTE, timeouts.first_byte_s
    elif upstream_is_full:
        waited_for, limit_s = Overdue.SENDING, timeouts.between_bytes_s
    else:
        waited_for = Overdue.BODY
    return waited_for if still_s > limit_s else None
