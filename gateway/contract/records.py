"""Rule records as Redis hashes, and the packed form of a hold. Pure.

Control writes `…Rules` with the publish script; the gateway reads back an `Identity`, the facts that never change.
Counter fields (`window`, `spent`, `held` and those beside them) belong to the scripts and appear here only for reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

from gateway.contract.grants import Grant, packed
from gateway.contract.ids import AccountId, AccountKind, KeyId, OrganizationTag, RequestId
from gateway.contract.money import Microcredits
from gateway.contract.periods import Period
from gateway.contract.token import Digest

OrganizationStatus = Literal["active", "inactive", "deleted"]
AccountStatus = Literal["active", "inactive", "deleted"]
KeyStatus = Literal["active", "disabled", "revoked"]
Enforcement = Literal["enforce", "observe"]

Field = str | int | bytes


ALERTS_DEFAULT: Final = (80, 100)
"""Percent of a limit at which somebody is told."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit (None = unlimited, 0 = blocks) and how often it starts afresh.

    `since_ms` is when the period was last set: no window starts before it. A level that only observes refuses nothing, and
    counts what it would have refused. `alerts` are whole percents of the limit, ascending.
    """

    limit: Microcredits | None = None
    period: Period = "never"
    billing_day: int = 1
    since_ms: int = 0
    enforcement: Enforcement = "enforce"
    alerts: tuple[int, ...] = ALERTS_DEFAULT

    def fields(self) -> list[Field]:
        limit: Field = "" if self.limit is None else self.limit
        fields: list[Field] = ["limit", limit, "period", self.period, "billing_day", self.billing_day]
        fields += ["since", self.since_ms, "enforcement", self.enforcement]
        fields += ["alerts", ",".join(map(str, self.alerts))]
        return fields


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast requests may come: so many a minute, `burst` of them at once (None: a whole minute's), and so many at the same
    time (0 blocks). None = no bound."""

    per_minute: int | None = None
    burst: int | None = None
    in_flight: int | None = None

    def fields(self) -> list[Field]:
        burst = self.per_minute if self.burst is None else self.burst
        values = (("rpm", self.per_minute), ("burst", burst), ("in_flight_max", self.in_flight))
        fields: list[Field] = []
        for name, value in values:
            fields += [name, "" if value is None else value]
        return fields


@dataclass(frozen=True, slots=True)
class OrganizationRules:
    """What Redis holds of an organization. `grants` are those that will expire, soonest first."""

    tag: OrganizationTag
    name: str
    version: int
    status: OrganizationStatus
    budget: Budget
    grants: tuple[Grant, ...] = ()

    def fields(self) -> list[Field]:
        return [
            "status",
            self.status,
            "name",
            self.name,
            *self.budget.fields(),
            "grants",
            packed(self.grants),
        ]


@dataclass(frozen=True, slots=True)
class AccountRules:
    """What Redis holds of a service account or member."""

    id: AccountId
    name: str
    kind: AccountKind
    version: int
    status: AccountStatus
    budget: Budget
    pace: Pace = Pace()

    def fields(self) -> list[Field]:
        own: list[Field] = ["status", self.status, "name", self.name, "kind", self.kind]
        return [*own, *self.budget.fields(), *self.pace.fields()]


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What Redis holds of a key. `digest` is known only in the call that mints the token; later publishes leave it be."""

    id: KeyId
    version: int
    status: KeyStatus
    budget: Budget
    expires_at_ms: int | None
    token_hash: str
    account_id: AccountId
    account_name: str
    account_kind: AccountKind
    organization_tag: OrganizationTag
    organization_name: str
    digest: Digest | None = None
    pace: Pace = Pace()

    def fields(self) -> list[Field]:
        fields: list[Field] = ["status", self.status, *self.budget.fields(), *self.pace.fields()]
        fields += ["expires_at", self.expires_at_ms or 0, "hash", self.token_hash]
        fields += [
            "account",
            self.account_id,
            "account_name",
            self.account_name,
            "account_kind",
            self.account_kind,
        ]
        fields += ["organization", self.organization_tag, "organization_name", self.organization_name]
        if self.digest is not None:
            fields += ["digest", self.digest]
        return fields


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token stands for. None of it ever changes: names are immutable and a key never moves."""

    key_id: KeyId
    account_id: AccountId
    account_name: str
    account_kind: AccountKind
    organization_tag: OrganizationTag
    organization_name: str

    @property
    def principal(self) -> str:
        """`service-account/<organization>/<name>`, as the upstream is told."""
        return f"{self.account_kind}/{self.organization_name}/{self.account_name}"


