"""Names of the Redis keys, and the shard an organization lives on. Pure.

All keys of one organization carry the hash tag `{NN}`, so that every script works on one slot: the same code runs on one
Redis and on Redis Cluster (DESIGN §5). `META` alone has no tag; no script reads it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from gateway.contract.ids import TAG_LENGTH, AccountId, KeyId, OrganizationTag

SCHEMA_VERSION: Final = 1
SHARDS_DEFAULT: Final = 16
SHARDS_MAX: Final = 100

META: Final = "tk:meta"
"""Hash: `schema`, `shards`, `epoch`. `epoch` is written last by a rebuild: absent means not loaded."""

EVENT_FIELD: Final = b"e"
"""The one field of every entry in the events streams."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Key names of an installation with `shards` shards (1 to 100, never changed once data exists)."""

    shards: int = SHARDS_DEFAULT

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= SHARDS_MAX:
            raise ValueError(f"shards must be 1 to {SHARDS_MAX}, not {self.shards}")

    def shard_of(self, tag: OrganizationTag) -> int:
        return zlib.crc32(tag.encode()) % self.shards

    def organization(self, tag: OrganizationTag) -> str:
        return f"tk:{{{self.shard_of(tag):02d}}}:org:{tag}"

    def account(self, account_id: AccountId) -> str:
        tag = OrganizationTag(account_id[3 : 3 + TAG_LENGTH])
        return f"tk:{{{self.shard_of(tag):02d}}}:account:{account_id}"

    def key(self, key_id: KeyId) -> str:
        tag = OrganizationTag(key_id[:TAG_LENGTH])
        return f"tk:{{{self.shard_of(tag):02d}}}:key:{key_id}"

    @staticmethod
    def holds(shard: int) -> str:
        return f"tk:{{{shard:02d}}}:holds"

    @staticmethod
    def events(shard: int) -> str:
        return f"tk:{{{shard:02d}}}:events"
