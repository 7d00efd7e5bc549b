"""TLS contexts of the listener and of upstreams, out of PEM files. Acts: reads files.

TLS 1.2 or newer on both sides. The listener offers HTTP/1.1 by ALPN; it asks for a client certificate, and verifies one that
is given, where authorities for them are set: whether a route needs one is the route's to say.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gateway.routing import UpstreamTls


class TlsFilesError(Exception):
    """Files that cannot be used; the message names them, never what is in them."""


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """Paths of the listener's files. `client_ca`: the authorities whose client certificates are accepted."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.certificate, self.key, self.client_ca) if path is not None)


def listener_context(tls: ListenerTls) -> ssl.SSLContext:
    """A context for the listener. Raises TlsFilesError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    _load_pair(context, tls.certificate, tls.key)
    if tls.client_ca is not None:
        _load_authorities(context, tls.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def upstream_context(tls: UpstreamTls) -> ssl.SSLContext:
    """A context for https targets; the same one for as long as its files are the same. Raises TlsFilesError."""
    return _upstream_context(tls, tuple(stamp(path) for path in upstream_files(tls)))


@lru_cache(maxsize=256)  # 17 ms each, with the system's authorities
def _upstream_context(tls: UpstreamTls, _stamps: tuple[object, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if tls.ca is not None:
        _load_authorities(context, Path(tls.ca))
    else:
        context.load_default_certs()
    if tls.certificate is not None:
        _load_pair(context, Path(tls.certificate), Path(tls.key or tls.certificate))
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def upstream_files(tls: UpstreamTls) -> Iterable[Path]:
    """The files that a route's targets are proved by."""
    return [Path(path) for path in (tls.ca, tls.certificate, tls.key) if path is not None]


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written anew or replaced; None while it cannot be looked at."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # An encrypted key is refused, not asked a password for on a terminal that is not there.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TlsFilesError(
            f"{certificate} and {key} are no certificate with its key: {_words(error)}"
        ) from None


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ValueError) as error:
        raise TlsFilesError(f"{path} has no certificates of authorities: {_words(error)}") from None


def _words(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__)
