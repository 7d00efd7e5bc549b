"""`tollkeeper usage`: what was spent, by account, key, route, hour or day, or why it was not; `tollkeeper ledger`: the rows."""

from enum import StrEnum
from typing import Annotated

import typer

from control.cli.client import ControlPlane, path_of
from control.cli.organizations import OrganizationArgument
from control.cli.output import Answer, Column, rows_view
from control.cli.remote import RowsOption, remote

_FIGURES = ("requests", "refused", "cost", "bytes_in", "bytes_out")


SinceOption = Annotated[
    str | None,
    typer.Option("--from", metavar="TIME", help="From this day or instant on (default: 30 days ago)."),
]
UntilOption = Annotated[
    str | None, typer.Option("--to", metavar="TIME", help="Before this day or instant (default: now).")
]

_LEDGER_COLUMNS = (
    Column("admitted at", "admitted_at", lambda row: str(row["admitted_at"])),
    Column("account", "account_name"),
    Column("key", "key"),
    Column("request", "path", lambda row: f"{row['method']} {row['path']}"),
    Column("route", "route"),
    Column("status", "status"),
    Column("outcome", "outcome"),
    Column("cost", "cost", right=True),
    Column("ms", "total_ms", right=True),
)


class Group(StrEnum):
    """What the rows of a usage report are about."""

    ACCOUNT = "account"
    KEY = "key"
    ROUTE = "route"
    HOUR = "hour"
    DAY = "day"
    REASON = "reason"


# What tells the group of a row, beside the group itself.
_NAMES = {
    Group.ACCOUNT: (Column("name", "name"),),
    Group.KEY: (Column("name", "name"), Column("hint", "hint"), Column("account", "account_name")),
}


_REASON_COLUMNS = (
    Column("reason", "reason"),
    Column("whose limit", "level"),
    Column("key", "key"),
    Column("name", "name"),
    Column("account", "account_name"),
    Column("refused", "refused", right=True),
    Column("observed", "observed", right=True),
)


def _columns(group: Group) -> tuple[Column, ...]:
    if group == Group.REASON:
        return _REASON_COLUMNS
    figures = (Column(figure.replace("_", " "), figure, right=True) for figure in _FIGURES)
    return (Column(str(group), str(group)), *_NAMES.get(group, ()), *figures)


@remote
def usage(
    control: ControlPlane,
    organization: OrganizationArgument,
    group_by: Annotated[Group, typer.Option("--group-by", "-g", help="One row for each …")] = Group.ACCOUNT,
    since: SinceOption = None,
    until: UntilOption = None,
    rows: RowsOption = 1000,
) -> Answer:
    """Show requests, refusals and credits of an organization, complete up to about a second ago; by reason, why requests were
    refused."""
    query: dict[str, str | int | None] = {"group_by": str(group_by), "from": since, "to": until}
    return Answer(
        control.rows(path_of("organizations", organization, "usage"), rows, **query),
        rows_view(_columns(group_by), "Nothing was used in this time."),
    )


@remote
def ledger(
    control: ControlPlane,
    organization: OrganizationArgument,
    since: SinceOption = None,
    until: UntilOption = None,
    rows: RowsOption = 50,
) -> Answer:
    """Show the latest rows of the ledger: one for each request that passed."""
    query: dict[str, str | int | None] = {"from": since, "to": until}
    return Answer(
        control.rows(path_of("organizations", organization, "usage", "events"), rows, **query),
        rows_view(_LEDGER_COLUMNS, "Nothing passed in this time."),
    )
