"""`tollkeeper keys …`: the API keys of an account. The token is printed once, by `create`."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from control.cli.accounts import AccountArgument, StatusOption, account_id
from control.cli.client import ControlPlane, path_of
from control.cli.fields import (
    AlertsOption,
    BurstOption,
    EnforcementOption,
    InFlightOption,
    LimitOption,
    PeriodOption,
    PerMinuteOption,
    given,
)
from control.cli.output import (
    Answer,
    Column,
    Row,
    budget_text,
    console,
    fields_view,
    plain,
    rows_view,
    table,
    talk,
)
from control.cli.remote import RowsOption, remote

keys = typer.Typer(
    no_args_is_help=True, help="API keys: create, list, show, quota, update, disable, enable, revoke, delete."
)

KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The key's id (16 letters and digits).", show_default=False)
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        "--expires-at",
        "--expires",
        metavar="TIME",
        help="When it stops working, such as 2031-01-31T12:00:00Z.",
    ),
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

_QUOTA_COLUMNS = (
    Column("level", "level"),
    Column("id", "id"),
    Column("name", "name"),
    Column("status", "status"),
    Column("limit", "credit_limit", right=True),
    Column("spent", "spent", right=True),
    Column("held", "held", right=True),
    Column("remaining", "remaining", right=True),
    Column("period", "reset_period"),
    Column("resets at", "resets_at"),
    Column("enforcement", "enforcement"),
    Column("a minute", "requests_per_minute", right=True),
    Column("in flight", "in_flight", lambda row: _of(row, "in_flight", "requests_in_flight"), right=True),
    Column("observed", "observed", right=True),
)


def _of(row: Row, present: str, most: str) -> str:
    shown = plain(row.get(present))
    return shown if row.get(most) is None else f"{shown} of {row[most]}"


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
    enforcement: EnforcementOption = None,
    alerts: AlertsOption = None,
    requests_per_minute: PerMinuteOption = None,
    burst: BurstOption = None,
    requests_in_flight: InFlightOption = None,
) -> Answer:
    """Create a key. Its token is printed on standard output, this once and never again."""
    body = given(
        name=name,
        credit_limit=limit,
        reset_period=period,
        expires_at=expires_at,
        enforcement=enforcement,
        alert_thresholds=alerts,
        requests_per_minute=requests_per_minute,
        burst=burst,
        requests_in_flight=requests_in_flight,
    )
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


@keys.command("quota")
@remote
def show_quota(control: ControlPlane, key: KeyArgument) -> Answer:
    """Show every limit above a key, which of them binds, and whether a request would pass now."""
    return Answer(control.get(path_of("keys", key, "quota")), _show_quota)


def _show_quota(body: Mapping[str, Any]) -> None:
    table(body["chain"], _QUOTA_COLUMNS)
    console().print(Text(body["explanation"]))
    if body.get("refusal"):
        talk(f"A request would be refused now: {body['refusal']['detail']}")


@keys.command("update")
@remote
def update_key(
    control: ControlPlane,
    key: KeyArgument,
    name: Annotated[str | None, typer.Option("--name", help="A new name.")] = None,
    limit: LimitOption = None,
    period: PeriodOption = None,
    expires_at: ExpiresOption = None,
    enforcement: EnforcementOption = None,
    alerts: AlertsOption = None,
    requests_per_minute: PerMinuteOption = None,
    burst: BurstOption = None,
    requests_in_flight: InFlightOption = None,
) -> Answer:
    """Change a key; what is not given stays as it is."""
    body = given(
        name=name,
        credit_limit=limit,
        reset_period=period,
        expires_at=expires_at,
        enforcement=enforcement,
        alert_thresholds=alerts,
        requests_per_minute=requests_per_minute,
        burst=burst,
        requests_in_flight=requests_in_flight,
    )
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
