"""What a gateway is told: process settings from the environment, routes from a TOML file. Validated together, at start.

Every problem is found and listed before anything runs: `load` raises one `SettingsError` with all of them. `--check-config`
prints the same list. Every setting has a default or says plainly that it must be given.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.contract.layout import SHARDS_DEFAULT, SHARDS_MAX
from gateway.contract.token import PEPPER_LENGTH_MAX, PEPPER_LENGTH_MIN, Pepper
from gateway.networks import Networks
from gateway.redis_pipe import RedisAddress
from gateway.route_table import SettingsError, load_routes, normal_path, parse_upstream, sentence
from gateway.routing import Route, RouteTable
from gateway.tls import ListenerTls, TlsFilesError, listener_context, upstream_context, upstream_files

_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]*)):([0-9]{1,5})")


class GatewaySettings(BaseSettings):
    """Process settings. Each is an environment variable with the prefix TOLLKEEPER_."""

    model_config = SettingsConfigDict(env_prefix="TOLLKEEPER_", env_ignore_empty=True, extra="ignore")

    listen: str = Field("127.0.0.1:8080", description="host:port that workloads connect to.")
    management_listen: str = Field("127.0.0.1:9090", description="host:port of /livez, /readyz and /metrics.")
    workers: int = Field(1, ge=1, le=64, description="Worker processes, each on one core.")
    config: Path | None = Field(None, description="The route table, a TOML file.")
    upstream: str | None = Field(
        None, description="Without a route table: one URL that everything is forwarded to, at no price."
    )
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="redis://, rediss:// or unix:// URL.")
    pepper: str | None = Field(
        None, description="Key of the token digests, 16 to 64 bytes in hex. The control plane has the same."
    )
    pepper_file: Path | None = Field(
        None, description="A file that holds the pepper, instead of the variable."
    )
    shards: int = Field(
        SHARDS_DEFAULT,
        ge=1,
        le=SHARDS_MAX,
        description="Shards of the installation; never changed once it has data.",
    )
    redis_timeout_s: float = Field(
        1.0, gt=0, le=30, description="Longest wait for an answer of Redis; then 503."
    )
    redis_depth_max: int = Field(
        10_000, ge=1, le=1_000_000, description="Commands in flight to Redis; beyond, 503."
    )
    hold_ttl_s: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="How long a hold outlives a gateway that died; extended while a request runs.",
    )
    lookups_max: int = Field(256, ge=1, le=10_000, description="Tokens being looked up at once; beyond, 503.")
    head_bytes_max: int = Field(
        32_768, ge=1024, le=1_048_576, description="Longest request head; beyond, 431."
    )
    target_bytes_max: int = Field(8_192, ge=64, le=65_536, description="Longest request target; beyond, 414.")
    field_count_max: int = Field(
        100, ge=8, le=1000, description="Most header fields in a request; beyond, 431."
    )
    body_bytes_max: int = Field(
        68_719_476_736,
        ge=0,
        description="Longest request body, in bytes; beyond, 413. Bodies are streamed, never kept.",
    )
    connections_max: int = Field(
        20_000, ge=1, description="Open connections of workloads a worker; beyond, 503."
    )
    connections_per_address_max: int = Field(
        8_192,
        ge=1,
        description="Open connections of one client address a worker; beyond, 503. Trusted networks are exempt.",
    )
    connection_requests_max: int = Field(
        100_000,
        ge=1,
        description="Requests on one connection; the last one is answered with Connection: close.",
    )
    trusted_networks: str = Field(
        "",
        description="Networks of proxies before the gateway, comma-separated, whose X-Forwarded-… and Forwarded count.",
    )
    proxy_protocol_networks: str = Field(
        "",
        description="Networks whose connections begin with a PROXY protocol header, comma-separated.",
    )
    tls_certificate: Path | None = Field(
        None, description="Certificate chain of the listener, PEM; with it, `listen` speaks TLS."
    )
    tls_key: Path | None = Field(None, description="Private key of the certificate, PEM, not encrypted.")
    tls_client_ca: Path | None = Field(
        None, description="Authorities whose client certificates are accepted, PEM; routes say who needs one."
    )
    own_prefix: str = Field(
        "/-/",
        max_length=64,
        description="The gateway's own paths, never forwarded: what a key asks about itself is under it.",
    )
    head_timeout_s: float = Field(
        10.0, gt=0, description="From the first byte of a head to its end; then 408."
    )
    idle_timeout_s: float = Field(
        75.0, gt=0, description="A kept-alive connection without a request; then closed."
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="A request body or a reader of an answer that stands still."
    )
    upstream_connections_max: int = Field(1_024, ge=1, description="Connections to one upstream a worker.")
    upstream_waiting_max: int = Field(
        1_024, ge=0, description="Requests waiting for one of those; beyond, 503."
    )
    upstream_idle_s: float = Field(15.0, gt=0, description="How long an unused upstream connection is kept.")
    dns_ttl_s: float = Field(
        10.0, gt=0, le=3600, description="How long the addresses of an upstream's name are taken for granted."
    )
    drain_timeout_s: float = Field(
        25.0, ge=0, le=3600, description="After SIGTERM: time for requests to finish."
    )
    access_log: str = Field("on", description="on, off, or the fraction of requests to log, such as 0.01.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )

    @field_validator("listen", "management_listen")
    @classmethod
    def _is_address(cls, text: str) -> str:
        parse_address(text)
        return text

    @field_validator("trusted_networks", "proxy_protocol_networks")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        Networks(text)
        return text

    @field_validator("own_prefix")
    @classmethod
    def _is_prefix(cls, text: str) -> str:
        if normal_path(text) == b"/" or not text.endswith("/"):
            raise ValueError(
                f"{text!r} is not a prefix of its own: write a path that ends with a slash, such as '/-/'"
            )
        return text

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, url: str) -> str:
        RedisAddress.parse(url)
        return url

    @field_validator("access_log")
    @classmethod
    def _is_fraction(cls, text: str) -> str:
        _access_log_fraction(text)
        return text

    @property
    def tls(self) -> ListenerTls | None:
        """The listener's files; None if it speaks plain HTTP."""
        if self.tls_certificate is None:
            return None
        return ListenerTls(self.tls_certificate, self.tls_key or self.tls_certificate, self.tls_client_ca)

    @property
    def access_log_fraction(self) -> float:
        """0 is off, 1 logs every request."""
        return _access_log_fraction(self.access_log)