IDENTITY_FIELDS: Final = (
    "digest", "hash", "account", "account_name", "account_kind", "organization", "organization_name",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """A key record as the cold path reads it: the identity, and what the token is to be compared with."""

    identity: Identity
    digest: bytes | None
    token_hash: str


def read_key_facts(key_id: KeyId, values: Sequence[bytes | None]) -> KeyFacts | None:
    """The answer to HMGET IDENTITY_FIELDS; None if there is no such record (or an incomplete one: same answer)."""
    digest, token_hash, *facts = values
    if token_hash is None or any(fact is None for fact in facts):
        return None
    account, account_name, kind, tag, organization_name = (cast(bytes, fact).decode() for fact in facts)
    identity = Identity(
        key_id=key_id,
        account_id=AccountId(account),
        account_name=account_name,
        account_kind=cast(AccountKind, kind),
        organization_tag=OrganizationTag(tag),
        organization_name=organization_name,
    )
    return KeyFacts(identity, digest, token_hash.decode())


COUNTER_FIELDS: Final = (
    "window", "window_end", "spent", "held", "in_flight", "tat", "observed", "lost", "alerted",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Counters:
    """Live counters of one level, as the scripts left them. They speak of `window_ms`, which may have ended since; all but
    `in_flight`, `tat_us` and `lost`, which know no windows."""

    window_ms: int
    spent: Microcredits
    held: Microcredits
    in_flight: int = 0
    tat_us: int = 0
    """When the next request would be due if they came evenly, in microseconds since 1970."""
    observed: int = 0
    """Requests that the level would have refused, did it not only observe."""
    lost: Microcredits = Microcredits(0)
    """Credits of grants that expired unused."""
    alerted: int = 0
    """The percent of the limit up to which somebody was told."""


def read_counters(values: Sequence[bytes | None]) -> Counters | None:
    """The answer to HMGET COUNTER_FIELDS; None if there is no such record."""
    window, _, spent, held, in_flight, tat, observed, lost, alerted = values
    if window is None:
        return None
    return Counters(
        int(window), Microcredits(int(spent or 0)), Microcredits(int(held or 0)), int(in_flight or 0), int(tat or 0),
        int(observed or 0), Microcredits(int(lost or 0)), int(alerted or 0),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hold:
    """Credits set aside for a request in flight, as packed into one member of the holds set.

    request|key|account|organization|route|amount|admitted_at_ms|key window|account window|organization window
    """

    request_id: RequestId
    key_id: KeyId
    account_id: AccountId
    organization_tag: OrganizationTag
    route: str
    amount: Microcredits
    admitted_at_ms: int
    windows: tuple[int, int, int]

    @classmethod
    def unpack(cls, member: bytes) -> Hold:
        """Read a member of the holds set. Raises ValueError if it is not one."""
        try:
            request, key, account, tag, route, amount, admitted, *windows = member.decode("ascii").split("|")
            key_window, account_window, organization_window = (int(window) for window in windows)
            return cls(
                request_id=RequestId(request),
                key_id=KeyId(key),
                account_id=AccountId(account),
                organization_tag=OrganizationTag(tag),
                route=route,
                amount=Microcredits(int(amount)),
                admitted_at_ms=int(admitted),
                windows=(key_window, account_window, organization_window),
            )
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"not a hold: {member[:200]!r}") from error
