"""What the commands print: data on standard output (JSON, or tables for people), talk on standard error.

Called by every command module. Knows the shapes of the API's answers only as columns.
"""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from control.cli.failures import ExitCode

_PIPE_WIDTH = 240
"""Columns of a table that goes to a pipe or file: wide enough that no identifier is cut."""

_TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z$")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, and the field it shows or how to make the text from a row."""

    heading: str
    field: str
    text: Callable[[Row], str] | None = None
    right: bool = False

    def of(self, row: Row) -> str:
        return self.text(row) if self.text else plain(row.get(self.field))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out: the API's JSON, how people see it (`show` prints to standard output), and its exit status."""

    body: Mapping[str, Any]
    show: Callable[[Mapping[str, Any]], None]
    code: ExitCode = ExitCode.OK


def plain(value: object) -> str:
    """A JSON value as one cell: null is a dash, times lose their fraction of a second."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "—"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return _TIME.sub(r"\1 \2Z", str(value))


def program() -> str:
    """How this person can call the command: its name where it is on the path, else where it lies."""
    if shutil.which("tollkeeper") or Path(sys.argv[0]).name != "tollkeeper":
        return "tollkeeper"
    return shlex.quote(os.path.relpath(sys.argv[0]))


def console() -> Console:
    """Standard output, for people. Made at each use: tests and pipes replace the stream."""
    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def talk(message: str) -> None:
    """Words for people, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(message))


def print_json(body: object) -> None:
    """One JSON value and a newline on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(body, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None) + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Row], columns: Sequence[Column], out: Console | None = None) -> None:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(column.of(row)) for column in columns))
    (out or console()).print(shown)


def rows_view(columns: Sequence[Column], nothing: str) -> Callable[[Mapping[str, Any]], None]:
    """A view of ``{"data": rows, "next": …}`` as a table; ``nothing`` is said when there are no rows."""

    def show(body: Mapping[str, Any]) -> None:
        if body["data"]:
            table(body["data"], columns)
        else:
            talk(nothing)
        if body.get("next"):
            talk("There are more: raise --rows.")

    return show


def fields_view(body: Mapping[str, Any]) -> None:
    """One record, a field a line; the warnings the API gave along with it go to standard error."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in body.items():
        if name != "warnings":
            shown.add_row(name, Text(plain(value)))
    console().print(shown)
    for warning in body.get("warnings") or []:
        talk(f"Note: {warning.get('detail', warning) if isinstance(warning, Mapping) else warning}")


def budget_text(row: Row) -> str:
    """ "12.5 of 500 monthly": what is spent of which limit in which period."""
    spent = plain(row.get("spent"))
    if row.get("credit_limit") is None:
        return f"{spent}, no limit"
    return f"{spent} of {row['credit_limit']} {row.get('reset_period', '')}".rstrip()
