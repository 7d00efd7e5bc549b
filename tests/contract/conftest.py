"""A desk for each test: the scripts on an empty Redis, with Redis's clock or with one that the test moves."""

from collections.abc import Iterator

import pytest
import redis

from tests.contract.desk import Desk


@pytest.fixture
def valkey(redis_url: str) -> Iterator[redis.Redis]:
    """A client that blocks, of a Redis that holds nothing."""
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


@pytest.fixture
def desk(valkey: redis.Redis) -> Desk:
    """The scripts as they are shipped, by Redis's own clock."""
    return Desk(valkey)


@pytest.fixture
def clocked(valkey: redis.Redis) -> Desk:
    """The scripts by a clock that the test moves. It stands at 2024-03-15 12:00 UTC, a Friday."""
    desk = Desk(valkey, clock=True)
    desk.set_time(1_710_504_000_000)
    return desk
