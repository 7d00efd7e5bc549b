"""Requests of one turn are one call a shard: each keeps its own records, arguments and answer, whatever befalls the others."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batches import BATCH_MAX, Batches
from gateway.contract.scripts import ADMIT
from gateway.redis_pipe import OnReply, PipeLost, Reply, bulk
from tests.unit.gateway.metered import METERED
from tests.unit.gateway.world import World, get

LOST = PipeLost("lost by the test")


class Sent:
    """What was sent, read back as a server reads it, and who waits for the answers."""

    def __init__(self) -> None:
        self.commands: list[list[bytes]] = []
        self.waiting: list[OnReply] = []
        self.is_connected = True

    def __call__(self, pieces: Sequence[bytes], on_reply: OnReply) -> bool:
        if not self.is_connected:
            return False
        reader = hiredis.Reader()
        reader.feed(b"".join(pieces))
        self.commands.append(reader.gets())
        assert reader.gets() is False, "exactly one command"
        self.waiting.append(on_reply)
        return True


class Answers:
    """What each request was answered, by its number."""

    def __init__(self) -> None:
        self.by_number: defaultdict[int, list[Reply]] = defaultdict(list)

    def of(self, number: int) -> OnReply:
        return self.by_number[number].append


def batches() -> Batches:
    return Batches(ADMIT, lambda shard: bulk(f"holds{shard}"), 1)


def add(to: Batches, number: int, shard: int, on_reply: OnReply) -> None:
    levels = b"".join(bulk(f"{level}{number}") for level in "kao")
    to.add(shard, levels, (bulk(f"digest{number}"), bulk(number) + bulk(f"head{number}")), on_reply)


@given(st.lists(st.integers(0, 3), max_size=3 * BATCH_MAX))
def test_each_request_is_in_one_call_of_its_shard_with_its_own_records_and_arguments(
    shards: list[int],
) -> None:
    gathered, sent, answers = batches(), Sent(), Answers()
    for number, shard in enumerate(shards):
        add(gathered, number, shard, answers.of(number))
    assert gathered.unanswered == len(shards)
    gathered.send(sent, LOST, bulk("until"), bulk("ttl"))
    seen: list[int] = []
    for command, on_reply in zip(sent.commands, sent.waiting, strict=True):
        name, sha, key_count, *rest = command
        keys, (until, ttl, *each) = rest[: int(key_count)], rest[int(key_count) :]
        assert (name, sha, until, ttl) == (b"EVALSHA", ADMIT.sha.encode(), b"until", b"ttl")
        numbers = [int(amount) for amount in each[1::3]]
        assert len(numbers) <= BATCH_MAX
        assert keys == [
            b"holds%d" % shards[numbers[0]],
            *(b"%b%d" % (level, number) for number in numbers for level in (b"k", b"a", b"o")),
        ]
        assert each == [
            part for number in numbers for part in (b"digest%d" % number, b"%d" % number, b"head%d" % number)
        ]
        assert {shards[number] for number in numbers} == {shards[numbers[0]]}
        seen += numbers
        on_reply([b"hold%d" % number for number in numbers])
    assert sorted(seen) == list(range(len(shards)))
    assert answers.by_number == {number: [b"hold%d" % number] for number in range(len(shards))}
    assert gathered.unanswered == 0


def test_what_is_gathered_is_sent_once() -> None:
    gathered, sent = batches(), Sent()
    gathered.send(sent, LOST)
    assert sent.commands == []
    add(gathered, 0, 0, Answers().of(0))
    gathered.send(sent, LOST)
    gathered.send(sent, LOST)
    assert len(sent.commands) == 1


@pytest.mark.parametrize("reply", [LOST, hiredis.ReplyError("LOADING"), None, 7])
def test_an_answer_to_the_whole_call_is_each_requests_answer(reply: Any) -> None:
    gathered, sent, answers = batches(), Sent(), Answers()
    for number in range(3):
        add(gathered, number, 0, answers.of(number))
    gathered.send(sent, LOST)
    sent.waiting[0](reply)
    assert answers.by_number == {number: [reply] for number in range(3)}


@pytest.mark.parametrize("reply", [[], [b"one"], [b"one"] * 4])
def test_a_list_of_another_length_is_nobodys_answer(reply: Any) -> None:
    gathered, sent, answers = batches(), Sent(), Answers()
    for number in range(3):
        add(gathered, number, 0, answers.of(number))
    gathered.send(sent, LOST)
    sent.waiting[0](reply)
    for number in range(3):
        (own,) = answers.by_number[number]
        assert not isinstance(own, bytes | list)
    assert gathered.unanswered == 0


def test_without_a_connection_each_request_is_told_at_once_and_none_is_kept() -> None:
    gathered, sent, answers = batches(), Sent(), Answers()
    for number in range(2 * BATCH_MAX):
        add(gathered, number, number % 2, answers.of(number))
    sent.is_connected = False
    gathered.send(sent, LOST)
    assert answers.by_number == {number: [LOST] for number in range(2 * BATCH_MAX)}
    assert gathered.unanswered == 0
    sent.is_connected = True
    gathered.send(sent, LOST)
    assert sent.commands == []


def test_who_asks_again_when_answered_is_in_the_next_call() -> None:
    gathered, sent, answers = batches(), Sent(), Answers()
    add(gathered, 0, 0, lambda _: add(gathered, 1, 0, answers.of(1)))
    sent.is_connected = False
    gathered.send(sent, LOST)
    assert gathered.unanswered == 1
    sent.is_connected = True
    gathered.send(sent, LOST)
    assert sent.commands[0][4:7] == [b"k1", b"a1", b"o1"]


async def test_one_request_that_fails_with_its_answer_leaves_the_others_theirs() -> None:
    gathered, sent, answers = batches(), Sent(), Answers()
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def fails(_: Reply) -> None:
        raise RuntimeError("raised by the test")

    for number in range(3):
        add(gathered, number, 0, fails if number == 1 else answers.of(number))
    gathered.send(sent, LOST)
    sent.waiting[0]([b"a", b"b", b"c"])
    assert answers.by_number == {0: [b"a"], 2: [b"c"]}
    assert [str(context["exception"]) for context in told] == ["raised by the test"]


def test_requests_of_one_turn_are_one_call_and_so_are_their_settlements() -> None:
    with World((METERED,)) as world:
        clients = [world.client() for _ in range(10)]
        for client in clients:
            client.say(get())
        world.settle_down()
        assert world.redis.commands["admit"] == 1
        assert len(world.redis.admitted) == 10
        assert 1 <= world.redis.commands["settle"] <= 3
        assert all(client.sent.endswith(b"hello") for client in clients)
        world.check_books()
