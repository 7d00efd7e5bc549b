"""`tollkeeper demo`: the whole product with an upstream of its own, and a story of real requests.

`make run` calls it.
"""

import asyncio
import shlex
from importlib.resources import files
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.text import Text

from control.cli.data_directory import DataDirectory
from control.cli.failures import CommandFailed
from control.cli.output import console, program, talk
from control.cli.plan import Addresses, Plan, is_free
from control.cli.signals import run_stack
from control.cli.stack import Stack
from control.demo.cast import Cast, ControlApi, DemoFailed, assemble
from control.demo.story import Story
from control.demo.upstream import start_upstream

_REQUEST_TIMEOUT_S = 30.0


async def run(data: Path, ports: tuple[int, int, int], workers: int | None, once: bool) -> None:
    """Start everything, tell the story, suggest what to try; then end (``once``) or stay until asked to stop.

    ``ports`` are those of the gateway, the REST API and the management listener. Raises CommandFailed when something
    does not start, or the story is not as told.
    """
    gateway_port, control_port, management_port = (_free_or_any(port) for port in ports)
    upstream, url = await start_upstream()
    try:
        directory = DataDirectory(data)
        directory.claim()
        routes = (files("control.demo") / "routes.toml").read_text().replace("UPSTREAM", url)
        plan = Plan(
            port=gateway_port,
            control_port=control_port,
            management_port=management_port,
            workers=workers,
            config=directory.write_private("routes.toml", routes),
        )
        stack = Stack(plan, directory)
        talk(f"Starting Postgres, Valkey, control, jobs and the gateway; data in {directory.path}")

        async def when_ready(addresses: Addresses) -> None:
            await _show(console(), stack, addresses)
            if not once:
                console().print(Text("\nCtrl-C ends the demo; the next start finds its data again.", "dim"))
                await asyncio.Event().wait()

        await run_stack(stack, when_ready)
    finally:
        await upstream.cleanup()


def _free_or_any(port: int) -> int:
    """The port if it is free, else 0 (any free one), and says so."""
    if port and not is_free(port):
        talk(f"Port {port} is taken; the demo uses another.")
        return 0
    return port


async def _show(out: Console, stack: Stack, addresses: Addresses) -> None:
    """Tell the story, then what to try. Raises CommandFailed when it was not as told."""
    if addresses.operator_token is None:
        raise CommandFailed(
            f"The operator token of this demo is lost. Delete {stack.directory.path} to begin anew."
        )
    timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:
            api = ControlApi(http, addresses.control, addresses.operator_token)
            cast = await assemble(api)
            await Story(out, http, api, addresses.gateway, cast).tell()
    except DemoFailed as failure:
        raise CommandFailed(f"The demo did not turn out as told: {failure}.") from failure
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as failure:
        raise CommandFailed(
            f"The demo did not turn out as told: {type(failure).__name__} {failure}. Logs: {stack.directory.path}"
        ) from failure
    _suggest(out, stack, addresses, cast)


def _suggest(out: Console, stack: Stack, addresses: Addresses, cast: Cast) -> None:
    authorization = f"-H {shlex.quote(f'Authorization: Bearer {cast.roomy_token}')}"
    completion = '{"stream": true, "messages": [{"role": "user", "content": "May I pass?"}]}'
    lines = (
        f"curl -s {addresses.gateway}/anything/hello {authorization}",
        f"curl -sN {addresses.gateway}/v1/chat/completions {authorization} -d {shlex.quote(completion)}",
        f"{program()} keys list {cast.organization['name']}/{cast.account['name']} --data {stack.directory.path}",
        f"{program()} ledger {cast.organization['name']} --data {stack.directory.path}",
        f"{program()} usage {cast.organization['name']} --group-by route --data {stack.directory.path}",
    )
    out.print()
    out.print(Text("Try it", "bold"))
    for line in lines:
        out.print(Text("  " + line), soft_wrap=True)
