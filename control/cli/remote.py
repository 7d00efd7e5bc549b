"""Makes a command of a function that asks the control plane: adds the common options, prints the answer.

The commands of ``organizations.py``, ``accounts.py``, ``keys.py`` and ``usage.py`` go through :func:`remote`, so that
all of them take the same options in the same place (after the command's own) and print in the same way.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from control.cli.client import ControlPlane
from control.cli.credentials import DATA_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, find_credentials
from control.cli.output import Answer, print_json

P = ParamSpec("P")

_PANEL = "Where and as whom"

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the API's JSON on standard output, nothing else.")
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help=f"The control plane's address (or {URL_VARIABLE}).", rich_help_panel=_PANEL),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help=f"A file that holds the operator token (or {TOKEN_VARIABLE} with the token itself).",
        rich_help_panel=_PANEL,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help=f"Data directory of the `tollkeeper up` to speak to, where neither is given (or {DATA_VARIABLE}).",
        rich_help_panel=_PANEL,
    ),
]
RowsOption = Annotated[int, typer.Option("--rows", min=1, max=100_000, help="How many rows at most.")]

_ADDED = (
    ("as_json", JsonOption, False),
    ("url", UrlOption, None),
    ("token_file", TokenFileOption, None),
    ("data", DataOption, None),
)


def remote(command: Callable[Concatenate[ControlPlane, P], Answer]) -> Callable[..., None]:
    """A typer command out of ``command(control, …) -> Answer``; its first argument is filled in here."""

    def run(
        *,
        as_json: bool,
        url: str | None,
        token_file: Path | None,
        data: Path | None,
        **arguments: Any,
    ) -> None:
        answer = command(ControlPlane(find_credentials(url, token_file, data)), **arguments)  # type: ignore[call-arg]
        if as_json:
            print_json(answer.body)
        else:
            answer.show(answer.body)
        if answer.code:
            raise typer.Exit(answer.code)

    # typer reads the options from the signature: the command's own without `control`, then the added ones.
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, annotation, default in _ADDED
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    return run
