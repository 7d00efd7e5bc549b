"""What the body of a request may say, and how it is read: strictly, with the field named where it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from re import ASCII, IGNORECASE
from re import compile as compile_pattern
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import orjson
from aiohttp import web
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from control.domain.alerts import THRESHOLD_MAX
from control.domain.budgets import checked_pace
from control.domain.grants import NewGrant
from control.domain.keys import KeyPatch, NewKey
from control.domain.names import (
    DESCRIPTION_LENGTH_MAX,
    DISPLAY_NAME_LENGTH_MAX,
    clean_text,
    name_and_display_name,
)
from control.domain.organizations import NewOrganization, OrganizationPatch, unfit
from control.domain.prepaid import Billing
from control.domain.refusals import FieldError, Invalid
from control.domain.service_accounts import AccountPatch, NewAccount
from gateway.contract.money import Microcredits, parse_credits
from gateway.contract.periods import Period
from gateway.contract.records import ALERTS_DEFAULT, Budget, Enforcement, Pace

BODY_BYTES_MAX: Final = 64 * 1024
THRESHOLDS_MAX: Final = 10
PACE_MAX: Final = 1_000_000
IDEMPOTENCY_KEY_LENGTH_MAX: Final = 255

_RFC3339: Final = compile_pattern(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", ASCII | IGNORECASE
)
_READ_ONLY: Final = frozenset(
    {
        *("id", "name", "kind", "principal", "organization", "organization_name", "account", "account_name"),
        *("hint", "token", "status", "created_at", "created_by", "updated_at", "deleted_at", "revoked_at"),
        *("last_used_at", "spent", "held", "remaining", "resets_at", "counters_available"),
        *("granted", "lost", "observed", "in_flight"),
    }
)


def _credits(value: object, or_else: str = ", or null for no limit") -> object:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f'must be a string of credits such as "12.50"{or_else}; JSON numbers lose digits')
    return parse_credits(value)


def instant(value: object) -> object:
    """RFC 3339 as a UTC datetime in whole milliseconds, the precision in which expiry is enforced."""
    if value is None:
        return None
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError('must be a time in RFC 3339, such as "2031-01-31T12:00:00Z"')
    try:
        at = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a time that exists") from None
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def _thresholds(values: list[int]) -> tuple[int, ...]:
    """Ascending, each once."""
    if any(not 1 <= value <= THRESHOLD_MAX for value in values):
        raise ValueError(f"must be whole percents of the limit, 1 to {THRESHOLD_MAX}, such as [80, 100]")
    kept = tuple(sorted(set(values)))
    if len(kept) > THRESHOLDS_MAX:
        raise ValueError(f"has {len(kept)} thresholds; at most {THRESHOLDS_MAX} are possible")
    return kept


def _amount(value: object) -> object:
    if value is None:
        raise ValueError('must be a string of credits such as "12.50"')
    amount = _credits(value, or_else="")
    if amount == 0:
        raise ValueError("must be more than 0 credits")
    return amount


CreditLimit = Annotated[Microcredits | None, BeforeValidator(_credits)]
Amount = Annotated[Microcredits, BeforeValidator(_amount)]
Thresholds = Annotated[list[int], Field(max_length=1_000), AfterValidator(_thresholds)]
Pacing = Annotated[int | None, Field(ge=1, le=PACE_MAX)]
InFlight = Annotated[int | None, Field(ge=0, le=PACE_MAX)]
Instant = Annotated[datetime | None, BeforeValidator(instant)]
ShortText = Annotated[str, AfterValidator(partial(clean_text, length_max=DISPLAY_NAME_LENGTH_MAX))]
LongText = Annotated[
    str, AfterValidator(partial(clean_text, length_max=DESCRIPTION_LENGTH_MAX, multiline=True))
]
BillingDay = Annotated[int, Field(ge=1, le=31)]

_RENAMED: Final = {
    "credit_limit": "limit",
    "reset_period": "period",
    "alert_thresholds": "alerts",
    "requests_per_minute": "per_minute",
    "requests_in_flight": "in_flight",
}
"""What the domain calls the fields of a budget and of a pace."""

Patch = TypeVar("Patch")


class Body(BaseModel):
    """An object with these fields and no others; types are not bent ("1" is no number)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Budgeted(Body):
    credit_limit: CreditLimit = None
    reset_period: Period = "never"
    enforcement: Enforcement = "enforce"
    alert_thresholds: Thresholds = list(ALERTS_DEFAULT)

    def budget(self, billing_day: int = 1) -> Budget:
        alerts = tuple(self.alert_thresholds)
        return Budget(self.credit_limit, self.reset_period, billing_day, 0, self.enforcement, alerts)


class _Paced(Body):
    requests_per_minute: Pacing = None
    burst: Pacing = None
    requests_in_flight: InFlight = None

    def pace(self) -> Pace:
        return checked_pace(Pace(self.requests_per_minute, self.burst, self.requests_in_flight))


class _Named(_Budgeted):
    name: str | None = None
    display_name: ShortText | None = None
    description: LongText | None = None

    @property
    def names(self) -> tuple[str, str]:
        return name_and_display_name(self.name, self.display_name)


