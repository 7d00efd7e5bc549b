"""`tollkeeper gateway|control|jobs|migrate`: the processes of an installation, configured by the environment.

Production runs these under its own supervisor; ``stack.py`` runs them all at once on one machine.
"""

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from control.cli.failures import CommandFailed
from control.cli.output import print_json, talk
from control.cli.remote import JsonOption

if TYPE_CHECKING:
    from control.settings import ControlSettings

ListenOption = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Where to answer (overrides the environment)."),
]


def _settings(**overrides: str | None) -> "ControlSettings":
    """The settings of this process. Raises CommandFailed listing every problem."""
    from control.settings import SettingsError, load_settings

    for name, value in overrides.items():
        if value is not None:
            os.environ[f"TOLLKEEPER_{name.upper()}"] = value
    try:
        return load_settings()
    except SettingsError as error:
        raise CommandFailed(f"The settings are not complete:\n{error}") from error


def gateway(context: typer.Context) -> None:
    """Run the gateway (the data plane); `tollkeeper gateway --help` shows its own options."""
    # The gateway is a program of its own, and this process becomes it: signals and exit status are its own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "gateway", *context.args])  # noqa: S606


def control(listen: ListenOption = None) -> None:
    """Run the REST API. Reads TOLLKEEPER_POSTGRES_DSN, _REDIS_URL, _PEPPER or _PEPPER_FILE, _CONTROL_LISTEN."""
    from control.app import serve

    asyncio.run(serve(_settings(control_listen=listen)))


def jobs(listen: ListenOption = None) -> None:
    """Run what happens in the background: publish, drain, expire. Several may run; one at a time does each job."""
    from control.jobs.runner import run

    asyncio.run(run(_settings(jobs_listen=listen)))


def migrate(as_json: JsonOption = False) -> None:
    """Bring the schema in Postgres up to date; safe to run at any time, by several at once."""
    from control.cli.schema import bring_up_to_date

    dsn = os.environ.get("TOLLKEEPER_POSTGRES_DSN")
    if not dsn:
        raise CommandFailed("Which Postgres? Set TOLLKEEPER_POSTGRES_DSN.")
    applied = asyncio.run(bring_up_to_date(dsn))
    if as_json:
        print_json({"applied": applied})
        return
    for name in applied:
        typer.echo(name)
    talk(f"{len(applied)} migrations applied." if applied else "The schema is up to date.")


def demo_upstream(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 8099,
) -> None:
    """Run an upstream to try things on: it echoes requests and streams answers like a model's."""
    from control.demo.upstream import serve

    asyncio.run(serve(port, lambda url: typer.echo(url)))
