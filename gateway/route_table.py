"""The route table: a TOML file (DESIGN §5) read into routes, or a list of everything that is wrong with it.

Reads one file; everything else here is validation. Called by `settings`, at start and when a table is checked.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv6Address
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from gateway.contract.money import Microcredits
from gateway.http1.head import HeadError
from gateway.http1.target import normalise
from gateway.route_prices import (
    READ_AHEAD_DEFAULT,
    READ_AHEAD_MAX,
    Credits,
    EstimateEntry,
    PriceEntry,
    Strict,
)
from gateway.routing import (
    Dialect,
    Ejection,
    HealthCheck,
    Route,
    RouteTable,
    Timeouts,
    Upstream,
    UpstreamTls,
)

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?")
_LABEL: Final = r"[0-9a-z_](?:[0-9a-z_-]{0,61}[0-9a-z_])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")


class SettingsError(Exception):
    """Every problem that was found, each a sentence that names the setting."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _TimeoutsEntry(Strict):
    connect_s: float = Field(2.0, gt=0, le=60)
    first_byte_s: float = Field(60.0, gt=0, le=86_400)
    between_bytes_s: float = Field(60.0, gt=0, le=86_400)
    tunnel_idle_s: float = Field(300.0, gt=0, le=86_400)
    half_closed_s: float = Field(1.0, ge=0, le=86_400)


class _TlsEntry(Strict):
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    verify: bool = True

    @field_validator("server_name")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and _HOST_NAME.fullmatch(name.lower()) is None and not _is_ipv6(name):
            raise ValueError(f"{name!r} is not a host's name or address")
        return name

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> _TlsEntry:
        if self.key is not None and self.certificate is None:
            raise ValueError("a key needs its certificate")
        return self


class _EjectionEntry(Strict):
    after_failures: int = Field(3, ge=1, le=1000)
    for_s: float = Field(1.0, gt=0, le=3600)
    for_max_s: float = Field(10.0, gt=0, le=3600)
    slow_start_s: float = Field(5.0, ge=0, le=3600)


