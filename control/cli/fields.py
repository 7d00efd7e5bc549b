"""The options that several commands share, and the JSON fields that they become.

An option that was not given is left out of the body: the API's own default, or "leave as it is", applies.
"""

from enum import StrEnum
from typing import Annotated, Any

import typer

from control.cli.failures import CommandFailed, ExitCode

NO_LIMIT = "none"


class Period(StrEnum):
    """The reset periods of a budget, all in UTC."""

    NEVER = "never"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class Enforcement(StrEnum):
    """What happens at a limit."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class Billing(StrEnum):
    """How an organization pays."""

    PREPAID = "prepaid"
    POSTPAID = "postpaid"
    NONE = "none"


_BUDGET = "Budget"
_PACE = "Pace"

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


EnforcementOption = Annotated[
    Enforcement | None,
    typer.Option(
        "--enforcement",
        help="`observe` refuses nothing, and counts what the limits here would have refused.",
        rich_help_panel=_BUDGET,
    ),
]
AlertsOption = Annotated[
    str | None,
    typer.Option(
        "--alerts",
        metavar="PERCENTS",
        help=f'Tell somebody at these percents of the limit, such as "80,100"; "{NO_LIMIT}" at none.',
        rich_help_panel=_BUDGET,
    ),
]
PerMinuteOption = Annotated[
    str | None,
    typer.Option(
        "--requests-per-minute",
        metavar="NUMBER",
        help=f'Requests that may come in a minute; "{NO_LIMIT}" for any number.',
        rich_help_panel=_PACE,
    ),
]
BurstOption = Annotated[
    str | None,
    typer.Option(
        "--burst",
        metavar="NUMBER",
        help=f'How many of them may come at once; "{NO_LIMIT}" for a whole minute\'s.',
        rich_help_panel=_PACE,
    ),
]
InFlightOption = Annotated[
    str | None,
    typer.Option(
        "--requests-in-flight",
        metavar="NUMBER",
        help=f'Requests that may be under way at the same time; 0 blocks, "{NO_LIMIT}" for any number.',
        rich_help_panel=_PACE,
    ),
]
BillingOption = Annotated[
    Billing | None,
    typer.Option(
        "--billing",
        help="`prepaid`: it may spend what `orgs grant` grants; `postpaid`: its limit is only observed; "
        f"`{NO_LIMIT}`: a plain limit.",
        rich_help_panel=_BUDGET,
    ),
]

_NULLABLE = ("credit_limit", "requests_per_minute", "burst", "requests_in_flight", "billing")
_NUMBERS = ("requests_per_minute", "burst", "requests_in_flight")


def given(**options: Any) -> dict[str, Any]:
    """The body of a request: the options that were given, with the word for "no limit" as null.

    Raises CommandFailed (usage) where a number belongs and there is none.
    """
    body = {name: value for name, value in options.items() if value is not None}
    for name in _NULLABLE:
        if body.get(name) == NO_LIMIT:
            body[name] = None
    for name in _NUMBERS:
        if isinstance(said := body.get(name), str):
            body[name] = _number(name, said)
    if isinstance(said := body.get("alert_thresholds"), str):
        parts = [] if said == NO_LIMIT else said.split(",")
        body["alert_thresholds"] = [_number("alerts", part.strip().removesuffix("%")) for part in parts]
    return body


def _number(name: str, said: str) -> int:
    if not (said.isascii() and said.isdigit() and len(said) <= 9):
        option = f"--{name.replace('_', '-')}"
        raise CommandFailed(
            f'{option}: {said!r} is no whole number; "{NO_LIMIT}" is for none.', ExitCode.USAGE
        )
    return int(said)
