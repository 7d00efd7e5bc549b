"""Organizations, accounts and keys that share what they have, each known by what it may spend."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.contract.ids import AccountId, KeyId, OrganizationTag
from gateway.contract.money import format_credits
from tests.faults.watcher import Entity
from tests.system.installation import Installation, Row, Workload

ORGANIZATIONS = 3
KEYS = 3
"""Of each account."""
PER_MINUTE, BURST = 60, 15


@dataclass(slots=True)
class Town:
    """Made by `settled_town`."""

    installation: Installation
    workloads: list[Workload] = field(default_factory=list)
    entities: list[Entity] = field(default_factory=list)
    careful: set[str] = field(default_factory=set)
    """Organizations (ids) in which nobody uses a route on which a request may cost more than is held for it."""
    paced: list[Workload] = field(default_factory=list)
    """Keys of PER_MINUTE and BURST."""
    unlimited: Workload | None = None
    """A key without any limit."""

    @property
    def tags(self) -> list[OrganizationTag]:
        return [OrganizationTag(entity.id) for entity in self.entities if entity.level == "organization"]

    @property
    def holds(self) -> list[str]:
        """Names of the sets of holds that they use."""
        layout = self.installation.layout
        return [layout.holds(shard) for shard in sorted({layout.shard_of(tag) for tag in self.tags})]

    async def organization(self, limit: int | None = None) -> dict[str, Any]:
        made = await self.installation.organization(_credits(limit))
        tag = OrganizationTag(made["id"].removeprefix("org_"))
        self._note(Entity("organization", tag, self.installation.layout.organization(tag), limit))
        return made

    async def account(
        self, organization: dict[str, Any], limit: int | None = None, in_flight: int | None = None
    ) -> dict[str, Any]:
        made = await self.installation.account(organization, _credits(limit), requests_in_flight=in_flight)
        name = self.installation.layout.account(AccountId(made["id"]))
        self._note(Entity("account", made["id"], name, limit, in_flight))
        return made

    async def key(
        self, organization: dict[str, Any], account: dict[str, Any], limit: int | None = None, **pace: int
    ) -> Workload:
        made = await self.installation.key(organization, account, _credits(limit), "never", **pace)
        name = self.installation.layout.key(KeyId(made.key))
        self._note(Entity("key", made.key, name, limit, pace.get("requests_in_flight")))
        self.workloads.append(made)
        return made

    def _note(self, entity: Entity) -> None:
        self.entities.append(entity)


async def settled_town(installation: Installation, chance: random.Random, wanted: int) -> Town:
    """Limits of all levels, each less than what is asked of it when every key is asked for `wanted` microcredits.

    The first account of each organization has a limit of its own; the keys of the second do; the pace of the third is
    bounded, and so are those of two of its keys. The first organization is careful. One more has no limit at all.
    """
    town = Town(installation)

    def part(of: float, keys: int = 1) -> int:
        return int(of * chance.uniform(0.8, 1.2) * wanted * keys)

    for number in range(ORGANIZATIONS):
        organization = await town.organization(part(0.3 if number == 1 else 0.5, 3 * KEYS))
        if number == 0:
            town.careful.add(organization["id"])
        shared = await town.account(organization, part(0.4, KEYS))
        apart = await town.account(organization)
        paced = await town.account(organization, in_flight=60)
        for _ in range(KEYS):
            await town.key(organization, shared)
            await town.key(organization, apart, part(0.4))
        await town.key(organization, paced)
        await town.key(organization, paced, requests_in_flight=8)
        slow = await town.key(organization, paced, requests_per_minute=PER_MINUTE, burst=BURST)
        town.paced.append(slow)
    free = await town.organization()
    town.unlimited = await town.key(free, await town.account(free))
    return town


def _credits(limit: int | None) -> str | None:
    return None if limit is None else format_credits(limit)


def overshoot(rows: Sequence[Row], entity: Entity, admitted_until_ms: float) -> int:
    """By how much the requests that name the entity and were admitted until then cost more than was held: microcredits."""
    return sum(
        max(0, row["cost"] - row["held"])
        for row in rows
        if row[entity.level] == entity.id and row["admitted_at"].timestamp() * 1000 <= admitted_until_ms
    )


def keeps_pace(rows: Sequence[Row]) -> bool:
    """Whether these, of one key, were never admitted faster than PER_MINUTE and BURST allow."""
    due_ms = 0.0
    every_ms = 60_000 / PER_MINUTE
    for at_ms in sorted(row["admitted_at"].timestamp() * 1000 for row in rows):
        due_ms = max(due_ms, at_ms) + every_ms
        if due_ms > at_ms + BURST * every_ms + 1:  # admission is written down in whole milliseconds
            return False
    return True
