"""Alerts in tests of the jobs: an organization with destinations, crossings as settle appends them, and looks behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import asyncpg

from control.delivery.mail import MailServer
from control.delivery.resolver import Resolver
from control.domain import destinations
from control.domain.destinations import SEALING_PURPOSE, Destination, NewDestination
from control.jobs import alerts, drain
from control.jobs.alerts import Post, Told
from control.sealing import Sealing
from gateway.contract.ids import OrganizationTag
from gateway.contract.token import Pepper
from gateway.contract.usage_event import AlertCrossing
from tests.integration.jobs.world import Workload, World

SEALING = Sealing(Pepper(b"\xab" * 16), SEALING_PURPOSE)
"""Of the pepper that processes of these tests are given."""
DAY = timedelta(days=1)


_MAKE = """
INSERT INTO alerts (id, organization, level, entity, reset_period, billing_day, window_ms, threshold,
                    limit_microcredits, spent_microcredits, crossed_at, fanned_out_at)
SELECT 'al_' || $2 || number, $1, 'key', $2 || number, $3, 1, 0, 80, 100, 80, now() - $4 * interval '1 day',
       CASE WHEN $6 THEN now() END
  FROM generate_series(1, $5::int) AS number
"""


@dataclass(slots=True)
class Alerted:
    """One organization, whose key crosses thresholds when it is told to."""

    world: World
    workload: Workload
    server: MailServer | None = None
    timeout_s: float = 10.0
    secrets: dict[str, str] = field(default_factory=dict)
    resolver: Resolver = field(default_factory=Resolver)

    @property
    def postgres(self) -> asyncpg.Connection:
        return self.world.postgres

    @property
    def tag(self) -> OrganizationTag:
        return self.workload.tag

    @property
    def post(self) -> Post:
        return Post(SEALING, self.server, self.timeout_s, self.resolver)

    async def add(self, kind: destinations.Kind = "webhook", **fields: Any) -> Destination:
        new = NewDestination(kind, fields.pop("name", f"our {kind}"), **fields)
        async with self.postgres.transaction():
            created, secret = await destinations.create(self.postgres, self.tag, new, SEALING, actor="test")
        if secret is not None:
            self.secrets[created.id] = secret
        return created

    def crossing(self, threshold: int = 80, **other: Any) -> AlertCrossing:
        fields: dict[str, Any] = {
            "organization": self.tag, "level": "key", "id": self.workload.key, "window_ms": 0, "threshold": threshold,
            "limit": 5_000_000, "spent": 4_100_000, "at_ms": 1_900_000_000_000,
        }  # fmt: skip
        return AlertCrossing(**{**fields, **other})

    async def cross(self, *crossings: AlertCrossing) -> None:
        """Each is in the stream, and then drained."""
        for crossing in crossings:
            await self.world.append(self.workload, crossing.encode())
        await drain.run_once(self.world.context)

    async def make_alerts(
        self, name: str, count: int, *, period: str = "hourly", days_ago: int = 0, fanned_out: bool = True
    ) -> None:
        """So many rows as drain and fan-out leave them, each of an entity of its own."""
        await self.postgres.execute(_MAKE, self.tag, name, period, days_ago, count, fanned_out)

    async def tell(self) -> Told:
        return await alerts.run_once(self.world.context, self.post)

    async def alerts(self) -> list[asyncpg.Record]:
        return await self.postgres.fetch("SELECT * FROM alerts ORDER BY threshold, id")

    async def deliveries(self) -> list[asyncpg.Record]:
        return await self.postgres.fetch("SELECT * FROM alert_deliveries ORDER BY alert, destination")

    async def destination(self, of: Destination) -> Destination:
        return await destinations.get(self.postgres, self.tag, of.id)

    async def let_it_be_due(self) -> None:
        """As if the pauses until the next attempts were over: what was to come first still does."""
        await self.postgres.execute(
            "UPDATE alert_destinations SET paused_until = now() WHERE paused_until > now()"
        )
        await self.postgres.execute(
            "UPDATE alert_deliveries SET next_attempt_at = next_attempt_at - interval '2 hours'"
            " WHERE status = 'pending' AND next_attempt_at IS NOT NULL"
        )

    async def let_a_day_pass(self) -> None:
        """As if everything that was written down had been a day ago; and what waits is due."""
        await self.postgres.execute(
            "UPDATE alert_deliveries SET first_attempt_at = first_attempt_at - $1::interval,"
            " last_attempt_at = last_attempt_at - $1::interval, leased_until = leased_until - $1::interval",
            DAY,
        )
        await self.postgres.execute(
            "UPDATE alert_destinations SET failing_since = failing_since - $1::interval,"
            " delivered_at = delivered_at - $1::interval",
            DAY,
        )
        await self.let_it_be_due()

    async def enable(self, of: Destination, *, enabled: bool = True) -> Destination:
        async with self.postgres.transaction():
            amended, _ = await destinations.amend(
                self.postgres, self.tag, of.id, {"enabled": enabled}, SEALING
            )
        return amended

    def metric(self, name: str, **labels: str) -> float:
        return self.world.context.metrics.registry.get_sample_value(f"tollkeeper_{name}", labels) or 0


async def alerted_in(world: World, **fields: Any) -> Alerted:
    return Alerted(world, await world.add_workload("daily"), **fields)
