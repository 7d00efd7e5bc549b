"""The directory in which one `tollkeeper up` keeps everything: servers' data, the pepper, the client file, logs.

    postgres/ valkey/          the embedded servers, when they are used
    control/ jobs/ gateway/    what each process logs (server.log)
    pepper                     hex, made once: without it every key must be verified the slow way again
    client.json                address and operator token for the other commands
    up.lock                    held while an `up` runs here

Every file in it is readable by its owner only. Called by ``stack.py``.
"""

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any

from control.cli.credentials import client_file
from control.cli.failures import CommandFailed

_PEPPER_BYTES = 32


class DataDirectory:
    """One data directory, claimed by this process from ``claim`` until ``release``."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    def claim(self) -> None:
        """Make the directory if need be and lock it. Raises CommandFailed when another `up` holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The embedded Postgres cannot run as root: whom it runs as then must be able to pass through.
            self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            lock = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CommandFailed(
                f"The data directory {self.path} cannot be used: {error.strerror}."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode().strip()
            os.close(lock)
            raise CommandFailed(
                f"The data directory {self.path} is in use by another `tollkeeper` (process {holder or 'unknown'}). "
                "Stop that one first, or choose another directory with --data."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def folder(self, name: str) -> Path:
        """A private folder of this name in the directory, made if need be."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def pepper_file(self) -> Path:
        """The file that holds the pepper; made with 256 random bits the first time."""
        path = self.path / "pepper"
        if not path.exists():
            self.write_private("pepper", secrets.token_hex(_PEPPER_BYTES) + "\n")
        return path

    def write_client_file(self, fields: dict[str, Any]) -> None:
        self.write_private(client_file(self.path).name, json.dumps(fields, indent=2) + "\n")

    def write_private(self, name: str, text: str) -> Path:
        """Write a file that only its owner can read: whole and on the disk, or not at all."""
        path = self.path / name
        partial = self.path / f"{name}.partial"
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path
