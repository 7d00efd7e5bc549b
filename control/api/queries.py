"""What the query of a request may say: pages, filters, spans of time. As strict as bodies are."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from control.api.bodies import Model, instant, validated
from control.domain.pages import LIMIT_DEFAULT, LIMIT_MAX, Page, page
from control.domain.refusals import Invalid
from control.domain.usage import GroupBy

SPAN_DEFAULT: Final = timedelta(days=30)
SPAN_MAX: Final = timedelta(days=3660)


def _day_or_instant(value: object) -> object:
    """A date stands for its midnight in UTC."""
    if isinstance(value, str) and len(value) == len("2031-01-31"):
        try:
            day = date.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a day that exists") from None
        return datetime(day.year, day.month, day.day, tzinfo=UTC)
    return instant(value)


Moment = Annotated[datetime | None, BeforeValidator(_day_or_instant)]


class Query(BaseModel):
    """These parameters and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Paged(Query):
    limit: int = Field(LIMIT_DEFAULT, ge=1, le=LIMIT_MAX)
    cursor: str | None = None

    @property
    def page(self) -> Page:
        return page(self.limit, self.cursor)


class OrganizationsQuery(Paged):
    status: Literal["active", "inactive", "all"] | None = None


class AccountsQuery(Paged):
    status: Literal["active", "inactive", "deleted", "all"] | None = None


class KeysQuery(Paged):
    status: Literal["active", "disabled", "expired", "revoked", "all"] | None = None


class _Spanned(Paged):
    start: Moment = Field(None, alias="from")
    end: Moment = Field(None, alias="to")

    def span(self, now: datetime) -> tuple[datetime, datetime]:
        """[from, to); until now, from thirty days before the end. Raises Invalid if it is empty or very long."""
        end = self.end or now
        start = self.start or end - SPAN_DEFAULT
        if start >= end:
            raise Invalid.field("from", "is not before `to`")
        if end - start > SPAN_MAX:
            raise Invalid.field("from", "is more than ten years before `to`")
        return start, end


class UsageQuery(_Spanned):
    group_by: GroupBy = "account"


class EventsQuery(_Spanned):
    pass


def read_query(request: web.Request, model: type[Model]) -> Model:
    """The query as `model`. Raises Invalid, also for a parameter that is there twice."""
    said = dict(request.query)
    if len(said) != len(request.query):
        raise Invalid("invalid_field", "A query parameter is there more than once.")
    return validated(model, said)
