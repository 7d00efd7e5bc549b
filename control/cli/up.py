"""`tollkeeper up`: the whole product on this machine with one command."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from control.cli.credentials import DATA_VARIABLE, default_data_dir
from control.cli.failures import CommandFailed, ExitCode
from control.cli.output import console
from control.cli.signals import run_stack
from control.cli.stack import Addresses, Plan, Stack

_NEXT = (
    "orgs create acme",
    "accounts create acme nightly-report --limit 500 --period monthly",
    "keys create acme/nightly-report --name prod --limit 20 --period daily",
)
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
        data=data or default_data_dir(),
        port=port,
        control_port=control_port,
        management_port=management_port,
        workers=workers,
        upstream=upstream,
        config=config,
        redis_url=redis_url,
        postgres_dsn=postgres_dsn,
    )
    asyncio.run(_run(Stack(plan), as_json))


async def _run(stack: Stack, as_json: bool) -> None:
    async def when_ready(addresses: Addresses) -> None:
        if as_json:
            print_line(addresses)
        else:
            console().print(_panel(stack, addresses))
        await asyncio.Event().wait()

    await run_stack(stack, when_ready)


def print_line(addresses: Addresses) -> None:
    """The one line for scripts, on standard output."""
    import json

    typer.echo(json.dumps(addresses.as_json()))


def _panel(stack: Stack, addresses: Addresses) -> Panel:
    lines = [
        Text.assemble(
            ("gateway     ", "bold"), addresses.gateway, ("   workloads send requests here", "dim")
        ),
        Text.assemble(
            ("control     ", "bold"), addresses.control, ("   REST API, for the other commands", "dim")
        ),
        Text.assemble(("management  ", "bold"), addresses.management, ("   /livez /readyz /metrics", "dim")),
        Text.assemble(("data        ", "bold"), str(stack.directory.path)),
    ]
    if stack.made_token and addresses.operator_token:
        lines.append(Text.assemble(("operator    ", "bold"), addresses.operator_token))
        lines.append(
            Text("This token is shown this once; the commands find it in the data directory.", "dim")
        )
    lines.append(Text())
    lines.append(Text("Next, in another terminal:"))
    where = "" if stack.directory.path == default_data_dir().absolute() else f" --data {stack.directory.path}"
    lines += [Text(f"  tollkeeper {command}{where}") for command in _NEXT]
    return Panel(Group(*lines), title="Tollkeeper is ready", subtitle="Ctrl-C stops it", expand=False)
