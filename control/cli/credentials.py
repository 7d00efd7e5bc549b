"""Where the control plane is and with what token to speak to it: options, environment, or the last `tollkeeper up`.

A token is never an argument of a command: other users of the machine can read those. Called by ``remote.py`` for every
command that speaks to the API, and by ``data_directory.py``, which writes the client file.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from control.cli.failures import CommandFailed, ExitCode

URL_VARIABLE = "TOLLKEEPER_CONTROL_URL"
TOKEN_VARIABLE = "TOLLKEEPER_OPERATOR_TOKEN"
DATA_VARIABLE = "TOLLKEEPER_DATA"


@dataclass(frozen=True, slots=True)
class ClientFile:
    """What `tollkeeper up` leaves in its data directory (mode 0600) for the other commands."""

    url: str
    operator_token: str | None


@dataclass(frozen=True, slots=True)
class Credentials:
    url: str
    token: str


def default_data_dir(name: str = "tollkeeper") -> Path:
    """$TOLLKEEPER_DATA, or ``name`` where this user's programs keep their data."""
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return Path(chosen)
    share = os.environ.get("XDG_DATA_HOME")
    return (Path(share) if share else Path.home() / ".local" / "share") / name


def client_file(data_dir: Path) -> Path:
    return data_dir / "client.json"


def read_client_file(data_dir: Path) -> ClientFile | None:
    """The client file of this data directory; None when no `up` has ever been ready there.

    Raises CommandFailed when there is one that cannot be read.
    """
    path = client_file(data_dir)
    try:
        fields = json.loads(path.read_text())
        return ClientFile(url=str(fields["url"]), operator_token=fields.get("operator_token"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandFailed(
            f"{path} cannot be read ({type(error).__name__}). Start `tollkeeper up` again, or delete the file."
        ) from error


def _read_token_file(path: Path) -> str:
    try:
        token = path.read_text().strip()
    except (OSError, ValueError) as error:
        raise CommandFailed(f"The token file {path} cannot be read: {error}", ExitCode.USAGE) from error
    if not token or any(character.isspace() for character in token) or not token.isascii():
        raise CommandFailed(f"The token file {path} does not hold one token.", ExitCode.USAGE)
    return token


def find_credentials(url: str | None, token_file: Path | None, data_dir: Path | None) -> Credentials:
    """The address and token to use: what is named wins over the environment, the environment over the client file
    (of the default data directory: one that is named wins over the environment).

    The client file's token goes to the client file's address and nowhere else. Raises CommandFailed (usage) when
    something is missing, naming the ways to give it.
    """
    kept = read_client_file(data_dir or default_data_dir())
    address = url or (None if data_dir else os.environ.get(URL_VARIABLE)) or (kept.url if kept else None)
    if address is None:
        raise CommandFailed(
            f"Where is the control plane? Start one here with `tollkeeper up`, or give --url or {URL_VARIABLE}.",
            ExitCode.USAGE,
        )
    address = address.rstrip("/")
    from_environment = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    from_kept = kept.operator_token if kept is not None and kept.url == address else None
    ways = (from_kept, from_environment) if data_dir else (from_environment, from_kept)
    token = _read_token_file(token_file) if token_file else ways[0] or ways[1]
    if token is None:
        raise CommandFailed(
            f"No operator token for {address}: set {TOKEN_VARIABLE} or give --token-file.", ExitCode.USAGE
        )
    return Credentials(address, token)
