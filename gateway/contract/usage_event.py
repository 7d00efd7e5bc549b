"""Usage events: what the gateway (or the expire job) appends to a shard's stream, and drain turns into ledger rows. Pure.

Three kinds travel in one stream. A `UsageEvent` is written by settle, exactly one for each admitted request. A
`RefusalCount` says how often one key was refused for one reason on one route in one minute; a flood of refused requests
is a number, not a flood of rows. An `AlertCrossing` is written by settle, once, when what a level has spent reaches one of
its thresholds. Fields are only ever added; a reader ignores what it does not know and has a default
for what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, cast

import orjson

from gateway.contract.ids import LEVELS, AccountKind, Level

Outcome = Literal["completed", "client_gone", "upstream_failed", "cut", "expired"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "client_gone", "upstream_failed", "cut", "expired")

PATH_LENGTH_MAX: Final = 256

_WHOLE_MAX: Final = 2**63 - 1
"""What a ledger row can hold: one entry out of range must not stop the draining of the others."""


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
    """What was metered, by unit."""
    is_estimated: bool = False
    """The upstream did not report its usage: the larger of what was measured and what was estimated is charged."""
    session: str | None = None
    computer: str | None = None
    trace: str | None = None
    client_request_id: str | None = None
    """X-Request-Id as the client gave it; the upstream and the client's answer have it instead of `request_id`."""

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
    level: str = ""
    """Whose limit it was: key, account or organization; "" if it was none's."""
    observed: bool = False
    """The level only observes: it would have refused these requests, and they were let through."""

    def encode(self) -> bytes:
        return orjson.dumps({"kind": "refused", **asdict(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertCrossing:
    """What a level has spent in a window has reached a threshold, in percent of its limit. Money in microcredits."""

    organization: str
    """The organization's tag."""
    level: Level
    id: str
    """Key id, account id or organization tag, by `level`."""
    window_ms: int
    threshold: int
    limit: int
    spent: int
    at_ms: int

    def encode(self) -> bytes:
        """As settle writes it."""
        fields = {"kind": "alert", **asdict(self), "window": self.window_ms}
        del fields["window_ms"]
        return orjson.dumps(fields)


Event = UsageEvent | RefusalCount | AlertCrossing


class EventError(ValueError):
    """An entry of the stream that is not an event; the message names what is wrong, never the contents."""


def decode(data: bytes) -> Event:
    """Read one entry of the stream. Raises EventError if it lacks what every event has."""
    try:
        fields = cast(Mapping[str, Any], orjson.loads(data))
        kind = fields.get("kind")
        if kind == "refused":
            return _refusal_count(fields)
        if kind == "alert":
            return _alert_crossing(fields)
        return _usage_event(fields)
    except KeyError as error:
        raise EventError(f"not an event: {error} is missing") from None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        # No more than the kind of error: the message of int() repeats the value, and a value may be anybody's.
        raise EventError(f"not an event: a value is not what it should be ({type(error).__name__})") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not true or false")
    return value


def _whole(value: Any) -> int:
    number = int(value)
    if not 0 <= number <= _WHOLE_MAX:
        raise ValueError("out of range")
    return number


def _usage_event(fields: Mapping[str, Any]) -> UsageEvent:
    get = fields.get
    windows = get("windows") or (0, 0, 0)
    return UsageEvent(
        request_id=_text(fields["request_id"]),
        admitted_at_ms=_whole(fields["admitted_at_ms"]),
        ended_at_ms=_whole(fields["ended_at_ms"]),
        organization=_text(fields["organization"]),
        account=_text(fields["account"]),
        account_name=_text(get("account_name", "")),
        account_kind=cast("AccountKind", _text(get("account_kind", "service-account"))),
        key=_text(fields["key"]),
        route=_text(fields["route"]),
        method=_text(get("method", "")),
        path=_text(get("path", "")),
        status=_whole(get("status", 0)),
        outcome=cast("Outcome", _text(fields["outcome"])),
        bytes_in=_whole(get("bytes_in", 0)),
        bytes_out=_whole(get("bytes_out", 0)),
        upstream_ms=_whole(get("upstream_ms", 0)),
        total_ms=_whole(get("total_ms", 0)),
        held=_whole(get("held", 0)),
        cost=_whole(fields["cost"]),
        windows=(_whole(windows[0]), _whole(windows[1]), _whole(windows[2])),
        units={_text(unit): _whole(count) for unit, count in (get("units") or {}).items()},
        is_estimated=_flag(get("is_estimated", False)),
        session=_optional_text(get("session")),
        computer=_optional_text(get("computer")),
        trace=_optional_text(get("trace")),
        client_request_id=_optional_text(get("client_request_id")),
    )


def _refusal_count(fields: Mapping[str, Any]) -> RefusalCount:
    return RefusalCount(
        id=_text(fields["id"]),
        minute_ms=_whole(fields["minute_ms"]),
        organization=_text(fields["organization"]),
        account=_text(fields["account"]),
        key=_text(fields["key"]),
        route=_text(fields["route"]),
        reason=_text(fields["reason"]),
        count=_whole(fields["count"]),
        level=_text(fields.get("level", "")),
        observed=_flag(fields.get("observed", False)),
    )


def _alert_crossing(fields: Mapping[str, Any]) -> AlertCrossing:
    level = _text(fields["level"])
    if level not in LEVELS:
        raise ValueError("not a level")
    return AlertCrossing(
        organization=_text(fields["organization"]),
        level=level,
        id=_text(fields["id"]),
        window_ms=_whole(fields["window"]),
        threshold=_whole(fields["threshold"]),
        limit=_whole(fields["limit"]),
        spent=_whole(fields["spent"]),
        at_ms=_whole(fields["at_ms"]),
    )
