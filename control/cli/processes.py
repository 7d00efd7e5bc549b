"""`tollkeeper gateway|control|jobs|migrate|reconcile`: the processes of an installation, configured by the environment.

Production runs these under its own supervisor; ``stack.py`` runs them all at once on one machine.
"""

import asyncio
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from control.cli.failures import CommandFailed, ExitCode
from control.cli.output import Column, print_json, table, talk
from control.cli.remote import JsonOption

if TYPE_CHECKING:
    from control.settings import ControlSettings

ListenOption = Annotated[
    str | None,
    typer.Option("--listen", metavar="HOST:PORT", help="Where to answer (overrides the environment)."),
]


def _settings(**overrides: str | None) -> "ControlSettings":
    """The settings of this process, which logs by them from here on. Raises CommandFailed listing every problem."""
    from control.logs import configure_logs
    from control.settings import SettingsError, load_settings

    for name, value in overrides.items():
        if value is not None:
            os.environ[f"TOLLKEEPER_{name.upper()}"] = value
    try:
        settings = load_settings()
    except SettingsError as error:
        raise CommandFailed(f"The settings are not complete:\n{error}", ExitCode.USAGE) from error
    configure_logs(settings)
    return settings


def gateway(context: typer.Context) -> None:
    """Run the gateway (the data plane); `tollkeeper gateway --help` shows its own options."""
    # The gateway is a program of its own, and this process becomes it: signals and exit status are its own.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "gateway", *context.args])  # noqa: S606


def control(listen: ListenOption = None) -> None:
    """Run the REST API. Reads TOLLKEEPER_POSTGRES_DSN, _REDIS_URL, _PEPPER or _PEPPER_FILE, _CONTROL_LISTEN."""
    from control.app import serve

    try:
        asyncio.run(serve(_settings(control_listen=listen)))
    except OSError as error:
        raise CommandFailed(f"The REST API cannot be served: {error.strerror or error}.") from error


def jobs(listen: ListenOption = None) -> None:
    """Run what happens in the background: publish, drain, expire. Several may run; one at a time does each job."""
    from control.jobs.publish import WrongInstallation
    from control.jobs.runner import run

    try:
        asyncio.run(run(_settings(jobs_listen=listen)))
    except WrongInstallation as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"The jobs cannot listen: {error.strerror or error}.") from error


def reconcile(as_json: JsonOption = False) -> None:
    """Compare the counters in Redis with the ledger; exit code 1 if they differ. Repairs nothing."""
    found = asyncio.run(_differences(_settings()))
    if as_json:
        print_json({"differences": found})
    elif found:
        table(found, [Column(name.replace("_", " "), name) for name in found[0]])
    else:
        talk("The counters equal the ledger.")
    if found:
        raise CommandFailed(f"{len(found)} counters differ from the ledger (amounts in microcredits).")


async def _differences(settings: "ControlSettings") -> list[dict[str, Any]]:
    import asyncpg
    from redis.exceptions import RedisError

    from control.jobs.context import opened
    from control.jobs.reconcile import differences

    try:
        async with opened(settings, "reconcile") as context:
            return [asdict(each) for each in await differences(context)]
    except (OSError, TimeoutError, asyncpg.PostgresError, RedisError) as error:
        raise CommandFailed(
            f"Redis or Postgres cannot be used: {type(error).__name__}.", ExitCode.UNREACHABLE
        ) from error


def migrate(as_json: JsonOption = False) -> None:
    """Bring the schema in Postgres up to date; safe to run at any time, by several at once."""
    from control.cli.schema import bring_up_to_date

    applied = asyncio.run(bring_up_to_date(_postgres_dsn()))
    if as_json:
        print_json({"applied": applied})
        return
    for name in applied:
        typer.echo(name)
    talk(f"{len(applied)} migrations applied." if applied else "The schema is up to date.")


def operator_token(
    renew: Annotated[bool, typer.Option("--renew", help="Yes, make the present token stop working.")] = False,
) -> None:
    """Make a new operator token in place of the present one, when that is lost or leaked; needs TOLLKEEPER_POSTGRES_DSN."""
    from control.cli.schema import renew_token

    if not renew:
        raise CommandFailed(
            "This makes the present operator token stop working: give --renew.", ExitCode.USAGE
        )
    typer.echo(asyncio.run(renew_token(_postgres_dsn(), lambda _: None)))
    talk("This is the new operator token, shown this once. Every other one has stopped working.")


def _postgres_dsn() -> str:
    dsn = os.environ.get("TOLLKEEPER_POSTGRES_DSN")
    if not dsn:
        raise CommandFailed("Which Postgres? Set TOLLKEEPER_POSTGRES_DSN.", ExitCode.USAGE)
    return dsn


def demo_upstream(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 8099,
) -> None:
    """Run an upstream to try things on: it echoes requests and streams answers like a model's."""
    from control.demo.upstream import serve

    asyncio.run(serve(port, lambda url: typer.echo(url)))