class CreateOrganization(_Named):
    billing_day: BillingDay = 1
    billing: Billing | None = None

    def new(self) -> NewOrganization:
        said = self.model_fields_set
        for field in ("credit_limit", "reset_period", "enforcement"):
            enforcement = self.enforcement if field == "enforcement" else None
            if field in said and (reason := unfit(self.billing, {_RENAMED.get(field, field)}, enforcement)):
                raise Invalid.field(field, f"does not go with this billing. {reason}")
        return NewOrganization(*self.names, self.description, self.budget(self.billing_day), self.billing)


class CreateServiceAccount(_Named, _Paced):
    def new(self) -> NewAccount:
        return NewAccount(*self.names, self.description, self.budget(), self.pace())


class CreateKey(_Budgeted, _Paced):
    name: ShortText
    expires_at: Instant = None

    def new(self) -> NewKey:
        return NewKey(self.name, self.expires_at, self.budget(), self.pace())


class CreateGrant(Body):
    amount: Amount
    expires_at: Instant = None
    note: LongText | None = None

    def new(self, idempotency_key: str | None) -> NewGrant:
        return NewGrant(self.amount, self.expires_at, self.note, idempotency_key)


def idempotency_key(request: web.Request) -> str | None:
    """The header of that name. Raises Invalid (400) unless it is one of 1 to 255 printable characters of ASCII."""
    said = request.headers.getall("Idempotency-Key", [])
    if not said:
        return None
    key = said[0]
    if (
        len(said) > 1
        or not 1 <= len(key) <= IDEMPOTENCY_KEY_LENGTH_MAX
        or not (key.isascii() and key.isprintable())
    ):
        reason = f"must be there once, with 1 to {IDEMPOTENCY_KEY_LENGTH_MAX} printable characters of ASCII"
        raise Invalid.field("Idempotency-Key", reason)
    return key


class _Patch(_Budgeted):
    """Defaults stand for nothing here: only what the caller has set counts."""

    def changes(self) -> dict[str, Any]:
        return {_RENAMED.get(name, name): getattr(self, name) for name in self.model_fields_set}


class PatchOrganization(_Patch):
    display_name: ShortText = ""
    description: LongText | None = None
    status: Literal["active", "inactive"] = "active"
    billing_day: BillingDay = 1
    billing: Billing | None = None

    def patch(self) -> OrganizationPatch:
        return cast("OrganizationPatch", self.changes())


class PatchServiceAccount(_Patch, _Paced):
    display_name: ShortText = ""
    description: LongText | None = None

    def patch(self) -> AccountPatch:
        return cast("AccountPatch", self.changes())


class PatchKey(_Patch, _Paced):
    name: ShortText = ""
    expires_at: Instant = None

    def patch(self) -> KeyPatch:
        return cast("KeyPatch", self.changes())


Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: web.Request, model: type[Model]) -> Model:
    """The body as `model`. Raises Invalid (400), or HTTPUnsupportedMediaType if it is not said to be JSON."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(
            reason="The body must be JSON, with Content-Type: application/json"
        )
    try:
        said = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise Invalid(
            "malformed_json", f"The body is not JSON (line {error.lineno}, column {error.colno})."
        ) from None
    if not isinstance(said, dict):
        raise Invalid("malformed_json", "The body must be a JSON object.")
    return validated(model, said)


def validated(model: type[Model], said: dict[str, Any]) -> Model:
    """Raises Invalid with every field that is wrong."""
    try:
        return model.model_validate(said)
    except ValidationError as error:
        raise _invalid(model, error.errors(include_url=False, include_input=False)) from None


def _invalid(model: type[BaseModel], details: Sequence[ErrorDetails]) -> Invalid:
    found = [_explained(model, detail) for detail in details]
    errors = tuple(error for _, error in found)
    words = "; ".join(f"{error.field}: {error.reason}" for error in errors)
    return Invalid(found[0][0], words, errors)


def _explained(model: type[BaseModel], detail: ErrorDetails) -> tuple[str, FieldError]:
    field = ".".join(str(part) for part in detail["loc"])[:80]
    if detail["type"] == "missing":
        return "missing_field", FieldError(field, "is missing")
    if detail["type"] != "extra_forbidden":
        return "invalid_field", FieldError(field, _reason(detail))
    if issubclass(model, _Patch) and field in _READ_ONLY:
        return "immutable_field", FieldError(field, _why_immutable(field))
    accepted = [known.alias or name for name, known in model.model_fields.items()]
    near = get_close_matches(field, accepted, 1)
    return "unknown_field", FieldError(field, f"is not known here; accepted: {', '.join(accepted)}", *near)


def _reason(detail: ErrorDetails) -> str:
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:] if message.startswith("Should") else message


def _why_immutable(field: str) -> str:
    if field == "name":
        return "never changes, for it stands in usage and in what upstreams are told; display_name is what people see"
    if field == "status":
        return "is changed by calls of its own: POST …/activate, deactivate, disable, enable or revoke"
    return "cannot be changed"
