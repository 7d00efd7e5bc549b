"""Quota of a key, explained: the chain of levels above it, which of them binds, and whether a request would be admitted now.

Pure. It judges as `scripts/admit.lua` does and in the same order, on figures read a moment ago: the gateway may answer
otherwise the next instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from control.domain.budgets import Standing
from gateway.contract.ids import Level
from gateway.contract.money import Microcredits, format_credits
from gateway.contract.records import Budget, Pace

Reason = Literal[
    "not_ready",
    "key_disabled",
    "key_revoked",
    "key_expired",
    "account_inactive",
    "account_deleted",
    "organization_inactive",
    "organization_deleted",
    "rate_limited",
    "too_many_in_flight",
    "budget_exceeded",
]

_MINUTE_US: Final = 60_000_000


@dataclass(frozen=True, slots=True)
class Link:
    """One level of the chain. `status` may be `expired` for a key. `due_us`: when the next request would be due if they came
    evenly, by Redis's clock. `standing` is None while Redis does not answer, `is_known` false if it has no such record."""

    level: Level
    id: str
    name: str
    status: str
    budget: Budget
    pace: Pace
    standing: Standing | None
    due_us: int = 0
    is_known: bool = True

    @property
    def enforces(self) -> bool:
        return self.budget.enforcement == "enforce"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why the next request would be refused, for people too. `level` is None if no level's rule is the reason."""

    reason: Reason
    level: Level | None
    detail: str


@dataclass(frozen=True, slots=True)
class Quota:
    """`binding` is the level with the least left among those that enforce a limit; None: nothing limits. `admits` says whether
    the cheapest request would pass, None while nobody can tell; `refusal` why not."""

    chain: tuple[Link, Link, Link]
    binding: Level | None
    effective_remaining: Microcredits | None
    admits: bool | None
    refusal: Verdict | None
    explanation: str


def explained(chain: tuple[Link, Link, Link], now_us: int, *, is_loaded: bool, is_answering: bool) -> Quota:
    """The chain is key, account, organization. Unless Redis `is_answering`, no figure is known."""
    limited = [link for link in chain if link.enforces and link.budget.limit is not None]
    binding, remaining = None, None
    if is_answering and limited:
        binding = min(limited, key=_remaining)
        remaining = _remaining(binding)
    elif limited:
        binding = limited[0] if len(limited) == 1 else None
    refusal = refusal_of(chain, now_us, is_loaded=is_loaded) if is_answering else None
    return Quota(
        chain=chain,
        binding=None if binding is None else binding.level,
        effective_remaining=remaining,
        admits=refusal is None if is_answering else None,
        refusal=refusal,
        explanation=_explanation(chain, limited, binding),
    )


def refusal_of(chain: Sequence[Link], now_us: int, *, is_loaded: bool) -> Verdict | None:
    """Why a request that costs nothing would be refused now; None if it would pass. Every `standing` is there."""
    if not is_loaded or not all(link.is_known for link in chain):
        detail = "Redis is being loaded; until then every request is answered 503."
        return Verdict("not_ready", None, detail)
    for link in chain:
        if link.status not in ("active", "expired"):
            return Verdict(
                _STATUS[link.level, link.status], link.level, f"The {link.level} is {link.status}."
            )
    if chain[0].status == "expired":
        return Verdict("key_expired", "key", "The key has expired.")
    enforcing = [link for link in chain if link.enforces]
    for link in enforcing:
        if (verdict := _pace_refusal(link, now_us)) is not None:
            return verdict
    for link in enforcing:
        if link.budget.limit is not None and _remaining(link) == 0:
            detail = f"The credit limit of the {link.level} leaves nothing of {_limit(link)} credits{_until(link)}."
            return Verdict("budget_exceeded", link.level, detail)
    return None


_STATUS: Final[dict[tuple[Level, str], Reason]] = {
    ("key", "disabled"): "key_disabled",
    ("key", "revoked"): "key_revoked",
    ("account", "inactive"): "account_inactive",
    ("account", "deleted"): "account_deleted",
    ("organization", "inactive"): "organization_inactive",
    ("organization", "deleted"): "organization_deleted",
}


def _pace_refusal(link: Link, now_us: int) -> Verdict | None:
    pace, level = link.pace, link.level
    if pace.per_minute is not None:
        every_us = -(-_MINUTE_US // pace.per_minute)
        burst = pace.per_minute if pace.burst is None else pace.burst
        due_us = max(link.due_us, now_us)
        if due_us > now_us + burst * every_us:  # this pace cannot have made it: another one did, before
            due_us = now_us + (burst - 1) * every_us
        wait_us = due_us + every_us - burst * every_us - now_us
        if wait_us > 0:
            seconds = f"{wait_us / 1_000_000:.3g}"
            detail = f"The {level} has made the {pace.per_minute} requests a minute that it may; the next one in {seconds} s."
            return Verdict("rate_limited", level, detail)
    in_flight = link.standing.in_flight if link.standing is not None else 0
    if pace.in_flight is not None and in_flight >= pace.in_flight:
        detail = f"The {level} has {in_flight} requests under way, and may have {pace.in_flight}."
        return Verdict("too_many_in_flight", level, detail)
    return None


def _remaining(link: Link) -> Microcredits:
    remaining = link.standing.remaining if link.standing is not None else None
    return Microcredits(0) if remaining is None else remaining


def _explanation(chain: Sequence[Link], limited: Sequence[Link], binding: Link | None) -> str:
    """One sentence: whose limit it is, how much of it is left, until when; and who would refuse, did it not only observe."""
    observing = [link.level for link in chain if not link.enforces and link.budget.limit is not None]
    watched = "" if not observing else f"; the limit of the {' and the '.join(observing)} is only observed"
    if not limited:
        return f"Nothing limits what this key may spend{watched}."
    if binding is None:
        levels = " and the ".join(link.level for link in limited)
        return (
            f"The limits of the {levels} hold together, and what is left is not known without Redis{watched}."
        )
    limit = f"{_limit(binding)} credits"
    if binding.level == "key":
        words = f"the key's own limit binds, {limit}"
    elif all(link.level != "key" for link in limited):
        words = f"inherits the {binding.level}'s limit, {limit} shared"
    else:
        words = f"the {binding.level}'s limit binds before the key's own, {limit} shared"
    left = (
        "" if binding.standing is None else f": {format_credits(_remaining(binding))} left{_until(binding)}"
    )
    return f"{words[0].upper()}{words[1:]}{left}{watched}."


def _limit(link: Link) -> str:
    limit = link.budget.limit if link.standing is None else link.standing.limit
    return format_credits(limit or 0)


def _until(link: Link) -> str:
    resets_at = None if link.standing is None else link.standing.resets_at
    return "" if resets_at is None else f", afresh at {resets_at:%Y-%m-%dT%H:%M:%SZ}"
