"""Settings of the control plane, from the environment (prefix TOLLKEEPER_). No I/O but for reading PEPPER_FILE.

`control.app` and the jobs read them once, at start. The gateway has settings of its own; the few that both planes share
(REDIS_URL, PEPPER, PEPPER_FILE, SHARDS) must have the same values there.
"""

from __future__ import annotations

from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from control.addresses import check_postgres_dsn, check_redis_url, check_smtp_url, is_mail_address
from gateway.contract.layout import SHARDS_DEFAULT, SHARDS_MAX, Layout
from gateway.contract.token import PEPPER_LENGTH_MAX, PEPPER_LENGTH_MIN, Pepper

RETENTION_DAYS_MIN: Final = 35
"""A monthly window is over by then."""

Seconds = Annotated[float, Field(gt=0, le=3600)]


class SettingsError(Exception):
    """The environment does not make a valid configuration; the message lists every problem, one a line, no secrets."""


class ControlSettings(BaseSettings):
    """What the REST API and the jobs need to know. Every field is TOLLKEEPER_<NAME> in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="TOLLKEEPER_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    postgres_dsn: SecretStr = Field(
        description="Address of Postgres 15 or newer: postgresql://user:password@host:port/database."
    )
    redis_url: SecretStr = Field(
        description="Address of Redis 7 or Valkey 8 or newer, the same as the gateways': redis://… or rediss://…."
    )
    pepper: SecretStr | None = Field(
        default=None,
        description="Secret, 16 to 64 bytes in hex, that keys the digests of tokens; the same as the gateways'. "
        "Or use PEPPER_FILE.",
    )
    pepper_file: Path | None = Field(
        default=None, description="File that holds the pepper in hex, instead of PEPPER."
    )
    shards: int = Field(
        default=SHARDS_DEFAULT,
        ge=1,
        le=SHARDS_MAX,
        description="Number of shards; a constant of the installation once data exists.",
    )
    control_listen: str = Field(
        default="127.0.0.1:8081",
        pattern=r"^.+:\d{1,5}$",
        description="Address and port of the REST API; port 0 picks a free one.",
    )
    jobs_listen: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
        description="Address and port where the jobs answer /livez, /readyz and /metrics; unset: nowhere.",
    )
    log_level: str = Field(
        default="info",
        pattern=r"^(debug|info|warning|error)$",
        description="Least level that is logged: debug, info, warning or error.",
    )
    postgres_connections_max: int = Field(
        default=10, ge=1, le=500, description="Connections to Postgres that one process may open."
    )
    postgres_timeout_s: Seconds = Field(
        default=5.0, description="Longest wait for a connection to Postgres, or for one statement."
    )
    redis_timeout_s: Seconds = Field(
        default=2.0, description="Longest wait for a connection to Redis, or for one answer."
    )
    request_timeout_s: Seconds = Field(
        default=15.0, description="Longest time that one call of the REST API may take."
    )
    start_timeout_s: Seconds = Field(
        default=30.0, description="Longest wait for Postgres at start before giving up."
    )
    shutdown_timeout_s: Seconds = Field(
        default=10.0, description="Longest wait for calls in flight when asked to stop."
    )
    hash_threads: int = Field(
        default=2, ge=1, le=64, description="Threads that compute argon2id hashes of new tokens."
    )
    accounts_max: int = Field(
        default=10_000,
        ge=1,
        description="Service accounts that one organization may have, deleted ones not counted.",
    )
    keys_max: int = Field(
        default=1_000,
        ge=1,
        description="Keys that one account may have, revoked and expired ones not counted.",
    )
    drain_interval_s: Seconds = Field(
        default=1.0, description="Pause between two looks at idle event streams; busy ones are read sooner."
    )
    expire_interval_s: Seconds = Field(
        default=1.0, description="Pause between two looks for holds whose deadline has passed."
    )
    publish_interval_s: Seconds = Field(
        default=0.5, description="Pause between two looks at the outbox and at the state of Redis."
    )
    grants_interval_s: Seconds = Field(
        default=1.0, description="Pause between two looks for prepaid grants that have expired."
    )
    partitions_interval_s: Seconds = Field(
        default=3600.0, description="Pause between two looks at the ledger's partitions."
    )
    reconcile_interval_s: Seconds = Field(
        default=3600.0, description="Pause between two comparisons of Redis's counters with the ledger."
    )
    alerts_interval_s: Seconds = Field(
        default=1.0, description="Pause between two looks for alerts that destinations are to be told of."
    )
    alert_retention_days: int = Field(
        default=400,
        ge=RETENTION_DAYS_MIN,
        le=36_500,
        description="Days after which an alert of a window that has ended is removed, told or not.",
    )
    smtp_url: SecretStr | None = Field(
        default=None,
        description="Mail server for alerts by e-mail: smtp://user:password@host:port, or smtps://; unset: no e-mail.",
    )
    smtp_from: str | None = Field(
        default=None,
        max_length=320,
        description="Sender of alerts by e-mail, such as Tollkeeper <alerts@example.com>.",
    )

    @field_validator("postgres_dsn")
    @classmethod
    def _postgres(cls, dsn: SecretStr) -> SecretStr:
        check_postgres_dsn(dsn.get_secret_value())
        return dsn

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, url: SecretStr) -> SecretStr:
        check_redis_url(url.get_secret_value())
        return url

    @field_validator("smtp_url")
    @classmethod
    def _smtp(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            check_smtp_url(url.get_secret_value())
        return url

    @field_validator("smtp_from")
    @classmethod
    def _sender(cls, sender: str | None) -> str | None:
        if sender is not None and not (sender.isprintable() and is_mail_address(parseaddr(sender)[1])):
            raise ValueError("this has no mail address in it: write Tollkeeper <alerts@example.com>")
        return sender

    @model_validator(mode="after")
    def _both_of_mail_or_none(self) -> Self:
        if (self.smtp_url is None) != (self.smtp_from is None):
            raise ValueError("set both TOLLKEEPER_SMTP_URL and TOLLKEEPER_SMTP_FROM, or neither")
        return self

    @model_validator(mode="after")
    def _one_readable_pepper(self) -> Self:
        if (self.pepper is None) == (self.pepper_file is None):
            raise ValueError("set one of TOLLKEEPER_PEPPER and TOLLKEEPER_PEPPER_FILE")
        self.read_pepper()
        return self

    def read_pepper(self) -> Pepper:
        """The pepper's bytes. Raises ValueError if it is not 16 to 64 bytes of hex, or the file cannot be read."""
        if self.pepper_file is not None:
            try:
                text = self.pepper_file.read_text("ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(
                    f"cannot read TOLLKEEPER_PEPPER_FILE {self.pepper_file}: {type(error).__name__}"
                ) from error
        else:
            text = self.pepper.get_secret_value() if self.pepper is not None else ""
        try:
            pepper = bytes.fromhex(text.strip())
        except ValueError:
            raise ValueError("the pepper is not hexadecimal") from None
        if not PEPPER_LENGTH_MIN <= len(pepper) <= PEPPER_LENGTH_MAX:
            raise ValueError(
                f"the pepper has {len(pepper)} bytes; it needs {PEPPER_LENGTH_MIN} to {PEPPER_LENGTH_MAX}"
            )
        return Pepper(pepper)

    @property
    def layout(self) -> Layout:
        return Layout(self.shards)


def listen_address(text: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port". Raises ValueError for a port above 65535."""
    host, _, port = text.rpartition(":")
    if int(port) > 65_535:
        raise ValueError(f"{port} is not a port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def load_settings() -> ControlSettings:
    """Read the environment. Raises SettingsError, one line a problem, without the values: they may be secret."""
    try:
        return ControlSettings()
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_problem(item["loc"], item["msg"]) for item in error.errors(include_input=False))
        ) from None


def _problem(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"TOLLKEEPER_{str(location[0]).upper()}: {message}" if location else message
