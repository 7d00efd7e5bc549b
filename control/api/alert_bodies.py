"""What bodies and queries about alerts may say. As strict as the others."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from control.addresses import check_web_url, is_mail_address
from control.api.bodies import Body, ShortText
from control.api.queries import Query
from control.domain.alerts import THRESHOLD_MAX
from control.domain.destinations import DestinationPatch, Kind, NewDestination
from control.domain.redaction import holds_secret

ADDRESSES_MAX: Final = 20
_REQUIRED: Final[dict[Kind, str]] = {"webhook": "url", "email": "addresses", "slack": "url"}


def _web_url(url: str) -> str:
    check_web_url(url)
    if holds_secret(url):
        raise ValueError("holds a token of Tollkeeper's own")
    return url


def _mail_address(address: str) -> str:
    if not is_mail_address(address):
        raise ValueError("is not a mail address such as oncall@example.com")
    return address


WebUrl = Annotated[str, AfterValidator(_web_url)]
MailAddress = Annotated[str, AfterValidator(_mail_address)]
Threshold = Annotated[int, Field(ge=1, le=THRESHOLD_MAX)]


class CreateDestination(Body):
    """`url` for a webhook or Slack, `addresses` for e-mail."""

    kind: Kind
    name: ShortText | None = None
    url: WebUrl | None = None
    addresses: Annotated[list[MailAddress], Field(min_length=1, max_length=ADDRESSES_MAX)] | None = None
    min_threshold: Threshold = 1

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> CreateDestination:
        needed = _REQUIRED[self.kind]
        other = "addresses" if needed == "url" else "url"
        if getattr(self, needed) is None:
            raise ValueError(f"a destination of the kind {self.kind} needs `{needed}`")
        if getattr(self, other) is not None:
            raise ValueError(f"a destination of the kind {self.kind} has no `{other}`")
        if self.addresses is not None and len(set(self.addresses)) != len(self.addresses):
            raise ValueError("an address is there twice")
        return self

    def new(self) -> NewDestination:
        addresses = tuple(self.addresses or ())
        return NewDestination(
            self.kind, self.name or _NAMES[self.kind], self.min_threshold, self.url, addresses
        )


_NAMES: Final[dict[Kind, str]] = {"webhook": "Webhook", "email": "E-mail", "slack": "Slack"}


class PatchDestination(Body):
    """Defaults stand for nothing: only what the caller has set counts."""

    name: ShortText = ""
    min_threshold: Threshold = 1
    enabled: bool = True
    rotate_secret: Literal[True] = True

    def patch(self) -> DestinationPatch:
        said: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        return cast("DestinationPatch", said)


class DestinationQuery(Query):
    destination: Annotated[str, Field(max_length=80)] | None = None
