"""`tollkeeper up`: the whole product on this machine with one command."""

import asyncio
import json
from pathlib import Path

import typer
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from control.cli.credentials import default_data_dir
from control.cli.data_directory import DataDirectory
from control.cli.output import console, program
from control.cli.plan import Addresses, Plan
from control.cli.signals import run_stack
from control.cli.stack import Stack

_NEXT = (
    "orgs create acme",
    "accounts create acme nightly-report --limit 500 --period monthly",
    "keys create acme/nightly-report --name prod --limit 20 --period daily",
)


async def run(plan: Plan, data: Path, as_json: bool) -> None:
    """Start, print where everything is (one line of JSON, or a panel for people), stay until asked to stop.

    Raises CommandFailed when something does not start or does not stay up.
    """
    directory = DataDirectory(data)
    directory.claim()
    stack = Stack(plan, directory)

    async def when_ready(addresses: Addresses) -> None:
        if as_json:
            print_line(addresses)
        else:
            console().print(_panel(stack, addresses))
        await asyncio.Event().wait()

    await run_stack(stack, when_ready)


def print_line(addresses: Addresses) -> None:
    """The one line for scripts, on standard output."""
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
    lines += [Text(f"  {program()} {command}{where}") for command in _NEXT]
    return Panel(Group(*lines), title="Tollkeeper is ready", subtitle="Ctrl-C stops it", expand=False)
