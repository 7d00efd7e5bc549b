"""What bodies and queries about alerts may say. As strict as the others."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, Field

from control.addresses import check_web_url, is_mail_address
from control.api.bodies import Body, ShortText
from control.api.queries import Query
from control.domain.alerts import THRESHOLD_MAX
from control.domain.destinations import DestinationPatch, Kind, NewDestination
from control.domain.redaction import holds_secret
from control.domain.refusals import Invalid

ADDRESSES_MAX: Final = 20


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

    def new(self) -> NewDestination:
        """Raises Invalid unless it has what its kind needs, and nothing of another's."""
        needed, other = ("addresses", "url") if self.kind == "email" else ("url", "addresses")
        if getattr(self, needed) is None:
            raise Invalid.field(
                needed, f"is missing; a destination of the kind {self.kind} has it", code="missing_field"
            )
        if getattr(self, other) is not None:
            raise Invalid.field(other, f"is not for a destination of the kind {self.kind}")
        addresses = tuple(self.addresses or ())
        if len(set(addresses)) != len(addresses):
            raise Invalid.field("addresses", "has an address twice")
        name = self.name or _NAMES[self.kind]
        return NewDestination(self.kind, name, self.min_threshold, self.url, addresses)


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
