"""Calls the scripts as both planes do, on one connection, for the tests of the contract. The gateway and control have
their own, quicker ways to say the same; what they must agree on is only what stands here: KEYS, ARGV, answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError

from gateway.contract import scripts
from gateway.contract.ids import AccountId, KeyId, Level, OrganizationTag
from gateway.contract.layout import EVENT_FIELD, Layout
from gateway.contract.records import AccountRules, Budget, KeyRules, OrganizationRules
from gateway.contract.scripts import Script
from gateway.contract.token import Digest

Rules = KeyRules | AccountRules | OrganizationRules
Answer = str | int | list[str | int]

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


def rules_of(level: Level, of: Workload, budget: Budget | None = None, version: int = 1) -> Rules:
    """Rules of an active record; unlimited unless a budget is given."""
    own = budget or Budget()
    if level == "organization":
        return OrganizationRules(of.tag, f"name-{of.tag}", version, "active", own)
    if level == "account":
        return AccountRules(of.account, "builder", "service-account", version, "active", own)
    return KeyRules(
        id=of.key, version=version, status="active", budget=own, expires_at_ms=None, token_hash=f"hash of {of.key}",
        account_id=of.account, account_name="builder", account_kind="service-account",
        organization_tag=of.tag, organization_name=f"name-{of.tag}", digest=of.digest,
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
    assert replaced == (1 if script.name in ("admit", "settle", "extend") else 0)
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

    def run(self, name: str, keys: Sequence[str], *arguments: str | int | bytes) -> Answer:
        script = self._scripts[name]
        try:
            answer = self.client.evalsha(script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            self.client.script_load(script.text)
            answer = self.client.evalsha(script.sha, len(keys), *keys, *arguments)
        return _decoded(answer)

    def admit(
        self,
        of: Workload,
        amount: int = 0,
        *,
        request: str = "r1",
        ttl_ms: int = TTL_MS,
        digest: bytes | None = None,
    ) -> Answer:
        keys = (*of.records(self.layout), self.holds(of))
        head = f"{request}|{of.key}|{of.account}|{of.tag}|{ROUTE}"
        return self.run("admit", keys, of.digest if digest is None else digest, amount, ttl_ms, head)

    def admitted(self, of: Workload, amount: int = 0, *, request: str = "r1", ttl_ms: int = TTL_MS) -> str:
        """The hold of a request that is expected to be admitted."""
        hold = self.admit(of, amount, request=request, ttl_ms=ttl_ms)
        assert isinstance(hold, str), hold
        return hold

    def settle(
        self, of: Workload, hold: str, cost: int = 0, event: str = "{}", *, due: bool = False
    ) -> Answer:
        keys = (*of.records(self.layout), self.holds(of), self.events_key(of))
        return self.run("settle", keys, hold, cost, event, "due" if due else "")

    def extend(self, of: Workload, hold: str, added: int = 0, *, ttl_ms: int = TTL_MS) -> Answer:
        return self.run("extend", (*of.records(self.layout), self.holds(of)), hold, added, ttl_ms)

    def publish(self, rules: Rules, *, window: int | str = 0, spent: int | str = 0) -> Answer:
        return self.run("publish", (self.record(rules),), rules.version, window, spent, *rules.fields())

    def adopt(self, of: Workload, token_hash: str, digest: bytes) -> Answer:
        return self.run("adopt", (self.layout.key(of.key),), token_hash, digest)

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

    def events(self, of: Workload) -> list[str]:
        entries: Any = self.client.xrange(self.events_key(of))
        assert all(list(fields) == [EVENT_FIELD] for _, fields in entries)
        return [fields[EVENT_FIELD].decode() for _, fields in entries]

    def counters(self, of: Workload, level: Level) -> tuple[int, int]:
        """(spent, held) at one level, as they are stored, to the letter."""
        name = of.records(self.layout)[("key", "account", "organization").index(level)]
        values: Any = self.client.hmget(name, "spent", "held")
        spent, held = (value.decode() for value in values)
        assert spent == str(int(spent)), spent
        assert held == str(int(held)), held
        return int(spent), int(held)

    def everything(self) -> dict[bytes, Any]:
        """All that Redis holds, for a comparison of before and after."""
        names: Any = self.client.keys()
        return {name: (self.client.dump(name), self.client.pexpiretime(name)) for name in names}


def _decoded(answer: Any) -> Answer:
    if isinstance(answer, bytes):
        return answer.decode()
    if isinstance(answer, list):
        return [part.decode() if isinstance(part, bytes) else part for part in answer]
    assert isinstance(answer, int)
    return answer
