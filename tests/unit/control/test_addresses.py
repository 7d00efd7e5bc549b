"""Addresses: what is one, and that nothing is repeated of what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from control.addresses import (
    check_postgres_dsn,
    check_redis_url,
    check_smtp_url,
    check_web_url,
    is_mail_address,
)


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


@pytest.mark.parametrize(
    "url",
    ["smtp://mail", "smtps://u:p%23@mail.example:465", "smtp://[::1]:25/", "smtp://m?starttls=required"],
)
def test_a_mail_servers_url_is_accepted(url: str) -> None:
    check_smtp_url(url)


@pytest.mark.parametrize("check", [check_postgres_dsn, check_redis_url, check_smtp_url])
@pytest.mark.parametrize("scheme", ["postgresql", "redis", "http", "sekret"])
@pytest.mark.parametrize("password", ["sek/ret", "sek#ret", "se:k?ret", "sek[ret", "sek/re]t", "sek?ret"])
def test_what_is_none_is_refused_and_nothing_of_it_repeated(
    check: Callable[[str], None], scheme: str, password: str
) -> None:
    with pytest.raises(ValueError, match=r"Postgres|Redis|mail server") as refused:
        check(f"{scheme}://someone:{password}@host:1/0")
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    for part in ("sek", "ret", "someone", "re]t"):
        assert part not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://alerts.example.com/tollkeeper", "http://127.0.0.1:8080", "https://[::1]/a?b=c%20d"]
)
def test_a_web_url_is_accepted(url: str) -> None:
    check_web_url(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "spaces or signs"),
        ("alerts.example.com", "such as https://"),
        ("ftp://alerts.example.com", "such as https://"),
        ("https://", "such as https://"),
        ("https://host:0/", "such as https://"),
        ("https://host:66000/", "such as https://"),
        ("https://[::1/", "such as https://"),
        ("https://user:sekret@host/", "no user and password"),
        ("https://host/#sekret", "no fragment"),
        ("https://host/sek ret", "spaces or signs"),
        ("https://host/sek\r\nret: x", "spaces or signs"),
        ("https://hösst/", "spaces or signs"),
        ("https://host/" + "a" * 2048, "at most 2048"),
    ],
)
def test_a_web_url_that_is_none_is_refused_and_nothing_of_it_repeated(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        check_web_url(url)
    assert "sek" not in str(refused.value)


@pytest.mark.parametrize("address", ["a@b", "first.last+alerts@mail.example.com", "o'neil@x-y.example"])
def test_a_mail_address_is_one(address: str) -> None:
    assert is_mail_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a",
        "@b",
        "a@",
        "a b@c",
        "a@b, c@d",
        "a@b\nBcc: c@d",
        "<a@b>",
        "a..b@c",
        "ä@b",
        "a@-b",
        "a@" + "b." * 130 + "c",
    ],
)
def test_what_is_no_mail_address_is_not(address: str) -> None:
    assert not is_mail_address(address)
