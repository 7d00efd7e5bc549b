"""Script calls of one turn of the loop, gathered: the requests that are admitted in it at one shard are one call, and so are
those that are settled. Acts.

Of what a script costs Redis, most is the call itself and the records that it reads and writes: sixteen requests of one account
in one call cost half of sixteen calls. `admit.lua` and `settle.lua` promise that a batch is no other than its requests one
by one. A request alone is a batch of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from gateway.contract.scripts import Script
from gateway.redis_pipe import OnReply, Reply, bulk

BATCH_MAX: Final = 64
"""Redis answers nobody else while it runs a script: so many requests take it about half a millisecond."""

Send = Callable[[Sequence[bytes], OnReply], bool]


class _Batch:
    """What goes out in one call; as a callback, its answers' way back."""

    __slots__ = ("_batches", "arguments", "levels", "replies")

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.levels: list[bytes] = []
        self.arguments: list[bytes] = []
        self.replies: list[OnReply] = []

    def __call__(self, reply: Reply) -> None:
        replies = self.replies
        self._batches.unanswered -= len(replies)
        if type(reply) is not list:
            each = [reply] * len(replies)
        else:
            each = reply if len(reply) == len(replies) else [None] * len(replies)
        for on_reply, own in zip(replies, each, strict=True):
            try:
                on_reply(own)
            except Exception as error:  # noqa: BLE001 - a defect: told to the loop's handler, and the others get their answers
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "the answer to a request in a batch was not taken", "exception": error}
                )


class Batches:
    """Calls of one script, by shard. `keys` gives the first keys of the script for a shard, in RESP, of which there are
    `key_count`; three records of each request follow them."""

    def __init__(self, script: Script, keys: Callable[[int], bytes], key_count: int) -> None:
        self._head = bulk("EVALSHA") + bulk(script.sha)
        self._keys = keys
        self._key_count = key_count
        self._gathered: dict[int, list[_Batch]] = {}
        self.unanswered = 0
        """Requests that were added and have no answer yet."""

    def add(self, shard: int, levels: bytes, arguments: Sequence[bytes], on_reply: OnReply) -> None:
        """One request for the next call: the names of its three records, and its three arguments, in RESP."""
        batches = self._gathered.get(shard)
        if batches is None:
            self._gathered[shard] = batches = [_Batch(self)]
        batch = batches[-1]
        if len(batch.replies) >= BATCH_MAX:
            batch = _Batch(self)
            batches.append(batch)
        batch.levels.append(levels)
        batch.arguments.extend(arguments)
        batch.replies.append(on_reply)
        self.unanswered += 1

    def send(self, send: Send, lost: Reply, *first: bytes) -> None:
        """Send what is gathered, with `first` before the requests' arguments; answer `lost` where that is not possible."""
        if not self._gathered:
            return
        gathered, self._gathered = self._gathered, {}
        for shard, batches in gathered.items():
            for batch in batches:
                if not send(self._command(shard, batch, first), batch):
                    batch(lost)

    def _command(self, shard: int, batch: _Batch, first: tuple[bytes, ...]) -> list[bytes]:
        count = len(batch.replies)
        keys = self._key_count + 3 * count
        pieces = [b"*%d\r\n" % (3 + keys + len(first) + 3 * count), self._head, bulk(keys), self._keys(shard)]
        pieces += batch.levels
        pieces += first
        pieces += batch.arguments
        return pieces
