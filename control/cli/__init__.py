"""The `tollkeeper` command. :func:`main` is its entry point; what each command does is in the module of its noun.

    up, demo                          everything on this machine: starting.py, up.py, demo.py, over stack.py, signals.py
    gateway control jobs migrate …    one process of an installation: processes.py
    orgs accounts keys usage alerts   the REST API: organizations.py, accounts.py, keys.py, usage.py, alerts.py
                                      over remote.py (common options), client.py (HTTP), credentials.py

Data goes to standard output, talk to standard error (output.py); exit codes are in failures.py. This package composes
the others: it may start any of them, and nothing imports it.
"""

import importlib.metadata
import sys
from typing import Annotated

import typer

from control.cli import processes
from control.cli.accounts import accounts
from control.cli.alerts import alerts
from control.cli.failures import CommandFailed, ExitCode
from control.cli.keys import keys
from control.cli.organizations import orgs
from control.cli.output import talk
from control.cli.starting import demo, up
from control.cli.usage import ledger, usage

_EPILOG = (
    "Exit codes: 0 done; 1 refused (the reason is on standard error) or something did not stay up; 2 wrong usage; "
    "3 the control plane, or a server, cannot be reached; 4 no such organization, account or key."
)
_TRY = "Try it"
_ASK = "Who may spend what"
_RUN = "Run one process of an installation"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,  # a traceback must not print what variables hold
    rich_markup_mode="rich",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tollkeeper {importlib.metadata.version('tollkeeper')}")
        raise typer.Exit


@app.callback()
def tollkeeper(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Tollkeeper: an authenticating reverse proxy for automated workloads, with a budget for each."""


app.command(rich_help_panel=_TRY)(up)
app.command(rich_help_panel=_TRY)(demo)
app.command("demo-upstream", rich_help_panel=_TRY)(processes.demo_upstream)
app.add_typer(orgs, name="orgs", rich_help_panel=_ASK)
app.add_typer(accounts, name="accounts", rich_help_panel=_ASK)
app.add_typer(keys, name="keys", rich_help_panel=_ASK)
app.add_typer(alerts, name="alerts", rich_help_panel=_ASK)
app.command(rich_help_panel=_ASK)(usage)
app.command(rich_help_panel=_ASK)(ledger)
app.command(
    rich_help_panel=_RUN,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(processes.gateway)
app.command(rich_help_panel=_RUN)(processes.control)
app.command(rich_help_panel=_RUN)(processes.jobs)
app.command(rich_help_panel=_RUN)(processes.migrate)
app.command(rich_help_panel=_RUN)(processes.reconcile)
app.command("operator-token", rich_help_panel=_RUN)(processes.operator_token)


def main() -> None:
    """Run the command line; ends the process with one of the documented exit codes."""
    try:
        app()
    except CommandFailed as failure:
        talk(failure.message)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.REFUSED)
