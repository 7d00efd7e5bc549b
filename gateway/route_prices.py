"""What a route's entry in the table says of money: price, meters, rates, estimate. Pure validation, for `route_table`.

Nothing is free by accident: a unit has a rate of its own or one in every row of the table, what is not in the table is
refused or has rates that somebody wrote down, and a price that only the answer tells needs something to hold until then.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gateway.contract.money import AMOUNT_MAX, Microcredits, MoneyError, parse_credits
from gateway.http1.fields import TOKEN
from gateway.json_pointer import Pointer, parse_pointer
from gateway.metering import Meter, MeterPlan
from gateway.pricing import Estimate, Price, Rate, Rates, RateTable

READ_AHEAD_DEFAULT: Final = 65_536
READ_AHEAD_MAX: Final = 1_048_576

_UNIT: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FIELD_NAME: Final = re.compile(TOKEN.decode("ascii"))
_METERS_MAX: Final = 16
_ROWS_MAX: Final = 10_000
_VALUE_MAX: Final = 256


def _credits(value: object) -> Microcredits:
    if not isinstance(value, str):
        raise ValueError('write credits as a decimal string, such as "0.10"')
    try:
        return parse_credits(value)
    except MoneyError as error:
        raise ValueError(str(error)) from None


def _pointers(value: object) -> tuple[Pointer, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError('write a JSON pointer such as "/usage/output_tokens", or a list of them')
    if len(texts) > 8:
        raise ValueError("at most 8 pointers")
    return tuple(parse_pointer(text) for text in texts)


def _unit(value: object) -> str:
    if not isinstance(value, str) or _UNIT.fullmatch(value) is None:
        raise ValueError("a unit is lower-case letters, digits and '_', at most 64, such as output_tokens")
    return value


def _header(value: object) -> bytes:
    if not isinstance(value, str) or _FIELD_NAME.fullmatch(value) is None:
        raise ValueError("this is not the name of a header field")
    return value.lower().encode("ascii")


Credits = Annotated[Microcredits, BeforeValidator(_credits)]
Pointers = Annotated[tuple[Pointer, ...], BeforeValidator(_pointers)]
Unit = Annotated[str, BeforeValidator(_unit)]
HeaderName = Annotated[bytes, BeforeValidator(_header)]


class Strict(BaseModel):
    """A table of the file: these words and no others."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class MeterEntry(Strict):
    """A unit, where its count stands in the answer, and perhaps its rate."""

    unit: Unit
    header: HeaderName | None = None
    json_pointers: Pointers | None = Field(None, alias="json")
    event: Pointers | None = None
    events: Literal["last", "each"] = "last"
    per_1: Credits | None = None
    per_1000: Credits | None = None
    per_1000000: Credits | None = None

    @model_validator(mode="after")
    def _has_one_source_and_at_most_one_rate(self) -> MeterEntry:
        in_body = self.json_pointers is not None or self.event is not None
        if in_body == (self.header is not None):
            raise ValueError("a meter reads a header, or json (and event) of the body: give one of the two")
        if len(self._rates()) > 1:
            raise ValueError("give one of per_1, per_1000 and per_1000000")
        return self

    def _rates(self) -> list[Rate]:
        given = ((self.per_1, 1), (self.per_1000, 1_000), (self.per_1000000, 1_000_000))
        return [Rate(amount, per) for amount, per in given if amount is not None]

    @property
    def rate(self) -> Rate | None:
        """Its own rate; None if the table has it."""
        return next(iter(self._rates()), None)

    def meter(self) -> Meter:
        json = self.json_pointers or ()
        return Meter(self.unit, self.header, json, self.event or json, self.events == "each")


