"""Calls the scripts as both planes do, on one connection, for the tests of the contract. The gateway and control have
their own, quicker ways to say the same; what they must agree on is only what stands here: KEYS, ARGV, answers. One request
is a batch of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError

from gateway.contract import scripts
from gateway.contract.grants import Grant
from gateway.contract.ids import LEVELS, AccountId, KeyId, Level, OrganizationTag
from gateway.contract.layout import EVENT_FIELD, Layout
from gateway.contract.records import AccountRules, Budget, KeyRules, OrganizationRules, Pace
from gateway.contract.scripts import Script
from gateway.contract.token import Digest
from gateway.contract.usage_event import AlertCrossing, decode

Rules = KeyRules | AccountRules | OrganizationRules
Answer = str | int | list[str | int]
"""What a script answers about one request."""

TTL_MS: Final = 60_000
CLOCK: Final = "tk:clock"
ROUTE: Final = "models"


@dataclass(frozen=True, slots=True)
class Workload:
    """A key with its account, its organization and the digest of its token."""

    key: KeyId
    account: AccountId
    tag: OrganizationTag
    digest: Digest

    def records(self, layout: Layout) -> tuple[str, str, str]:
        """The three records, in the order of the scripts' KEYS."""
        return layout.key(self.key), layout.account(self.account), layout.organization(self.tag)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a batch to admit. Without a digest it brings the right one."""

    of: Workload
    amount: int = 0
    id: str = "r1"
    digest: bytes | None = None

    @property
    def head(self) -> str:
        return f"{self.id}|{self.of.key}|{self.of.account}|{self.of.tag}|{ROUTE}"


@dataclass(frozen=True, slots=True)
class Settlement:
    """One settlement of a batch."""

    of: Workload
    hold: str
    cost: int = 0
    event: str = "{}"


def workload(tag: str = "Acme01", account: int = 0, key: int = 0) -> Workload:
    """The same workload for the same numbers, in every test."""
    own_tag = OrganizationTag(tag)
    account_id = AccountId(f"sa_{tag}{account:010d}")
    key_id = KeyId(f"{tag}{account:05d}{key:05d}")
    # Not text: a digest holds any byte, and the scripts compare it as bytes.
    return Workload(
        key_id,
        account_id,
        own_tag,
        Digest(bytes([0, 255, 10, 13]) + sha1(key_id.encode()).digest() + bytes(8)),
    )


def rules_of(
    level: Level,
    of: Workload,
    budget: Budget | None = None,
    version: int = 1,
    *,
    pace: Pace | None = None,
    grants: tuple[Grant, ...] = (),
) -> Rules:
    """Rules of an active record; unlimited unless a budget or a pace is given."""
    own, speed = budget or Budget(), pace or Pace()
    if level == "organization":
        return OrganizationRules(of.tag, f"name-{of.tag}", version, "active", own, grants)
    if level == "account":
        return AccountRules(of.account, "builder", "service-account", version, "active", own, speed)
    return KeyRules(
        id=of.key, version=version, status="active", budget=own, expires_at_ms=None, token_hash=f"hash of {of.key}",
        account_id=of.account, account_name="builder", account_kind="service-account",
        organization_tag=of.tag, organization_name=f"name-{of.tag}", digest=of.digest, pace=speed,
    )  # fmt: skip


def with_status(rules: Rules, status: str) -> Rules:
    return replace(rules, status=status, version=rules.version + 1)  # type: ignore[arg-type]


def key_rules(of: Workload, **changes: Any) -> KeyRules:
    rules = rules_of("key", of)
    assert isinstance(rules, KeyRules)
    return replace(rules, **changes)


def on_a_test_clock(script: Script) -> Script:
    """The same script, reading the list `tk:clock` where it reads Redis's TIME.

    Faithful, because both commands answer an array of two strings, seconds and microseconds, and nothing else of the
    text changes. Redis has no way to set its clock, and windows, deadlines and expiries cannot be waited for.
    """
    text, replaced = re.subn(r"\('TIME'\)", f"('LRANGE', '{CLOCK}', '0', '1')", script.text)
    code = re.sub(r"--[^\n]*", "", script.text)
    assert replaced == len(re.findall(r"\bTIME\b", code, re.IGNORECASE)), (
        f"{script.name} reads the time in another way"
    )
    assert replaced == (0 if script.name == "adopt" else 1)
    return Script(script.name, text, sha1(text.encode()).hexdigest())


class Desk:
    """The five scripts on one client. With `clock`, time stands still until `set_time`; without, it is Redis's."""

    def __init__(self, client: redis.Redis, *, clock: bool = False, layout: Layout | None = None) -> None:
        self.client = client
        self.layout = layout or Layout()
        adapt = on_a_test_clock if clock else (lambda script: script)
        self._scripts = {script.name: adapt(script) for script in scripts.ALL}
        if clock:
            client.delete(CLOCK)
            client.rpush(CLOCK, "0", "0")

    def set_time(self, at_ms: int, microseconds: int = 0) -> None:
        """Move the test clock to `at_ms` milliseconds since 1970, and `microseconds` (0 to 999) more."""
        self.client.lset(CLOCK, 0, str(at_ms // 1000))
        self.client.lset(CLOCK, 1, str(at_ms % 1000 * 1000 + microseconds))

    def run(self, name: str, keys: Sequence[str], *arguments: str | int | bytes) -> Any:
        """What the script answers, with text where Redis has bytes."""
        script = self._scripts[name]
        try:
            answer = self.client.evalsha(script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            self.client.script_load(script.text)
            answer = self.client.evalsha(script.sha, len(keys), *keys, *arguments)
        return _decoded(answer)

    def admit_many(
        self, requests: Sequence[Request], *, ttl_ms: int = TTL_MS, until_ms: int | str = ""
    ) -> list[Answer]:
        """The answer to each of a batch, all of whose organizations share a shard."""
        arguments = admit_arguments(self.layout, requests, ttl_ms=ttl_ms, until_ms=until_ms)
        answers: list[Answer] = self.run("admit", *arguments)
        assert len(answers) == len(requests)
        return answers

    def admit(
        self,
        of: Workload,
        amount: int = 0,
        *,
        request: str = "r1",
        ttl_ms: int = TTL_MS,
        digest: bytes | None = None,
    ) -> Answer:
        return self.admit_many([Request(of, amount, request, digest)], ttl_ms=ttl_ms)[0]

    def admitted(self, of: Workload, amount: int = 0, *, request: str = "r1", ttl_ms: int = TTL_MS) -> str:
        """The hold of a request that is expected to be admitted, and observed to pass no limit."""
        answer = self.admit(of, amount, request=request, ttl_ms=ttl_ms)
        hold = hold_of(answer)
        assert hold is not None, answer
        assert answer in (hold, ["placed", hold])
        return hold

    def settle_many(self, settlements: Sequence[Settlement], *, due: bool = False) -> list[int]:
        """The answer to each of a batch, all of whose organizations share a shard."""
        answers: list[int] = self.run("settle", *settle_arguments(self.layout, settlements, due=due))
        assert len(answers) == len(settlements)
        return answers

    def settle(self, of: Workload, hold: str, cost: int = 0, event: str = "{}", *, due: bool = False) -> int:
        return self.settle_many([Settlement(of, hold, cost, event)], due=due)[0]

    def extend(self, of: Workload, hold: str, added: int = 0, *, ttl_ms: int = TTL_MS) -> Answer:
        answer: Answer = self.run("extend", (*of.records(self.layout), self.holds(of)), hold, added, ttl_ms)
        return answer

    def publish(
        self, rules: Rules, *, window: int | str = 0, spent: int | str = 0, lost: int | str = 0
    ) -> int:
        answer: int = self.run(
            "publish", (self.record(rules),), *publish_arguments(rules, window, spent, lost)
        )
        return answer

    def adopt(self, of: Workload, token_hash: str, digest: bytes) -> int:
        answer: int = self.run("adopt", (self.layout.key(of.key),), token_hash, digest)
        return answer

    def publish_all(
        self,
        of: Workload,
        *,
        key: Budget | None = None,
        account: Budget | None = None,
        organization: Budget | None = None,
    ) -> None:
        """Publish the workload's three records: active, and unlimited where no budget is given."""
        budgets: dict[Level, Budget | None] = {"key": key, "account": account, "organization": organization}
        for level, budget in budgets.items():
            self.publish(rules_of(level, of, budget))

    def record(self, rules: Rules) -> str:
        if isinstance(rules, KeyRules):
            return self.layout.key(rules.id)
        if isinstance(rules, AccountRules):
            return self.layout.account(rules.id)
        return self.layout.organization(rules.tag)

    def holds(self, of: Workload) -> str:
        return self.layout.holds(self.layout.shard_of(of.tag))

    def events_key(self, of: Workload) -> str:
        return self.layout.events(self.layout.shard_of(of.tag))

    def stream(self, of: Workload) -> list[str]:
        """All that was appended to the stream of the workload's shard."""
        entries: Any = self.client.xrange(self.events_key(of))
        assert all(list(fields) == [EVENT_FIELD] for _, fields in entries)
        return [fields[EVENT_FIELD].decode() for _, fields in entries]

    def events(self, of: Workload) -> list[str]:
        """The usage events among it."""
        return [event for event in self.stream(of) if not is_alert(event)]

    def alerts(self, of: Workload) -> list[AlertCrossing]:
        """The crossings of thresholds among it, read by the codec."""
        return [read_alert(event) for event in self.stream(of) if is_alert(event)]

    def counters(self, of: Workload, level: Level) -> tuple[int, int]:
        """(spent, held) at one level, as they are stored, to the letter."""
        return self.counter(of, level, "spent"), self.counter(of, level, "held")

    def counter(self, of: Workload, level: Level, field: str) -> int:
        """One counter field at one level, as it is stored, to the letter."""
        value: Any = self.client.hget(of.records(self.layout)[LEVELS.index(level)], field)
        assert value is not None, field
        assert value.decode() == str(int(value)), value
        return int(value)

    def everything(self) -> dict[bytes, Any]:
        """All that Redis holds, for a comparison of before and after."""
        names: Any = self.client.keys()
        return {name: (self.client.dump(name), self.client.pexpiretime(name)) for name in names}


def hold_of(answer: Answer) -> str | None:
    """The hold, if the request was admitted: without more, in one of a bounded number of places, or under observation."""
    if isinstance(answer, str):
        return answer
    assert isinstance(answer, list)
    return str(answer[1]) if answer[0] in ("placed", "observed") else None


def is_alert(event: str) -> bool:
    return event.startswith('{"kind":"alert"')


def read_alert(event: str) -> AlertCrossing:
    crossing = decode(event.encode())
    assert isinstance(crossing, AlertCrossing)
    return crossing


Arguments = tuple[str | int | bytes, ...]


def admit_arguments(
    layout: Layout, requests: Sequence[Request], *, ttl_ms: int = TTL_MS, until_ms: int | str = ""
) -> tuple[Any, ...]:
    """KEYS, then each of ARGV, of one batch."""
    keys = [name for request in requests for name in request.of.records(layout)]
    arguments: Arguments = (until_ms, ttl_ms)
    for request in requests:
        digest = request.of.digest if request.digest is None else request.digest
        arguments += (digest, request.amount, request.head)
    return [_of_one_shard(layout, requests, layout.holds), *keys], *arguments


def settle_arguments(
    layout: Layout, settlements: Sequence[Settlement], *, due: bool = False
) -> tuple[Any, ...]:
    """KEYS, then each of ARGV, of one batch."""
    keys = [name for settlement in settlements for name in settlement.of.records(layout)]
    arguments: Arguments = ("due" if due else "",)
    for settlement in settlements:
        arguments += (settlement.hold, settlement.cost, settlement.event)
    shared = [_of_one_shard(layout, settlements, name) for name in (layout.holds, layout.events)]
    return [*shared, *keys], *arguments


def publish_arguments(rules: Rules, window: int | str, spent: int | str, lost: int | str) -> Arguments:
    """ARGV; the record is the only key."""
    return (rules.version, window, spent, lost, *rules.fields())


def _of_one_shard(
    layout: Layout, batch: Sequence[Request] | Sequence[Settlement], name: Callable[[int], str]
) -> str:
    (shard,) = {layout.shard_of(each.of.tag) for each in batch}
    return name(shard)


def _decoded(answer: Any) -> Any:
    if isinstance(answer, bytes):
        return answer.decode()
    if isinstance(answer, list):
        return [_decoded(part) for part in answer]
    assert isinstance(answer, int)
    return answer
