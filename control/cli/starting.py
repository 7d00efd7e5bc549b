"""`tollkeeper up` and `tollkeeper demo`: their options. What they do is in ``up.py`` and ``demo.py``, imported when asked
for, so that the other commands start quickly.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from control.cli.credentials import DATA_VARIABLE, default_data_dir
from control.cli.failures import CommandFailed, ExitCode
from control.cli.plan import Plan

_SERVERS = "Servers of your own"

PortOption = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="The gateway's port; 0 picks a free one.")
]
ControlPortOption = Annotated[
    int, typer.Option("--control-port", min=0, max=65535, help="The REST API's port; 0 picks a free one.")
]
ManagementPortOption = Annotated[
    int,
    typer.Option(
        "--management-port",
        min=0,
        max=65535,
        help="Port of the gateway's health and metrics; 0 picks a free one.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, max=256, help="Gateway processes (default: the gateway's own)."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help=f"Where everything is kept (default: {DATA_VARIABLE}, or this user's data)."),
]


def up(
    upstream: Annotated[
        str | None,
        typer.Option("--upstream", metavar="URL", help="Send every request there, free of charge."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="TOLLKEEPER_CONFIG",
            exists=True,
            dir_okay=False,
            help="routes.toml: where requests go and what they cost.",
        ),
    ] = None,
    data: DataOption = None,
    port: PortOption = 8080,
    control_port: ControlPortOption = 8081,
    management_port: ManagementPortOption = 9090,
    workers: WorkersOption = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            "--redis",
            metavar="URL",
            envvar="TOLLKEEPER_REDIS_URL",
            show_envvar=True,
            help="Use this Redis and start none.",
            rich_help_panel=_SERVERS,
        ),
    ] = None,
    postgres_dsn: Annotated[
        str | None,
        typer.Option(
            "--postgres",
            metavar="DSN",
            envvar="TOLLKEEPER_POSTGRES_DSN",
            show_envvar=True,
            help="Use this Postgres and start none.",
            rich_help_panel=_SERVERS,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one line of JSON with every address.")
    ] = False,
) -> None:
    """Start everything here: Postgres, Valkey, control, jobs, gateway. Ctrl-C stops it; the next start finds its data.

    Each process logs into the data directory; its warnings are shown here.
    """
    if (upstream is None) == (config is None):
        raise CommandFailed(
            "Where should requests go? Give either --upstream URL (one service, free of charge) "
            "or --config routes.toml (routes with prices). `tollkeeper demo` brings an upstream of its own.",
            ExitCode.USAGE,
        )
    plan = Plan(
        port=port,
        control_port=control_port,
        management_port=management_port,
        workers=workers,
        upstream=upstream,
        config=config,
        redis_url=redis_url,
        postgres_dsn=postgres_dsn,
    )
    from control.cli.up import run

    asyncio.run(run(plan, data or default_data_dir(), as_json))


def demo(
    data: DataOption = None,
    port: PortOption = 8080,
    control_port: ControlPortOption = 8081,
    management_port: ManagementPortOption = 9090,
    workers: WorkersOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="End after the story; exit 1 if anything was not as told.")
    ] = False,
) -> None:
    """Start everything with an upstream to try it on, and show what happens to a few real requests. Ctrl-C ends it."""
    from control.cli.demo import run

    ports = (port, control_port, management_port)
    asyncio.run(run(data or default_data_dir("tollkeeper-demo"), ports, workers, once))
