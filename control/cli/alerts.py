"""`tollkeeper alerts …`: what reached a threshold of its limit, and where that is told."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from control.cli.client import ControlPlane, path_of
from control.cli.failures import CommandFailed, ExitCode
from control.cli.fields import given
from control.cli.organizations import OrganizationArgument
from control.cli.output import Answer, Column, Row, console, fields_view, plain, rows_view, table, talk
from control.cli.remote import RowsOption, remote

alerts = typer.Typer(no_args_is_help=True, help="Alerts: list, test, and the destinations that are told.")
destinations = typer.Typer(
    no_args_is_help=True,
    help="Where alerts are told: add, list, update, enable, disable, rotate-secret, delete.",
)
alerts.add_typer(destinations, name="destinations")

DestinationArgument = Annotated[
    str, typer.Argument(metavar="DESTINATION", help="The destination's id (ad_…).", show_default=False)
]
NameOption = Annotated[str | None, typer.Option("--name", help="What people call it.")]
ThresholdOption = Annotated[
    int | None,
    typer.Option(
        "--min-threshold", min=1, max=1000, help="Tell only of thresholds of so many percent or more."
    ),
]


class Kind(StrEnum):
    """How a destination is told."""

    WEBHOOK = "webhook"
    EMAIL = "email"
    SLACK = "slack"


def _who(row: Row) -> str:
    name = plain(row.get("name"))
    return f"{row['level']} {name}" + (f" of {row['account_name']}" if row.get("account_name") else "")


def _told(row: Row) -> str:
    told = [f"{each['destination_name']}: {each['status']}" for each in row.get("deliveries") or []]
    return ", ".join(told) or "nobody"


_COLUMNS = (
    Column("crossed at", "crossed_at"),
    Column("who", "name", _who),
    Column("%", "threshold", right=True),
    Column("spent", "spent", right=True),
    Column("limit", "limit", right=True),
    Column("resets at", "resets_at"),
    Column("told", "deliveries", _told),
)


def _where(row: Row) -> str:
    return plain(row.get("url") or row.get("addresses") or row.get("url_hint"))


def _state(row: Row) -> str:
    if not row["enabled"]:
        return f"disabled ({row['disabled_reason']})"
    return "failing" if row.get("failing_since") else "enabled"


_DESTINATION_COLUMNS = (
    Column("id", "id"),
    Column("kind", "kind"),
    Column("name", "name"),
    Column("where", "url", _where),
    Column("from %", "min_threshold", right=True),
    Column("state", "enabled", _state),
    Column("pending", "pending", right=True),
    Column("last error", "last_error"),
)
_TEST_COLUMNS = (
    Column("destination", "destination"),
    Column("name", "name"),
    Column("kind", "kind"),
    Column("delivered", "delivered"),
    Column("status", "status", right=True),
    Column("ms", "milliseconds", right=True),
    Column("error", "error", lambda row: plain(row.get("error") or row.get("note"))),
)


@alerts.command("list")
@remote
def list_alerts(control: ControlPlane, organization: OrganizationArgument, rows: RowsOption = 50) -> Answer:
    """List the latest alerts of an organization, and whom they were told."""
    path = path_of("organizations", organization, "alerts")
    return Answer(control.rows(path, rows), rows_view(_COLUMNS, "No threshold was reached yet."))


@alerts.command("test")
@remote
def send_test(
    control: ControlPlane,
    organization: OrganizationArgument,
    destination: Annotated[
        str | None,
        typer.Option("--destination", help="Only this one (ad_…), enabled or not.", show_default=False),
    ] = None,
) -> Answer:
    """Send a test to every enabled destination, and show what each did with it. Exits with 1 if one did not take it."""
    path = path_of("organizations", organization, "alerts", "test")
    body = control.request("POST", path, query={"destination": destination})
    are_all_taken = all(row["delivered"] for row in body["data"])
    return Answer(
        body,
        lambda answered: table(answered["data"], _TEST_COLUMNS),
        ExitCode.OK if are_all_taken else ExitCode.REFUSED,
    )


def _path(organization: str, *more: str) -> str:
    return path_of("organizations", organization, "alerts", "destinations", *more)


@destinations.command("add")
@remote
def add_destination(
    control: ControlPlane,
    organization: OrganizationArgument,
    kind: Annotated[Kind, typer.Argument(help="How it is told.", show_default=False)],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="WHERE",
            help="The URL, or a mail address (again for more); - reads it from standard input, as for a Slack URL, "
            "which is a secret.",
        ),
    ],
    name: NameOption = None,
    min_threshold: ThresholdOption = None,
) -> Answer:
    """Add a destination. A webhook's signing secret is printed on standard output, this once and never again."""
    places = [sys.stdin.readline().strip() if place == "-" else place for place in to]
    if kind is not Kind.EMAIL and len(places) > 1:
        raise CommandFailed(f"A {kind} destination has one URL: give --to once.", ExitCode.USAGE)
    where = {"addresses": places} if kind is Kind.EMAIL else {"url": places[0]}
    body = given(kind=str(kind), **where, name=name, min_threshold=min_threshold)
    return Answer(control.post(_path(organization), body), _show_secret)


@destinations.command("list")
@remote
def list_destinations(
    control: ControlPlane, organization: OrganizationArgument, rows: RowsOption = 50
) -> Answer:
    """List where alerts of an organization are told, and how that goes."""
    view = rows_view(_DESTINATION_COLUMNS, "Alerts are told to nobody yet: `destinations add` changes that.")
    return Answer(control.rows(_path(organization), rows), view)


@destinations.command("update")
@remote
def update_destination(
    control: ControlPlane,
    organization: OrganizationArgument,
    destination: DestinationArgument,
    name: NameOption = None,
    min_threshold: ThresholdOption = None,
) -> Answer:
    """Change a destination; what is not given stays as it is."""
    body = given(name=name, min_threshold=min_threshold)
    return Answer(control.patch(_path(organization, destination), body), fields_view)


@destinations.command("enable")
@remote
def enable_destination(
    control: ControlPlane, organization: OrganizationArgument, destination: DestinationArgument
) -> Answer:
    """Tell it alerts again, at once also those that it did not take."""
    return Answer(control.patch(_path(organization, destination), {"enabled": True}), fields_view)


@destinations.command("disable")
@remote
def disable_destination(
    control: ControlPlane, organization: OrganizationArgument, destination: DestinationArgument
) -> Answer:
    """Tell it nothing more; `enable` undoes it."""
    return Answer(control.patch(_path(organization, destination), {"enabled": False}), fields_view)


@destinations.command("rotate-secret")
@remote
def rotate_secret(
    control: ControlPlane, organization: OrganizationArgument, destination: DestinationArgument
) -> Answer:
    """Make a webhook a new signing secret, in force at once, and print it on standard output."""
    return Answer(control.patch(_path(organization, destination), {"rotate_secret": True}), _show_secret)


@destinations.command("delete")
@remote
def delete_destination(
    control: ControlPlane, organization: OrganizationArgument, destination: DestinationArgument
) -> Answer:
    """Delete a destination, and what it was still to be told."""
    return Answer(control.delete(_path(organization, destination)), fields_view)


def _show_secret(body: Mapping[str, Any]) -> None:
    secret = body.get("secret")
    if secret is None:
        fields_view(body)
        return
    console().print(secret, soft_wrap=True)
    talk(f"This is the signing secret of {body['id']} ({body['name']}). It is shown this once: keep it now.")
