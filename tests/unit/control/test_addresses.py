"""Addresses: what is one, and that nothing is repeated of what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from control.addresses import check_postgres_dsn, check_redis_url


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://someone:a-password@host:5432/db",
        "postgres://host",
        "postgresql:///db?host=/run/postgresql&user=someone@tenant",
        "postgresql://u:p%2F%40@[::1]:5432/db?sslmode=require",
        "postgresql://u:p@one:5432,two:5433/db?target_session_attrs=read-write",
    ],
)
def test_a_dsn_is_accepted(dsn: str) -> None:
    check_postgres_dsn(dsn)


@pytest.mark.parametrize(
    "url", ["redis://host", "rediss://u:p%23@host:6380/3", "unix:///run/redis.sock", "redis://[::1]"]
)
def test_a_redis_url_is_accepted(url: str) -> None:
    check_redis_url(url)


@pytest.mark.parametrize("check", [check_postgres_dsn, check_redis_url])
@pytest.mark.parametrize("scheme", ["postgresql", "redis", "http", "sekret"])
@pytest.mark.parametrize("password", ["sek/ret", "sek#ret", "se:k?ret", "sek[ret", "sek/re]t", "sek?ret"])
def test_what_is_none_is_refused_and_nothing_of_it_repeated(
    check: Callable[[str], None], scheme: str, password: str
) -> None:
    with pytest.raises(ValueError, match=r"Postgres|Redis") as refused:
        check(f"{scheme}://someone:{password}@host:1/0")
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    for part in ("sek", "ret", "someone", "re]t"):
        assert part not in str(refused.value)
