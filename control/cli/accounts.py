"""`tollkeeper accounts …`: service accounts, the identities of automated workloads."""

import sys
from typing import Annotated, Any

import typer

from control.cli.client import ControlPlane, Json, path_of
from control.cli.failures import CommandFailed, ExitCode
from control.cli.fields import (
    AlertsOption,
    BurstOption,
    DescriptionOption,
    DisplayNameOption,
    EnforcementOption,
    InFlightOption,
    LimitOption,
    PeriodOption,
    PerMinuteOption,
    given,
)
from control.cli.organizations import OrganizationArgument
from control.cli.output import Answer, Column, budget_text, fields_view, plain, rows_view, talk
from control.cli.remote import RowsOption, remote

accounts = typer.Typer(
    no_args_is_help=True,
    help="Service accounts: create, list, show, update, deactivate, activate, delete.",
)

AccountArgument = Annotated[
    str,
    typer.Argument(metavar="ACCOUNT", help="The account's id (sa_…), or ORG/NAME.", show_default=False),
]
StatusOption = Annotated[
    str | None, typer.Option("--status", help="Only those with this status, or `all` to include the deleted.")
]
ALL_ROWS = 100_000

_COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("display name", "display_name"),
    Column("status", "status"),
    Column("budget", "credit_limit", budget_text),
    Column("resets at", "resets_at"),
)


def account_id(control: ControlPlane, account: str) -> str:
    """The id of the account that a person named: an id as it is, `org/name` looked up.

    Raises CommandFailed (not found) when the organization has no such account.
    """
    organization, slash, name = account.partition("/")
    if not slash:
        return account
    listed = control.rows(path_of("organizations", organization, "service-accounts"), ALL_ROWS, status="all")
    for row in listed["data"]:
        if row["name"] == name:
            return str(row["id"])
    raise CommandFailed(f"The organization {organization} has no service account {name}.", ExitCode.NOT_FOUND)


def _path(control: ControlPlane, account: str, *more: str) -> str:
    return path_of("service-accounts", account_id(control, account), *more)


@accounts.command("create")
@remote
def create_account(
    control: ControlPlane,
    organization: OrganizationArgument,
    name: Annotated[
        str,
        typer.Argument(
            help="Its name for ever, unique in the organization: lower-case letters, digits and hyphens.",
            show_default=False,
        ),
    ],
    display_name: DisplayNameOption = None,
    description: DescriptionOption = None,
    limit: LimitOption = None,
    period: PeriodOption = None,
    enforcement: EnforcementOption = None,
    alerts: AlertsOption = None,
    requests_per_minute: PerMinuteOption = None,
    burst: BurstOption = None,
    requests_in_flight: InFlightOption = None,
) -> Answer:
    """Create a service account; name it after what it does, as in `nightly-report`."""
    body = given(
        name=name,
        display_name=display_name,
        description=description,
        credit_limit=limit,
        reset_period=period,
        enforcement=enforcement,
        alert_thresholds=alerts,
        requests_per_minute=requests_per_minute,
        burst=burst,
        requests_in_flight=requests_in_flight,
    )
    return Answer(control.post(path_of("organizations", organization, "service-accounts"), body), fields_view)


@accounts.command("list")
@remote
def list_accounts(
    control: ControlPlane,
    organization: OrganizationArgument,
    status: StatusOption = None,
    rows: RowsOption = 1000,
) -> Answer:
    """List an organization's service accounts."""
    path = path_of("organizations", organization, "service-accounts")
    return Answer(
        control.rows(path, rows, status=status), rows_view(_COLUMNS, "There are no such service accounts.")
    )


@accounts.command("show")
@remote
def show_account(control: ControlPlane, account: AccountArgument) -> Answer:
    """Show one service account and what its budget has left."""
    return Answer(control.get(_path(control, account)), fields_view)


@accounts.command("update")
@remote
def update_account(
    control: ControlPlane,
    account: AccountArgument,
    display_name: DisplayNameOption = None,
    description: DescriptionOption = None,
    limit: LimitOption = None,
    period: PeriodOption = None,
    enforcement: EnforcementOption = None,
    alerts: AlertsOption = None,
    requests_per_minute: PerMinuteOption = None,
    burst: BurstOption = None,
    requests_in_flight: InFlightOption = None,
) -> Answer:
    """Change a service account; what is not given stays as it is."""
    body = given(
        display_name=display_name,
        description=description,
        credit_limit=limit,
        reset_period=period,
        enforcement=enforcement,
        alert_thresholds=alerts,
        requests_per_minute=requests_per_minute,
        burst=burst,
        requests_in_flight=requests_in_flight,
    )
    return Answer(control.patch(_path(control, account), body), fields_view)


@accounts.command("deactivate")
@remote
def deactivate_account(control: ControlPlane, account: AccountArgument) -> Answer:
    """Refuse every new request with any of its keys, at once."""
    return Answer(control.post(_path(control, account, "deactivate")), fields_view)


@accounts.command("activate")
@remote
def activate_account(control: ControlPlane, account: AccountArgument) -> Answer:
    """Let its keys work again (those that were not themselves disabled or revoked)."""
    return Answer(control.post(_path(control, account, "activate")), fields_view)


@accounts.command("delete")
@remote
def delete_account(
    control: ControlPlane,
    account: AccountArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Answer:
    """Delete a service account and revoke its keys, for ever; its usage stays under its name."""
    identifier = account_id(control, account)
    if not yes:
        _confirm_deletion(control, identifier)
    return Answer(control.delete(path_of("service-accounts", identifier)), _show_deletion)


def _confirm_deletion(control: ControlPlane, identifier: str) -> None:
    """Name the keys that would be revoked and ask. Raises CommandFailed unless the person agrees."""
    account = control.get(path_of("service-accounts", identifier))
    keys = control.rows(path_of("service-accounts", identifier, "keys"), ALL_ROWS, status="active")
    active: list[Json] = keys["data"]
    talk(f"Delete {account['name']} ({identifier})? Its {len(active)} active keys are revoked for ever:")
    for key in active:
        talk(f"  {_key_line(key)}")
    if not sys.stdin.isatty():
        raise CommandFailed("Nothing was deleted: there is nobody to ask. Give --yes.", ExitCode.USAGE)
    if not typer.confirm("Delete it?", default=False, err=True):
        raise CommandFailed("Nothing was deleted.")


def _key_line(key: Any) -> str:
    return f"{key.get('name')} ({key.get('hint')}), last used {plain(key.get('last_used_at'))}"


def _show_deletion(body: Any) -> None:
    revoked = body.get("revoked_keys") or body.get("keys_revoked") or []
    fields_view({name: value for name, value in body.items() if value is not revoked})
    for key in revoked:
        talk(f"Revoked {_key_line(key)}")
