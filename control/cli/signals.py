"""A coroutine that Ctrl-C ends in an orderly way. Called by ``up.py`` and ``demo.py``."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

from control.cli.output import talk
from control.cli.plan import Addresses
from control.cli.stack import Stack

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_stack(stack: Stack, when_ready: Callable[[Addresses], Awaitable[None]]) -> None:
    """Start the stack, call ``when_ready`` and return when that does, or when SIGINT, SIGTERM or SIGHUP comes.

    Everything is stopped before this returns or raises. A second signal shortens the stop. Raises CommandFailed when
    a part of the stack does not start or ends on its own.
    """
    asked = asyncio.Event()

    def on_signal() -> None:
        if asked.is_set():
            stack.hurry()
        asked.set()

    loop = asyncio.get_running_loop()
    for number in _ENDS:
        loop.add_signal_handler(number, on_signal)
    try:
        await _first_to_end(_run(stack, when_ready), asked.wait())
    finally:
        if asked.is_set():
            talk("Stopping: the gateway settles what is in flight, then the rest ends.")
        await stack.stop()
        for number in _ENDS:
            loop.remove_signal_handler(number)


async def _run(stack: Stack, when_ready: Callable[[Addresses], Awaitable[None]]) -> None:
    addresses = await stack.start()
    await _first_to_end(stack.watch(), when_ready(addresses))


async def _first_to_end(*works: Awaitable[object]) -> None:
    """Run all of them until the first ends; cancel the others, wait for that, and raise what the first raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
    for task in ended:
        task.result()