class _HealthEntry(Strict):
    path: str
    every_s: float = Field(5.0, ge=0.1, le=3600)
    timeout_s: float = Field(2.0, gt=0, le=60)
    healthy_after: int = Field(2, ge=1, le=100)
    unhealthy_after: int = Field(3, ge=1, le=100)

    @field_validator("path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        normal_path(path)
        return path

    def check(self) -> HealthCheck:
        return HealthCheck(**{**self.model_dump(), "path": self.path.encode("ascii")})


class _RouteEntry(Strict):
    name: str
    path: str
    upstream: list[str] = Field(min_length=1, max_length=64)
    host: str | None = None
    methods: list[str] | None = Field(None, min_length=1, max_length=64)
    strip_path: bool = False
    raw_path: bool = False
    upgrade: bool = True
    client_certificate: bool = False
    hold: Credits | None = None
    hold_step: Credits | None = None
    estimate: EstimateEntry | None = None
    read_ahead_bytes: int = Field(READ_AHEAD_DEFAULT, ge=0, le=READ_AHEAD_MAX)
    price: PriceEntry = PriceEntry()
    errors: Dialect = "problem"
    quota_status: Literal[402, 429] = 402
    timeouts: _TimeoutsEntry = _TimeoutsEntry()
    tls: _TlsEntry = _TlsEntry()
    ejection: _EjectionEntry = _EjectionEntry()
    health: _HealthEntry | None = None

    @field_validator("upstream", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("upstream")
    @classmethod
    def _are_targets(cls, urls: list[str]) -> list[str]:
        targets = [parse_upstream(url) for url in urls]
        if len(set(targets)) < len(targets):
            raise ValueError("a target is given twice")
        return urls

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise ValueError("a route's name is lower-case letters, digits, '-', '_' and '.', at most 64")
        return name

    @field_validator("path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        normal_path(path)
        return path

    @field_validator("host")
    @classmethod
    def _is_host(cls, host: str | None) -> str | None:
        if host is None:
            return None
        name = host.lower()
        if not (_is_ipv6(name[1:-1]) if name[:1] + name[-1:] == "[]" else _HOST_NAME.fullmatch(name)):
            raise ValueError(
                f"{host!r} is not a host's name or address: write it without scheme, port and path"
            )
        return name

    @field_validator("methods")
    @classmethod
    def _are_methods(cls, methods: list[str] | None) -> list[str] | None:
        for method in methods or ():
            if _METHOD.fullmatch(method) is None:
                raise ValueError(f"{method!r} is not a method: write it in capitals")
        return methods

    @model_validator(mode="after")
    def _hold_covers_price(self) -> _RouteEntry:
        if self.hold is not None and self.hold < self.price.request:
            raise ValueError("hold is less than price.request: it would always be overspent")
        if self.price.meters and self.hold is None and self.estimate is None:
            raise ValueError(
                "what its meters count is known only when it ends: give hold or estimate, which is also charged where the "
                "upstream reports no usage"
            )
        if self.estimate is not None:
            self.estimate.estimate(Microcredits(0), self.price)
        return self

    def route(self, directory: Path) -> Route:
        """The route. Paths of files are relative to the table's `directory`."""
        tls = self.tls.model_dump()
        for name in ("ca", "certificate", "key"):
            tls[name] = str(directory / tls[name]) if tls[name] is not None else None
        price = self.price.price()
        hold = Microcredits(min(self.price.request if self.hold is None else self.hold, price.cap))
        return Route(
            name=self.name,
            path=self.path.encode("ascii"),
            upstreams=tuple(parse_upstream(url) for url in self.upstream),
            host=self.host.encode("ascii") if self.host else None,
            methods=frozenset(method.encode() for method in self.methods) if self.methods else None,
            strip_path=self.strip_path,
            raw_path=self.raw_path,
            upgrade=self.upgrade,
            client_certificate=self.client_certificate,
            hold=hold,
            hold_step=hold if self.hold_step is None else self.hold_step,
            estimate=self.estimate.estimate(hold, self.price) if self.estimate else None,
            read_ahead_bytes=self.read_ahead_bytes,
            price=price,
            meters=self.price.plan(),
            errors=self.errors,
            quota_status=self.quota_status,
            timeouts=Timeouts(**self.timeouts.model_dump()),
            tls=UpstreamTls(**tls),
            ejection=Ejection(**self.ejection.model_dump()),
            health=self.health.check() if self.health else None,
        )


def parse_upstream(url: str) -> Upstream:
    """An upstream's URL: http or https, a host, perhaps a port and a path. Raises ValueError, which repeats no password."""
    shown = "what is given" if "@" in url else repr(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"{shown} has an invalid host or port") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{shown} is not an http:// or https:// URL")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("an upstream's URL has no user, password, query or fragment")
    if port == 0 or not (_is_ipv6(host) if ":" in host else _HOST_NAME.fullmatch(host)):
        raise ValueError(f"{shown} has an invalid host or port")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    return Upstream(
        scheme, host, port or (443 if scheme == "https" else 80), normal_path(parts.path or "/").rstrip(b"/")
    )


def normal_path(path: str) -> bytes:
    """A path that is written in the form that requests are matched in. Raises ValueError."""
    try:
        raw = path.encode("ascii")
        target = normalise(b"GET", raw, b"")
    except (UnicodeEncodeError, HeadError) as error:
        raise ValueError(f"{path!r} is not a path: {error}") from None
    if target.objection is not None:
        raise ValueError(f"{path!r} is not a path: {target.objection}")
    if target.path != raw:
        raise ValueError(f"{path!r} is not in normal form: write {target.path.decode()!r}")
    return raw


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def load_routes(path: Path) -> RouteTable:
    """Read a route table. Raises SettingsError with every problem in it, each with the route's name or position."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror or type(error).__name__}."]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: not TOML: {error}."]) from None
    problems = [f"{path}: unknown table or key {name!r}." for name in document if name != "route"]
    entries = document.get("route", [])
    if not isinstance(entries, list) or not entries:
        raise SettingsError([*problems, f"{path}: has no [[route]]."])
    routes: list[Route] = []
    for position, entry in enumerate(entries, 1):
        name = entry.get("name", f"#{position}") if isinstance(entry, dict) else f"#{position}"
        try:
            routes.append(_RouteEntry.model_validate(entry).route(path.parent))
        except ValidationError as error:
            problems += [sentence(f"{path}: route {name}: ", problem) for problem in error.errors()]
    problems += [
        f"{path}: {count} routes are named {name!r}."
        for name, count in Counter(route.name for route in routes).items()
        if count > 1
    ]
    problems += [f"{path}: {words}." for words in _shadowed(routes)]
    if problems:
        raise SettingsError(problems)
    return RouteTable(routes)


def _shadowed(routes: Sequence[Route]) -> Iterator[str]:
    """Pairs of which the second is never asked for some of its requests, whatever it costs."""
    for first, second in combinations(routes, 2):
        if first.path.rstrip(b"/") != second.path.rstrip(b"/") or first.host != second.host:
            continue
        if first.methods == second.methods or (first.methods or frozenset()) & (
            second.methods or frozenset()
        ):
            yield f"routes {first.name!r} and {second.name!r} answer the same requests"


def sentence(where: str, problem: Mapping[str, Any]) -> str:
    """A problem that pydantic found, as one sentence behind the place where it is."""
    place = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if where == "TOLLKEEPER_":
        place = place.upper()
    return f"{where}{place}: {message}." if place else f"{where}{message}."
