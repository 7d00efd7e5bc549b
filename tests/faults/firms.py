"""Organizations that are told of what they spend, and whose every limit is used up in the end: which thresholds they cross."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.contract.ids import OrganizationTag
from gateway.contract.money import format_credits
from tests.integration.receivers import Receiver
from tests.system.installation import Installation, Workload

PRICE = 10_000
"""Of each request, in microcredits."""
BEYOND = 50
"""So many requests more each key makes than its limit pays for."""
KEY_LIMITS = (150, 300, 450, 600, 750)
"""Of the keys of each account, in requests. What is above them has the sum, so that all are used up in the end."""
MANY = (25, 50, 80, 100)
"""Thresholds of one organization; every other entity has the usual ones."""
USUAL = (80, 100)


class Crossing(NamedTuple):
    """What is told once in each window."""

    level: str
    id: str
    threshold: int
    limit: str


@dataclass(slots=True)
class Firm:
    """An organization with what it may spend, in requests, and who is told."""

    tag: OrganizationTag
    id: str
    limit: int
    thresholds: tuple[int, ...]
    secret: str
    receiver: Receiver
    accounts: dict[str, int] = field(default_factory=dict)
    keys: list[tuple[Workload, int]] = field(default_factory=list)

    def crossings(self) -> Counter[Crossing]:
        """What all of them cross until nothing is left."""
        found: Counter[Crossing] = Counter()
        found.update(crossings("organization", self.id, self.limit, self.thresholds))
        for account, limit in self.accounts.items():
            found.update(crossings("account", account, limit))
        for workload, limit in self.keys:
            found.update(crossings("key", workload.key, limit))
        return found


def crossings(level: str, entity: str, limit: int, thresholds: tuple[int, ...] = USUAL) -> list[Crossing]:
    return [Crossing(level, entity, threshold, credits_of(limit)) for threshold in thresholds]


def credits_of(requests: int) -> str:
    return format_credits(requests * PRICE)


async def founded(installation: Installation, receiver: Receiver, thresholds: tuple[int, ...]) -> Firm:
    """An organization of two accounts, told by webhook at these thresholds."""
    each = sum(KEY_LIMITS)
    limit = 2 * each
    made = await installation.organization(credits_of(limit), alert_thresholds=list(thresholds))
    where = {"kind": "webhook", "url": receiver.url}
    destination = await installation.call(
        "POST", f"/v1/organizations/{made['id']}/alerts/destinations", where
    )
    tag = OrganizationTag(made["id"].removeprefix("org_"))
    firm = Firm(tag, made["id"], limit, thresholds, destination["secret"], receiver)
    for _ in range(2):
        account = await installation.account(made, credits_of(each))
        firm.accounts[account["id"]] = each
        for share in KEY_LIMITS:
            firm.keys.append((await installation.key(made, account, credits_of(share)), share))
    return firm


def deck(keys: list[tuple[Workload, int]]) -> list[Workload]:
    """In which order keys ask: each from the beginning on, evenly, until it has asked for all that it may and something beyond;
    one comes to its end after another."""
    placed = [
        (turn / (limit + BEYOND) * (number + 1) / len(keys), number, workload)
        for number, (workload, limit) in enumerate(keys)
        for turn in range(limit + BEYOND)
    ]
    return [workload for _, _, workload in sorted(placed, key=lambda card: card[:2])]
