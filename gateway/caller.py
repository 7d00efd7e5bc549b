"""A recognised key: who it is, and what all its commands to Redis have in common, as bytes of the protocol.

Prepared once, so that formatting a command costs a tuple.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.contract import scripts
from gateway.contract.layout import Layout
from gateway.contract.records import Identity
from gateway.contract.token import Digest
from gateway.recording import caller_fields
from gateway.redis_pipe import bulk


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """A recognised key: who it is, and its commands in RESP up to the first argument that changes."""

    identity: Identity
    shard: int
    principal_fields: bytes
    """The X-Principal… lines for the upstream, each with its CRLF."""
    levels: bytes
    """Names of the key's, the account's and the organization's record."""
    digest: bytes
    extend_prefix: bytes
    hold_middle: bytes
    """`|key|account|organization|`, between request id and route in a hold."""
    event_fields: bytes
    """Who, in a usage event."""

    @classmethod
    def prepare(cls, identity: Identity, digest: Digest, names: Layout) -> Caller:
        shard = names.shard_of(identity.organization_tag)
        levels = b"".join(
            bulk(name)
            for name in (
                names.key(identity.key_id),
                names.account(identity.account_id),
                names.organization(identity.organization_tag),
            )
        )
        middle = f"|{identity.key_id}|{identity.account_id}|{identity.organization_tag}|".encode()
        principal = (
            f"X-Principal: {identity.principal}\r\nX-Principal-Id: {identity.account_id}\r\n"
            f"X-Principal-Organization: {identity.organization_name}\r\nX-Principal-Key-Id: {identity.key_id}\r\n"
        )
        return cls(
            identity=identity,
            shard=shard,
            principal_fields=principal.encode(),
            levels=levels,
            digest=bulk(digest),
            extend_prefix=_evalsha(scripts.EXTEND, 4, arguments=3) + levels + bulk(names.holds(shard)),
            hold_middle=middle,
            event_fields=caller_fields(identity),
        )


def _evalsha(script: scripts.Script, keys: int, *, arguments: int) -> bytes:
    return b"*%d\r\n" % (3 + keys + arguments) + bulk("EVALSHA") + bulk(script.sha) + bulk(keys)
