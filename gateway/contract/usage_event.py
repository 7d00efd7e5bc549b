"""Usage events: what the gateway (or the expire job) appends to a shard's stream, and drain turns into ledger rows. Pure.

Two kinds travel in one stream. A `UsageEvent` is written by settle, exactly one for each admitted request. A
`RefusalCount` says how often one key was refused for one reason on one route in one minute; a flood of refused requests
is a number, not a flood of rows. Fields are only ever added; a reader ignores what it does not know and has a default
for what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, cast

import orjson

from gateway.contract.ids import AccountKind

Outcome = Literal["completed", "client_gone", "upstream_failed", "cut", "expired"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "client_gone", "upstream_failed", "cut", "expired")

PATH_LENGTH_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One admitted request. Times in milliseconds since 1970 UTC by Redis's clock; money in microcredits."""

    request_id: str
    admitted_at_ms: int
    ended_at_ms: int
    organization: str
    """The organization's tag."""
    account: str
    account_name: str
    account_kind: AccountKind
    key: str
    route: str
    method: str
    path: str
    """The target's path, cut at PATH_LENGTH_MAX characters; never the query."""
    status: int
    """What the client was answered; 0 if it was gone before a head was sent."""
    outcome: Outcome
    bytes_in: int = 0
    bytes_out: int = 0
    upstream_ms: int = 0
    """From the head sent upstream until the head of the answer."""
    total_ms: int = 0
    held: int = 0
    cost: int = 0
    windows: tuple[int, int, int] = (0, 0, 0)
    """Start of the window at key, account and organization in which the hold was placed, ms."""
    units: dict[str, int] = field(default_factory=dict)
    session: str | None = None
    computer: str | None = None
    trace: str | None = None

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCount:
    """How often a known key was refused on a route for a reason in the minute that starts at `minute_ms`.

    `id` is unique to this count: drained twice, it is one row.
    """

    id: str
    minute_ms: int
    organization: str
    account: str
    key: str
    route: str
    reason: str
    count: int

    def encode(self) -> bytes:
        return orjson.dumps({"kind": "refused", **asdict(self)})


class EventError(ValueError):
    """An entry of the stream that is not an event; the message names what is wrong, never the contents."""


def decode(data: bytes) -> UsageEvent | RefusalCount:
    """Read one entry of the stream. Raises EventError if it lacks what every event has."""
    try:
        fields = cast(Mapping[str, Any], orjson.loads(data))
        if fields.get("kind") == "refused":
            return _refusal_count(fields)
        return _usage_event(fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EventError(f"not an event: {type(error).__name__} at {str(error)[:80]}") from error


def _usage_event(fields: Mapping[str, Any]) -> UsageEvent:
    get = fields.get
    windows = get("windows") or (0, 0, 0)
    return UsageEvent(
        request_id=fields["request_id"],
        admitted_at_ms=int(fields["admitted_at_ms"]),
        ended_at_ms=int(fields["ended_at_ms"]),
        organization=fields["organization"],
        account=fields["account"],
        account_name=get("account_name", ""),
        account_kind=get("account_kind", "service-account"),
        key=fields["key"],
        route=fields["route"],
        method=get("method", ""),
        path=get("path", ""),
        status=int(get("status", 0)),
        outcome=fields["outcome"],
        bytes_in=int(get("bytes_in", 0)),
        bytes_out=int(get("bytes_out", 0)),
        upstream_ms=int(get("upstream_ms", 0)),
        total_ms=int(get("total_ms", 0)),
        held=int(get("held", 0)),
        cost=int(fields["cost"]),
        windows=(int(windows[0]), int(windows[1]), int(windows[2])),
        units=get("units") or {},
        session=get("session"),
        computer=get("computer"),
        trace=get("trace"),
    )


def _refusal_count(fields: Mapping[str, Any]) -> RefusalCount:
    return RefusalCount(
        id=fields["id"],
        minute_ms=int(fields["minute_ms"]),
        organization=fields["organization"],
        account=fields["account"],
        key=fields["key"],
        route=fields["route"],
        reason=fields["reason"],
        count=int(fields["count"]),
    )
