"""`tollkeeper usage`: what was spent, by account, key, route, hour or day. All of it adds up to the ledger."""

from enum import StrEnum
from typing import Annotated

import typer

from control.cli.client import ControlPlane, path_of
from control.cli.organizations import OrganizationArgument
from control.cli.output import Answer, Column, Row, plain, rows_view
from control.cli.remote import RowsOption, remote

_FIGURES = ("requests", "refused", "cost", "bytes_in", "bytes_out")


class Group(StrEnum):
    """What the rows of a usage report are about."""

    ACCOUNT = "account"
    KEY = "key"
    ROUTE = "route"
    HOUR = "hour"
    DAY = "day"


def _columns(group: Group) -> tuple[Column, ...]:
    def subject(row: Row) -> str:
        """Everything in the row that is not a figure: the group's id, and its name where the API tells it."""
        named = [plain(value) for field, value in row.items() if field not in _FIGURES and value is not None]
        return "  ".join(named)

    return (
        Column(str(group), str(group), subject),
        *(Column(figure.replace("_", " "), figure, right=True) for figure in _FIGURES),
    )


@remote
def usage(
    control: ControlPlane,
    organization: OrganizationArgument,
    group_by: Annotated[Group, typer.Option("--group-by", "-g", help="One row for each …")] = Group.ACCOUNT,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="From this day or instant on (default: 30 days ago)."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Before this day or instant (default: now).")
    ] = None,
    rows: RowsOption = 1000,
) -> Answer:
    """Show requests, refusals and credits of an organization, complete up to about a second ago."""
    query: dict[str, str | int | None] = {"group_by": str(group_by), "from": since, "to": until}
    return Answer(
        control.rows(path_of("organizations", organization, "usage"), rows, **query),
        rows_view(_columns(group_by), "Nothing was used in this time."),
    )
