"""What is written down about a request: the usage event, and a line of the access log. Pure.

The event is `contract.usage_event.UsageEvent`, formatted by hand because it is made for every request: 1.3 µs instead of 3.1
for a dict through orjson and 9 for the dataclass. Everything put between quotes here is known to need no escaping: ids and
names by their grammar, the method (RFC 9110 token) and the normalised path (RFC 3986) because neither can hold a quote, a
backslash or a control character. A test holds the bytes against `usage_event.decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from gateway.contract.records import Identity
from gateway.contract.token import holds_token
from gateway.contract.usage_event import OUTCOMES, PATH_LENGTH_MAX, Outcome
from gateway.http1.head import RequestHead
from gateway.refusals import Refusal

ATTRIBUTION_LENGTH_MAX: Final = 128

_OUTCOMES: Final = {outcome: outcome.encode() for outcome in OUTCOMES}


def caller_fields(identity: Identity) -> bytes:
    """The part of every event that says who: `"organization":…,` to `"key":…,`. Made once a caller."""
    fields = {
        "organization": identity.organization_tag,
        "account": identity.account_id,
        "account_name": identity.account_name,
        "account_kind": identity.account_kind,
        "key": identity.key_id,
    }
    return orjson.dumps(fields)[1:-1] + b","


def usage_event(
    request_id: bytes,
    hold: bytes,
    who: bytes,
    route: bytes,
    head: RequestHead,
    path: bytes,
    outcome: Outcome,
    numbers: tuple[int, int, int, int, int, int],
    units: Mapping[str, int] = {},
    *,
    is_estimated: bool = False,
) -> bytes:
    """The usage event of a request that ended, as JSON.

    `who` is from `caller_fields`; `numbers` are status, bytes in, bytes out, upstream_ms, total_ms and cost; `units` what was
    metered. Names of units are those of a route's price: words that need no escaping.
    """
    status, bytes_in, bytes_out, upstream_ms, total_ms, cost = numbers
    _, held, admitted_at_ms, key_window, account_window, organization_window = hold.rsplit(b"|", 5)
    return (
        b'{"request_id":"%b","admitted_at_ms":%b,"ended_at_ms":%d,%b"route":"%b","method":"%b","path":"%b","status":%d,'
        b'"outcome":"%b","bytes_in":%d,"bytes_out":%d,"upstream_ms":%d,"total_ms":%d,"held":%b,"cost":%d,'
        b'"windows":[%b,%b,%b]%b}'
    ) % (
        request_id, admitted_at_ms, int(admitted_at_ms) + total_ms, who, route, head.method,
        path[:PATH_LENGTH_MAX], status, _OUTCOMES[outcome], bytes_in, bytes_out, upstream_ms, total_ms, held, cost,
        key_window, account_window, organization_window,
        _more(head, units, is_estimated) if units or is_estimated or head.is_attributed or head.request_id else b"",
    )  # fmt: skip


def grown(hold: bytes, added: int) -> bytes:
    """The hold as extend.lua rewrites it when `added` microcredits are held beside those that it has."""
    head, amount, rest = hold.rsplit(b"|", 5)[0], amount_of(hold), hold.rsplit(b"|", 4)[1:]
    return b"%b|%d|%b" % (head, amount + added, b"|".join(rest))


def amount_of(hold: bytes) -> int:
    """Microcredits in a hold."""
    return int(hold.rsplit(b"|", 5)[1])


def access_line(address: bytes, event: bytes) -> bytes:
    """The access log's line of an admitted request: its event, and where it came from."""
    return b'{"log":"access","client":"%b",%b' % (address, event[1:])


def refused_line(
    request_id: bytes,
    address: bytes,
    identity: Identity | None,
    route: str,
    head: RequestHead,
    path: bytes,
    no: Refusal,
) -> bytes:
    """The access log's line of a request that was refused."""
    return orjson.dumps(
        {
            "log": "access",
            "client": address.decode(),
            "request_id": request_id.decode(),
            "client_request_id": head.request_id.decode("ascii") if head.request_id else None,
            "organization": identity.organization_tag if identity else None,
            "account": identity.account_id if identity else None,
            "key": identity.key_id if identity else None,
            "route": route,
            "method": head.method.decode("ascii"),
            "path": path[:PATH_LENGTH_MAX].decode("ascii"),
            "status": no.public_status,
            "outcome": "refused",
            "reason": no.reason.value,
            "code": no.public_code,
        }
    )


def _more(head: RequestHead, units: Mapping[str, int], is_estimated: bool) -> bytes:
    """What only some events have."""
    more = b""
    if units:
        more = b',"units":{%b}' % b",".join(
            b'"%b":%d' % (unit.encode(), count) for unit, count in units.items()
        )
    if is_estimated:
        more += b',"is_estimated":true'
    return more + _attribution(head) if head.is_attributed or head.request_id else more


def _attribution(head: RequestHead) -> bytes:
    """What the workload says of itself, for the ledger: printable ASCII, bounded, no token, or nothing."""
    named = (
        (b"session", head.session), (b"computer", head.computer), (b"trace", head.trace),
        (b"client_request_id", head.request_id),
    )  # fmt: skip
    return b"".join(
        b',"%b":%b' % (name, orjson.dumps(value.decode("ascii")))
        for name, value in named
        if value and len(value) <= ATTRIBUTION_LENGTH_MAX and value.isascii() and not holds_token(value)
    )
