"""Refused requests are numbers in the ledger: gathered, written once, kept while Redis is away, bounded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gateway import refused as refused_module
from gateway.contract import usage_event
from gateway.contract.usage_event import RefusalCount
from gateway.refusals import Reason
from gateway.refused import OBSERVED
from gateway.routing import Route, Upstream
from tests.unit.gateway.wires import Line
from tests.unit.gateway.world import KEY, ROUTE, World, get

OTHER = Route("git", b"/git/", (Upstream("http", "git.example", 80),))


def asks(world: World, path: bytes = b"/x") -> Line:
    client = world.client()
    client.say(get(path))
    world.settle_down()
    return client


def refused(world: World, count: int) -> None:
    world.redis.refusal = [b"budget", b"key", 5, 5, 0, 0]
    client = world.client()
    for _ in range(count):
        client.say(get())
        world.settle_down()
    world.redis.refusal = None


def refusal_counts(world: World) -> list[RefusalCount]:
    decoded = [usage_event.decode(event) for event in world.redis.events]
    return [event for event in decoded if isinstance(event, RefusalCount)]


def test_refusals_of_a_known_key_are_gathered_into_one_row() -> None:
    with World() as world:
        refused(world, 7)
        world.advance(1.0)
        rows = refusal_counts(world)
        assert sum(row.count for row in rows) == 7
        assert len(rows) <= 2, "one, but for the turn of a minute"
        assert {(row.key, row.route, row.reason) for row in rows} == {
            ("Acme010123456789", "models", "budget_exceeded")
        }
        world.advance(2.0)
        assert len(refusal_counts(world)) == len(rows), "each is written once"


def test_refusals_that_redis_did_not_take_are_written_later() -> None:
    with World() as world:
        refused(world, 3)
        failures = 0

        def reply(command: list[bytes]) -> object:
            nonlocal failures
            if command[0] == b"XADD" and not failures:
                failures += 1
                return Exception("OOM command not allowed")
            return world.redis.run(command)

        world.redis.replies = reply
        world.advance(3.0)
        assert failures == 1
        assert sum(row.count for row in refusal_counts(world)) == 3


def test_a_count_that_may_have_been_written_is_not_written_again() -> None:
    """A lost connection leaves it open. A count too few is better than one too many."""
    with World() as world:
        refused(world, 3)
        while "xadd" not in world.redis.waiting:
            world.is_prompt = False
            world.advance(0.1)
            world.redis.answer(0 if "xadd" in world.redis.waiting else None)
        world.redis.run_unanswered()
        assert world.redis.line is not None
        world.redis.line.lose()
        world.is_prompt = True
        world.advance(3.0)
        assert sum(row.count for row in refusal_counts(world)) == 3


def test_the_rows_that_are_gathered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_module, "ROWS_MAX", 1)
    with World((ROUTE, OTHER)) as world:
        world.redis.refusal = [b"budget", b"key", 5, 5, 0, 0]
        for path in (b"/x", b"/git/x", b"/x"):
            asks(world, path)
        world.advance(1.0)
        assert {row.route for row in refusal_counts(world)} == {"models"}
        assert world.proxy.metrics.refusals[("git", "budget_exceeded")] == 1, "the metrics have all"


def test_refusals_wait_while_redis_is_away() -> None:
    with World() as world:
        refused(world, 3)
        assert world.redis.line is not None
        world.redis.line.lose()
        world.advance(3.0)
        assert sum(row.count for row in refusal_counts(world)) == 3


# -- what is one row


def test_whose_limit_it_was_and_whether_it_only_observes_makes_another_row() -> None:
    with World() as world:
        for level in (b"key", b"account", b"account"):
            world.redis.refusal = [b"rate", level, 60, 60, 1000]
            asks(world)
        (caller,) = world.proxy.directory._callers.values()
        world.proxy.refused.add(caller, "models", Reason.RATE_LIMITED, "account", observed=True)
        world.advance(1.0)
        told = {(row.reason, row.level, row.observed): row.count for row in refusal_counts(world)}
        assert told == {
            ("rate_limited", "key", False): 1, ("rate_limited", "account", False): 2, ("rate_limited", "account", True): 1,
        }  # fmt: skip


def test_a_refusal_for_nobodys_limit_names_no_level() -> None:
    with World() as world:
        world.redis.refusal = [b"status", b"key", b"disabled"]
        asks(world)
        world.advance(1.0)
        (row,) = refusal_counts(world)
        assert (row.reason, row.level, row.key) == ("invalid_token", "", KEY)


def test_no_two_rows_have_one_id() -> None:
    with World((ROUTE, OTHER)) as world:
        world.redis.refusal = [b"budget", b"key", 5, 5, 0, 0]
        for seconds in (1.0, 2.0, 4.0):
            for path in (b"/x", b"/git/x"):
                asks(world, path)
            world.advance(seconds)
        ids = [row.id for row in refusal_counts(world)]
        assert len(ids) == len(set(ids)) >= 6


def test_at_the_bound_what_is_counted_already_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refused_module, "ROWS_MAX", 1)
    with World((ROUTE, OTHER)) as world:
        (caller,) = world.proxy.directory._callers.values()
        counts = world.proxy.refused
        for route in ("models", "git", "models", "models"):
            counts.add(caller, route, Reason.UNPRICED, "")
        counts.flush()
        world.settle_down()
        assert {row.route: row.count for row in refusal_counts(world)} == {"models": 3}


def test_every_reason_that_is_observed_is_one_that_refuses() -> None:
    assert set(OBSERVED) == {b"budget", b"rate", b"in_flight"}
    assert len(set(OBSERVED.values())) == 3


def test_a_flood_is_a_few_rows_a_minute_and_is_counted_to_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    at_s = 1_900_000_000.0 // 60 * 60
    monkeypatch.setattr(refused_module, "time", SimpleNamespace(time=lambda: at_s))
    with World() as world:
        (caller,) = world.proxy.directory._callers.values()
        for _ in range(600):  # two minutes
            world.proxy.refused.add(caller, "models", Reason.BUDGET_EXCEEDED, "key")
            at_s += 0.2
            world.advance(0.2)
        at_s += 60
        world.advance(1.0)
        rows = refusal_counts(world)
        assert sum(row.count for row in rows) == 600
        assert len(rows) <= 2 * 9
        assert {row.minute_ms for row in rows} == {
            1_900_000_000 // 60 * 60_000 + more for more in (0, 60_000)
        }
        assert not world.proxy.refused._counts, "a minute that is over is forgotten"
