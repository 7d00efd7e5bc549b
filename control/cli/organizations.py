"""`tollkeeper orgs …`: who pays, and the budget above all others."""

from enum import StrEnum
from typing import Annotated

import typer

from control.cli.client import ControlPlane, path_of
from control.cli.fields import (
    AlertsOption,
    BillingDayOption,
    BillingOption,
    DescriptionOption,
    DisplayNameOption,
    EnforcementOption,
    LimitOption,
    PeriodOption,
    given,
)
from control.cli.output import Answer, Column, budget_text, fields_view, rows_view
from control.cli.remote import RowsOption, remote

orgs = typer.Typer(no_args_is_help=True, help="Organizations: create, list, show, update, grant, grants.")

OrganizationArgument = Annotated[
    str, typer.Argument(metavar="ORG", help="The organization's name or id (org_…).", show_default=False)
]


class Status(StrEnum):
    """Whether an organization's requests may pass."""

    ACTIVE = "active"
    INACTIVE = "inactive"


_COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("display name", "display_name"),
    Column("status", "status"),
    Column("budget", "credit_limit", budget_text),
    Column("resets at", "resets_at"),
)


_GRANT_COLUMNS = (
    Column("id", "id"),
    Column("amount", "amount", right=True),
    Column("used", "used", right=True),
    Column("lost", "lost", right=True),
    Column("left", "left", right=True),
    Column("expires at", "expires_at"),
    Column("note", "note"),
    Column("created at", "created_at"),
    Column("by", "created_by"),
)


@orgs.command("create")
@remote
def create_organization(
    control: ControlPlane,
    name: Annotated[
        str,
        typer.Argument(help="Its name for ever: lower-case letters, digits and hyphens.", show_default=False),
    ],
    display_name: DisplayNameOption = None,
    description: DescriptionOption = None,
    limit: LimitOption = None,
    period: PeriodOption = None,
    billing_day: BillingDayOption = None,
    enforcement: EnforcementOption = None,
    alerts: AlertsOption = None,
    billing: BillingOption = None,
) -> Answer:
    """Create an organization."""
    body = given(
        name=name,
        display_name=display_name,
        description=description,
        credit_limit=limit,
        reset_period=period,
        billing_day=billing_day,
        enforcement=enforcement,
        alert_thresholds=alerts,
        billing=billing,
    )
    return Answer(control.post(path_of("organizations"), body), fields_view)


@orgs.command("list")
@remote
def list_organizations(control: ControlPlane, rows: RowsOption = 1000) -> Answer:
    """List the organizations."""
    return Answer(
        control.rows(path_of("organizations"), rows),
        rows_view(_COLUMNS, "There are no organizations yet: `tollkeeper orgs create NAME` makes one."),
    )


@orgs.command("show")
@remote
def show_organization(control: ControlPlane, organization: OrganizationArgument) -> Answer:
    """Show one organization and what its budget has left."""
    return Answer(control.get(path_of("organizations", organization)), fields_view)


@orgs.command("update")
@remote
def update_organization(
    control: ControlPlane,
    organization: OrganizationArgument,
    display_name: DisplayNameOption = None,
    description: DescriptionOption = None,
    status: Annotated[
        Status | None, typer.Option("--status", help="An inactive organization's requests are all refused.")
    ] = None,
    limit: LimitOption = None,
    period: PeriodOption = None,
    billing_day: BillingDayOption = None,
    enforcement: EnforcementOption = None,
    alerts: AlertsOption = None,
    billing: BillingOption = None,
) -> Answer:
    """Change an organization; what is not given stays as it is."""
    body = given(
        display_name=display_name,
        description=description,
        status=status,
        credit_limit=limit,
        reset_period=period,
        billing_day=billing_day,
        enforcement=enforcement,
        alert_thresholds=alerts,
        billing=billing,
    )
    return Answer(control.patch(path_of("organizations", organization), body), fields_view)


@orgs.command("grant")
@remote
def grant_credits(
    control: ControlPlane,
    organization: OrganizationArgument,
    amount: Annotated[str, typer.Argument(help='Credits, such as "12.50".', show_default=False)],
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires",
            "--expires-at",
            metavar="TIME",
            help="When the rest is lost, such as 2031-01-31T12:00:00Z.",
        ),
    ] = None,
    note: Annotated[str | None, typer.Option("--note", help="What it is for: an invoice, say.")] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option("--idempotency-key", help="A name for this grant: said twice, it is granted once."),
    ] = None,
) -> Answer:
    """Grant credits to a prepaid organization; those that expire first are used first."""
    headers = {} if idempotency_key is None else {"Idempotency_Key": idempotency_key}
    body = given(amount=amount, expires_at=expires, note=note)
    return Answer(
        control.post(path_of("organizations", organization, "grants"), body, **headers), fields_view
    )


@orgs.command("grants")
@remote
def list_grants(control: ControlPlane, organization: OrganizationArgument, rows: RowsOption = 1000) -> Answer:
    """List an organization's grants, and what of each is used, lost and left."""
    return Answer(
        control.rows(path_of("organizations", organization, "grants"), rows),
        rows_view(_GRANT_COLUMNS, "Nothing was granted: `tollkeeper orgs grant ORG AMOUNT` does it."),
    )
