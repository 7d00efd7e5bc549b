"""One organization with one account and one key in Redis, as control would have published them, and their counters.

Limits of credits at all three levels, rates and bounds of what is in flight at key and account are real, and too large to be
reached: every request pays for all the work.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import cast

import redis

from gateway.contract import ids, layout, records, scripts
from gateway.contract import token as tokens
from gateway.contract.money import AMOUNT_MAX

PRICE_CREDITS = "0.000001"
PRICE_MICROCREDITS = 1
ROUTE = "default"
_LAYOUT = layout.Layout()


@dataclass(frozen=True, slots=True)
class Charged:
    """Who is charged: the token that the load sends, and the names of the records in Redis."""

    token: str
    tag: ids.OrganizationTag
    account_id: ids.AccountId
    key_id: ids.KeyId

    @property
    def record_names(self) -> tuple[str, str, str]:
        """Key, account, organization."""
        return _LAYOUT.key(self.key_id), _LAYOUT.account(self.account_id), _LAYOUT.organization(self.tag)

    @property
    def holds(self) -> str:
        return _LAYOUT.holds(_LAYOUT.shard_of(self.tag))

    @property
    def events(self) -> str:
        return _LAYOUT.events(_LAYOUT.shard_of(self.tag))


@dataclass(frozen=True, slots=True)
class Books:
    """What Redis holds of one organization: entries of its stream, holds in flight, and spent and held of its key."""

    events: int
    holds: int
    spent: int
    held: int


def ask(client: redis.Redis, *words: records.Field) -> object:
    """One command. The one place where the client's untyped call is made."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def load(client: redis.Redis) -> None:
    """Tell gateways that this Redis is loaded, and Redis the scripts."""
    for script in scripts.ALL:
        ask(client, "SCRIPT", "LOAD", script.text)
    facts = ("schema", layout.SCHEMA_VERSION, "shards", layout.SHARDS_DEFAULT, "epoch", secrets.token_hex(8))
    ask(client, "HSET", layout.META, *facts)


def mint() -> tuple[ids.OrganizationTag, ids.KeyId, tokens.Token]:
    """A new organization's tag, and a key in it with its token."""
    tag = ids.new_organization_tag()
    return tag, *tokens.mint(tag)


def publish(
    client: redis.Redis, tag: ids.OrganizationTag, key_id: ids.KeyId, token: str, digest: bytes
) -> Charged:
    """Write the rules of an active key whose token has this digest."""
    account_id = ids.new_account_id(tag, "service-account")
    limit = records.Budget(AMOUNT_MAX, "monthly")
    pace = records.Pace(per_minute=1_000_000, in_flight=100_000)
    charged = Charged(token, tag, account_id, key_id)
    organization = records.OrganizationRules(tag, "acme", 1, "active", limit)
    account = records.AccountRules(account_id, "load", "service-account", 1, "active", limit, pace)
    key = records.KeyRules(
        key_id, 1, "active", limit, None, "unused", account_id, "load", "service-account", tag, "acme",
        tokens.Digest(digest), pace,
    )  # fmt: skip
    rules: list[tuple[str, records.KeyRules | records.AccountRules | records.OrganizationRules]]
    rules = list(zip(charged.record_names, (key, account, organization), strict=True))
    for name, rule in reversed(rules):
        ask(client, "EVALSHA", scripts.PUBLISH.sha, 1, name, rule.version, 0, 0, 0, *rule.fields())
    return charged


def books(client: redis.Redis, charged: Charged) -> Books:
    counters = cast(
        "list[bytes | None]", ask(client, "HMGET", charged.record_names[0], *records.COUNTER_FIELDS)
    )
    live = records.read_counters(counters)
    return Books(
        events=cast("int", ask(client, "XLEN", charged.events)),
        holds=cast("int", ask(client, "ZCARD", charged.holds)),
        spent=live.spent if live else 0,
        held=live.held if live else 0,
    )


def forget_events(client: redis.Redis, charged: Charged) -> None:
    """Empty the stream, as drain would have by now: memory and append-only file stay small."""
    ask(client, "XTRIM", charged.events, "MAXLEN", 0)
