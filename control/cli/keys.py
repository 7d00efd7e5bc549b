"""`tollkeeper keys …`: the API keys of an account. The token is printed once, by `create`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from control.cli.accounts import AccountArgument, StatusOption, account_id
from control.cli.client import ControlPlane, path_of
from control.cli.fields import LimitOption, PeriodOption, given
from control.cli.output import Answer, Column, budget_text, console, fields_view, plain, rows_view, talk
from control.cli.remote import RowsOption, remote

keys = typer.Typer(
    no_args_is_help=True, help="API keys: create, list, show, update, disable, enable, revoke, delete."
)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id (16 letters and digits).", show_default=False)
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires-at", metavar="TIME", help="When it stops working, such as 2031-01-31T12:00:00Z."),
]

_COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("hint", "hint"),
    Column("status", "status"),
    Column("budget", "credit_limit", budget_text),
    Column("resets at", "resets_at"),
    Column("expires at", "expires_at"),
    Column("created at", "created_at"),
    Column("by", "created_by"),
    Column("last used at", "last_used_at"),
)


@keys.command("create")
@remote
def create_key(
    control: ControlPlane,
    account: AccountArgument,
    name: Annotated[
        str, typer.Option("--name", help="What tells it apart from the account's others: dev, staging, prod.")
    ],
    limit: LimitOption = None,
    period: PeriodOption = None,
    expires_at: ExpiresOption = None,
) -> Answer:
    """Create a key. Its token is printed on standard output, this once and never again."""
    body = given(name=name, credit_limit=limit, reset_period=period, expires_at=expires_at)
    path = path_of("service-accounts", account_id(control, account), "keys")
    return Answer(control.post(path, body), _show_token)


def _show_token(body: Mapping[str, Any]) -> None:
    key = body["key"]
    console().print(body["token"], soft_wrap=True)
    talk(f"This is the token of key {key['id']} ({key.get('name')}). It is shown this once: keep it now.")
    for warning in body.get("warnings") or []:
        talk(f"Note: {plain(warning)}")


@keys.command("list")
@remote
def list_keys(
    control: ControlPlane,
    account: AccountArgument,
    status: StatusOption = None,
    rows: RowsOption = 1000,
) -> Answer:
    """List an account's keys."""
    path = path_of("service-accounts", account_id(control, account), "keys")
    return Answer(control.rows(path, rows, status=status), rows_view(_COLUMNS, "There are no such keys."))


@keys.command("show")
@remote
def show_key(control: ControlPlane, key: KeyArgument) -> Answer:
    """Show one key and what its budget has left."""
    return Answer(control.get(path_of("keys", key)), fields_view)


@keys.command("update")
@remote
def update_key(
    control: ControlPlane,
    key: KeyArgument,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    limit: LimitOption = None,
    period: PeriodOption = None,
    expires_at: ExpiresOption = None,
) -> Answer:
    """Change a key; what is not given stays as it is."""
    body = given(name=name, credit_limit=limit, reset_period=period, expires_at=expires_at)
    return Answer(control.patch(path_of("keys", key), body), fields_view)


@keys.command("disable")
@remote
def disable_key(control: ControlPlane, key: KeyArgument) -> Answer:
    """Refuse its next request; `enable` undoes it."""
    return Answer(control.post(path_of("keys", key, "disable")), fields_view)


@keys.command("enable")
@remote
def enable_key(control: ControlPlane, key: KeyArgument) -> Answer:
    """Let a disabled key work again."""
    return Answer(control.post(path_of("keys", key, "enable")), fields_view)


@keys.command("revoke")
@remote
def revoke_key(control: ControlPlane, key: KeyArgument) -> Answer:
    """Refuse its next request and all after it: there is no way back."""
    return Answer(control.post(path_of("keys", key, "revoke")), fields_view)


@keys.command("delete")
@remote
def delete_key(control: ControlPlane, key: KeyArgument) -> Answer:
    """Revoke it and leave it out of lists (`list --status all` still shows it)."""
    return Answer(control.delete(path_of("keys", key)), fields_view)