def parse_address(text: str) -> tuple[str, int]:
    """host and port out of "host:port" or "[v6]:port". Raises ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104 - an empty host means every address


def _access_log_fraction(text: str) -> float:
    words = {"on": 1.0, "off": 0.0}
    try:
        fraction = words.get(text.lower(), -1.0) if text.lower() in words else float(text)
    except ValueError:
        fraction = -1.0
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"{text!r} is neither on, nor off, nor a fraction from 0 to 1")
    return fraction


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything that a gateway is told, found to be good."""

    settings: GatewaySettings
    routes: RouteTable
    pepper: Pepper
    tls: ssl.SSLContext | None
    """The listener's, if it speaks TLS."""

    def files(self) -> frozenset[Path]:
        """The files that are read again when they change."""
        config = [self.settings.config] if self.settings.config is not None else []
        own = self.settings.tls.files() if self.settings.tls is not None else ()
        return frozenset(
            (*config, *own, *(path for route in self.routes.routes for path in upstream_files(route.tls)))
        )


def load_settings(overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Environment, route table, pepper and certificates, with `overrides` (from the command line) before the environment.

    Raises SettingsError with every problem of them all.
    """
    try:
        settings = GatewaySettings(**(overrides or {}))
    except ValidationError as error:
        raise SettingsError([sentence("TOLLKEEPER_", problem) for problem in error.errors()]) from None
    problems: list[str] = []
    pepper, routes, tls = Pepper(b""), RouteTable(()), None
    try:
        pepper = read_pepper(settings.pepper, settings.pepper_file)
    except SettingsError as error:
        problems += error.problems
    try:
        routes = _routes(settings)
    except SettingsError as error:
        problems += error.problems
    try:
        tls = listener_context(settings.tls) if settings.tls is not None else None
    except TlsFilesError as error:
        problems.append(f"TOLLKEEPER_TLS_…: {error}.")
    problems += _tls_problems(settings, routes)
    problems += _own_prefix_problems(settings.own_prefix.encode(), routes)
    if problems:
        raise SettingsError(problems)
    return Loaded(settings, routes, pepper, tls)


def _tls_problems(settings: GatewaySettings, routes: RouteTable) -> Iterator[str]:
    if settings.tls is None and (settings.tls_key or settings.tls_client_ca):
        yield "TOLLKEEPER_TLS_KEY and TOLLKEEPER_TLS_CLIENT_CA need TOLLKEEPER_TLS_CERTIFICATE."
    for route in routes.routes:
        if route.client_certificate and settings.tls_client_ca is None:
            yield f"route {route.name}: client_certificate needs TOLLKEEPER_TLS_CLIENT_CA, or nobody can have one."
        if any(upstream.scheme == "https" for upstream in route.upstreams):
            try:
                upstream_context(route.tls)
            except TlsFilesError as error:
                yield f"route {route.name}: tls: {error}."


def _own_prefix_problems(own_prefix: bytes, routes: RouteTable) -> Iterator[str]:
    for route in routes.routes:
        if (route.path.rstrip(b"/") + b"/").startswith(own_prefix):
            yield (
                f"route {route.name}: {route.path.decode()!r} lies under the gateway's own prefix "
                f"{own_prefix.decode()!r}, which is never forwarded: give it another path, or set TOLLKEEPER_OWN_PREFIX."
            )


def read_pepper(text: str | None, path: Path | None) -> Pepper:
    """The pepper out of the variable or the file, in hex. Raises SettingsError, never with its value."""
    if (text is None) == (path is None):
        raise SettingsError(
            ["TOLLKEEPER_PEPPER or TOLLKEEPER_PEPPER_FILE must be given, and only one of them."]
        )
    if text is None and path is not None:
        try:
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f"TOLLKEEPER_PEPPER_FILE cannot be read: {type(error).__name__}."]) from None
    try:
        pepper = bytes.fromhex((text or "").strip())
    except ValueError:
        raise SettingsError(["The pepper is not hexadecimal."]) from None
    if not PEPPER_LENGTH_MIN <= len(pepper) <= PEPPER_LENGTH_MAX:
        raise SettingsError(
            [f"The pepper must have {PEPPER_LENGTH_MIN} to {PEPPER_LENGTH_MAX} bytes (two hex digits each)."]
        )
    return Pepper(pepper)


def _routes(settings: GatewaySettings) -> RouteTable:
    if settings.config is not None:
        if settings.upstream is not None:
            raise SettingsError(["A route table and TOLLKEEPER_UPSTREAM exclude each other."])
        return load_routes(settings.config)
    if settings.upstream is None:
        raise SettingsError(
            ["Nothing to forward to: give TOLLKEEPER_CONFIG (--config) or TOLLKEEPER_UPSTREAM (--upstream)."]
        )
    try:
        return RouteTable((Route("default", b"/", (parse_upstream(settings.upstream),)),))
    except ValueError as error:
        raise SettingsError([f"TOLLKEEPER_UPSTREAM: {error}."]) from None
