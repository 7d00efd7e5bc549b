"""The options that several commands share, and the JSON fields that they become.

An option that was not given is left out of the body: the API's own default, or "leave as it is", applies.
"""

from enum import StrEnum
from typing import Annotated, Any

import typer

NO_LIMIT = "none"


class Period(StrEnum):
    """The reset periods of a budget, all in UTC."""

    NEVER = "never"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


_BUDGET = "Budget"

LimitOption = Annotated[
    str | None,
    typer.Option(
        "--limit",
        "--credit-limit",
        metavar="CREDITS",
        help=f'Credit limit, such as "12.50"; "0" blocks, "{NO_LIMIT}" removes it.',
        rich_help_panel=_BUDGET,
    ),
]
PeriodOption = Annotated[
    Period | None,
    typer.Option(
        "--period", "--reset-period", help="When the limit starts anew (UTC).", rich_help_panel=_BUDGET
    ),
]
DisplayNameOption = Annotated[
    str | None, typer.Option("--display-name", help="What people read; free text, may change.")
]
DescriptionOption = Annotated[str | None, typer.Option("--description", help="What it is for.")]
BillingDayOption = Annotated[
    int | None,
    typer.Option(
        "--billing-day",
        min=1,
        max=31,
        help="Day on which months begin (31: the last).",
        rich_help_panel=_BUDGET,
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """The body of a request: the options that were given, with the word for "no limit" as null."""
    body = {name: value for name, value in options.items() if value is not None}
    if body.get("credit_limit") == NO_LIMIT:
        body["credit_limit"] = None
    return body
