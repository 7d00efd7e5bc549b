"""JSON pointers put together in a tree, for one pass over a document. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

import orjson

from gateway.json_grammar import ANY, SPACE, WS, run_of
from gateway.json_pointer import Pointer, position


class Node:
    """A place on the way to some pointers."""

    __slots__ = ("at", "below", "by_folded", "last", "named", "places", "run")

    def __init__(self) -> None:
        self.at: int | None = None
        """Which pointer ends here."""
        self.below: tuple[int, ...] = ()
        """Which pointers lead here or through here."""
        self.named: dict[str, Node] = {}
        self.by_folded: dict[str, list[Node]] = {}
        """The same nodes by their names as `folded` makes them."""
        self.places: dict[int, Node] = {}
        """The same nodes by their place, where the way may lead through an array."""
        self.last = -1
        """The last place that matters."""
        self.run: re.Pattern[bytes] = SPACE
        """Members in a row that are on nobody's way, each with its comma."""

    def finish(self) -> None:
        below = [] if self.at is None else [self.at]
        for name, node in self.named.items():
            node.finish()
            below += node.below
            self.by_folded.setdefault(folded(name), []).append(node)
            if (place := position(name)) is not None:
                self.places[place] = node
        self.below = tuple(below)
        self.last = max(self.places, default=-1)
        if self.named:
            # A name that is escaped, not ASCII, or one of ours but for its case is not skipped: it is stepped over.
            names = {*self.named, *self.by_folded}
            ours = b"|".join(re.escape(orjson.dumps(name)[1:-1]) for name in sorted(names))
            skipped = rb'"(?!(?i:' + ours + rb')")[^"\\\x00-\x1f\x7f-\xff]*+"'
            self.run = re.compile(run_of(WS + skipped + WS + rb":" + WS + ANY + WS + rb","))


def folded(name: str) -> str:
    """What a careless reader may take a name for: some compare without case, some drop what cannot be shown."""
    return "".join(char for char in name if char.isprintable()).casefold()


class PointerTree:
    """Pointers, put together for scanning; made once, used for any number of documents."""

    __slots__ = ("count", "root")

    def __init__(self, pointers: Iterable[Pointer]) -> None:
        """Answers are in the order of `pointers`; the same one may not be there twice (ValueError)."""
        self.root = Node()
        self.count = 0
        for pointer in pointers:
            node = self.root
            for name in pointer.names:
                node = node.named.setdefault(name, Node())
            if node.at is not None:
                raise ValueError(f'the JSON pointer "{pointer}" is there twice')
            node.at = self.count
            self.count += 1
        self.root.finish()