class RatesEntry(Strict):
    """Rates by a field."""

    request: Pointers | None = None
    answer: Pointers | None = None
    per: Literal[1, 1000, 1000000] = 1000
    otherwise: Literal["refuse"] | dict[Unit, Credits]
    table: dict[str, dict[Unit, Credits]] = Field(min_length=1, max_length=_ROWS_MAX)

    @model_validator(mode="after")
    def _has_one_field(self) -> RatesEntry:
        if (self.request is None) == (self.answer is None):
            raise ValueError(
                'rates depend on one field: give request or answer, a JSON pointer such as "/model"'
            )
        if self.answer is not None and self.otherwise == "refuse":
            raise ValueError(
                'an answer is too late to refuse: with answer, otherwise has rates, such as { output_tokens = "1" }'
            )
        if long := next((value for value in self.table if len(value) > _VALUE_MAX), None):
            raise ValueError(f"{long[:40]!r}… is longer than {_VALUE_MAX} characters")
        return self

    def rate_table(self, own: Rates, units: set[str]) -> RateTable:
        """`own` are rates outside of the table, `units` those that each row must have. Raises ValueError."""
        rows = {value: self._row(f"table.{value}", row, own, units) for value, row in self.table.items()}
        otherwise = None
        if isinstance(self.otherwise, dict):
            otherwise = self._row("otherwise", self.otherwise, own, units)
        return RateTable(rows, otherwise, self.request or (), self.answer or ())

    def _row(self, name: str, row: dict[str, Microcredits], own: Rates, units: set[str]) -> Rates:
        if row.keys() != units:
            raise ValueError(
                f"rates.{name} must have a rate for each of {', '.join(sorted(units))}, and no other"
            )
        return {**own, **{unit: Rate(amount, self.per) for unit, amount in row.items()}}


class PriceEntry(Strict):
    """`price` of a route."""

    request: Credits = Microcredits(0)
    kib_in: Credits = Microcredits(0)
    kib_out: Credits = Microcredits(0)
    second: Credits = Microcredits(0)
    meters: list[MeterEntry] = Field([], max_length=_METERS_MAX)
    rates: RatesEntry | None = None
    cap_per_request: Credits | None = None
    upstream_failure: Literal["free", "charge"] = "free"

    @model_validator(mode="after")
    def _every_unit_has_a_rate(self) -> PriceEntry:
        units = [meter.unit for meter in self.meters]
        if len(set(units)) < len(units):
            raise ValueError("a unit is metered twice: give one meter several pointers instead")
        if self.cap_per_request is not None and self.cap_per_request < self.request:
            raise ValueError("cap_per_request is less than request")
        unrated = [meter.unit for meter in self.meters if meter.rate is None]
        if unrated and self.rates is None:
            raise ValueError(f"{unrated[0]} has no rate: give it per_1000, or a table of rates")
        if self.rates is not None and not unrated:
            raise ValueError(
                "the table of rates has no unit: leave out per_1000 where a meter's rate is in the table"
            )
        self.price()
        return self

    def price(self) -> Price:
        """Raises ValueError."""
        own = {meter.unit: meter.rate for meter in self.meters if meter.rate is not None}
        unrated = {meter.unit for meter in self.meters if meter.rate is None}
        return Price(
            self.request, self.kib_in, self.kib_out, self.second, own,
            self.rates.rate_table(own, unrated) if self.rates is not None else None,
            AMOUNT_MAX if self.cap_per_request is None else self.cap_per_request,
            self.upstream_failure == "charge",
        )  # fmt: skip

    def plan(self) -> MeterPlan | None:
        """How to read answers; None if nothing is metered."""
        if not self.meters:
            return None
        field = self.rates.answer if self.rates is not None and self.rates.answer is not None else ()
        return MeterPlan([meter.meter() for meter in self.meters], field)


class EstimateEntry(Strict):
    """`estimate` of a route: what is held beside `hold`."""

    per_kib: Credits = Microcredits(0)
    json_pointers: Pointers | None = Field(None, alias="json")
    unit: Unit | None = None
    missing: int | None = Field(None, ge=0, le=2**53)

    @model_validator(mode="after")
    def _knows_what_to_do_without(self) -> EstimateEntry:
        if self.json_pointers is None:
            if self.unit is not None or self.missing is not None:
                raise ValueError("unit and missing go with json")
            if not self.per_kib:
                raise ValueError("an estimate has per_kib, or json")
        elif self.unit is None or self.missing is None:
            raise ValueError(
                "json needs unit, and missing: how many units to hold for where the field is not there"
            )
        return self

    def estimate(self, base: Microcredits, price: PriceEntry) -> Estimate:
        """Raises ValueError."""
        if self.unit is not None and all(meter.unit != self.unit for meter in price.meters):
            raise ValueError(f"estimate.unit: no meter has the unit {self.unit!r}")
        return Estimate(base, self.per_kib, self.json_pointers or (), self.unit or "", self.missing or 0)
