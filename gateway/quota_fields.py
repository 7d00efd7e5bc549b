"""What header fields say of a limit that stood in the way. Pure.

`RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-10 (§3, §4): lists of strings with
parameters, as RFC 9651 writes them. `q` and `r` are what is allowed and what is left, in the unit `qu` ("requests" where it is
not said), `w` the window and `t` the time until there is more, in seconds, `pk` whose limit it is. Beside them stand the
`x-ratelimit-…-requests` that SDKs in the manner of OpenAI's read, where it is requests a minute that are limited.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Final

CONCURRENT: Final = "concurrent-requests"
MICROCREDITS: Final = "microcredits"
"""Not in the draft's list of units, which has none for money; a client that does not know it leaves the policy alone."""

_INTEGER_MAX: Final = 999_999_999_999_999
"""RFC 9651 §3.3.1: an Integer has at most 15 digits."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit as header fields tell of it: amounts in `unit`s, times in whole seconds, None where they are not known."""

    policy: str
    """The limit's name, of letters and dashes: the same for every key and account."""
    partition: str
    """Whose limit it is: the id of a key, an account or an organization."""
    allowed: int
    remaining: int = 0
    unit: str = "requests"
    window_s: int | None = None
    reset_s: int | None = None
    burst: int | None = None
    """So many at once, where that is not what is allowed in the window."""


def quota_fields(quota: Quota) -> list[tuple[bytes, bytes]]:
    """The header fields that tell of a limit."""
    key = f";pk=:{b64encode(quota.partition.encode()).decode()}:"
    policy = f'"{quota.policy}";q={_integer(quota.allowed)}'
    if quota.unit != "requests":
        policy += f';qu="{quota.unit}"'
    if quota.window_s is not None:
        policy += f";w={_integer(quota.window_s)}"
    if quota.burst is not None and quota.burst != quota.allowed:
        policy += f";tollkeeper-burst={_integer(quota.burst)}"
    limit = f'"{quota.policy}";r={_integer(quota.remaining)}'
    if quota.reset_s is not None:
        limit += f";t={_integer(quota.reset_s)}"
    fields = [(b"RateLimit-Policy", (policy + key).encode()), (b"RateLimit", (limit + key).encode())]
    if quota.unit == "requests" and quota.reset_s is not None:
        fields += [
            (b"x-ratelimit-limit-requests", b"%d" % quota.allowed),
            (b"x-ratelimit-remaining-requests", b"%d" % quota.remaining),
            (b"x-ratelimit-reset-requests", duration(quota.reset_s).encode()),
        ]
    return fields


def duration(seconds: int) -> str:
    """Seconds as SDKs in the manner of OpenAI's read them: 12 -> "12s", 90 -> "1m30s", 3600 -> "1h0m0s"."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _integer(value: int) -> int:
    return min(max(value, 0), _INTEGER_MAX)
