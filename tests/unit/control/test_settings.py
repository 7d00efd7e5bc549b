"""Settings: read once, every problem named, no secret repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.settings import SettingsError, listen_address, load_settings

ENOUGH = {
    "TOLLKEEPER_POSTGRES_DSN": "postgresql://someone:a-password@localhost/tollkeeper",
    "TOLLKEEPER_REDIS_URL": "redis://:a-password@localhost",
    "TOLLKEEPER_PEPPER": "5e" * 32,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "POSTGRES_DSN",
        "REDIS_URL",
        "PEPPER",
        "PEPPER_FILE",
        "SHARDS",
        "CONTROL_LISTEN",
        "LOG_LEVEL",
        "SMTP_URL",
        "SMTP_FROM",
    ):
        monkeypatch.delenv(f"TOLLKEEPER_{name}", raising=False)
    for name, value in ENOUGH.items():
        monkeypatch.setenv(name, value)


def test_three_settings_are_enough() -> None:
    settings = load_settings()

    assert settings.read_pepper() == b"\x5e" * 32
    assert (settings.shards, settings.control_listen) == (16, "127.0.0.1:8081")
    assert "a-password" not in repr(settings)
    assert "5e5e" not in repr(settings)


def test_the_pepper_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text("ab" * 16 + "\n")
    monkeypatch.delenv("TOLLKEEPER_PEPPER")
    monkeypatch.setenv("TOLLKEEPER_PEPPER_FILE", str(tmp_path / "pepper"))

    assert load_settings().read_pepper() == b"\xab" * 16


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PEPPER", "", "set one of TOLLKEEPER_PEPPER and TOLLKEEPER_PEPPER_FILE"),
        ("PEPPER", "xyz", "not hexadecimal"),
        ("PEPPER", "00" * 15, "15 bytes"),
        ("PEPPER", "00" * 65, "65 bytes"),
        ("PEPPER_FILE", "/nowhere/at/all", "set one of"),
        ("SHARDS", "0", "TOLLKEEPER_SHARDS"),
        ("SHARDS", "101", "TOLLKEEPER_SHARDS"),
        ("CONTROL_LISTEN", "localhost", "TOLLKEEPER_CONTROL_LISTEN"),
        ("LOG_LEVEL", "loud", "TOLLKEEPER_LOG_LEVEL"),
        ("POSTGRES_DSN", "", "TOLLKEEPER_POSTGRES_DSN"),
        ("POSTGRES_DSN", "postgresql://u:sek/ret@host/db", "this is not a Postgres DSN"),
        ("REDIS_URL", "redis://:sek#ret@host", "this is not a Redis URL"),
        ("SMTP_URL", "smtp://u:a-password@host", "set both TOLLKEEPER_SMTP_URL and TOLLKEEPER_SMTP_FROM"),
        ("SMTP_FROM", "alerts@example.com", "set both TOLLKEEPER_SMTP_URL and TOLLKEEPER_SMTP_FROM"),
        ("SMTP_FROM", "nobody", "no mail address"),
        ("SMTP_FROM", "A\nBcc: all@example.com <a@example.com>", "no mail address"),
        ("SMTP_URL", "http://u:a-password@host", "begins with smtp://, smtps://"),
        ("SMTP_URL", "smtp://", "not a mail server's URL"),
        ("SMTP_URL", "smtp://u:a-password@host/?starttls=perhaps", "auto, required or never"),
    ],
)
def test_what_is_wrong_is_named_without_the_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"TOLLKEEPER_{name}", value)

    with pytest.raises(SettingsError, match=words) as raised:
        load_settings()
    assert "a-password" not in str(raised.value)


def test_all_problems_are_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLKEEPER_SHARDS", "0")
    monkeypatch.setenv("TOLLKEEPER_LOG_LEVEL", "loud")
    monkeypatch.delenv("TOLLKEEPER_REDIS_URL")

    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert len(str(raised.value).splitlines()) == 3


def test_an_address_may_be_of_either_family() -> None:
    assert listen_address("127.0.0.1:8081") == ("127.0.0.1", 8081)
    assert listen_address("[::1]:0") == ("::1", 0)
    with pytest.raises(ValueError, match="not a port"):
        listen_address("localhost:65536")
