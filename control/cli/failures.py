"""How a command fails: one exception, and the exit codes that scripts can use. Pure.

Raised all over ``control.cli``; turned into words on standard error and an exit status by ``control.cli.main``.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Documented in ``tollkeeper --help``; never renumbered."""

    OK = 0
    REFUSED = 1
    """The server said no, or something that was started did not stay up."""
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4


class CommandFailed(Exception):
    """A command that cannot do what was asked. The text is for people: what happened, and what to do next."""

    def __init__(self, message: str, code: ExitCode = ExitCode.REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def failure_of_problem(status: int, problem: Mapping[str, Any]) -> CommandFailed:
    """An RFC 9457 problem as people read it: the title, the detail, and each field with what is wrong with it."""
    title = str(problem.get("title") or f"HTTP status {status}")
    detail = problem.get("detail")
    lines = [f"{title}: {detail}" if detail and detail != title else title]
    for error in problem.get("errors") or []:
        if isinstance(error, Mapping):
            name = error.get("field") or error.get("pointer") or error.get("name") or "?"
            reason = error.get("reason") or error.get("detail") or error.get("message") or "?"
            if f"{name}: {reason}" not in lines[0]:
                lines.append(f"  {name}: {reason}")
    code = ExitCode.NOT_FOUND if status == 404 else ExitCode.REFUSED
    return CommandFailed("\n".join(lines), code)
