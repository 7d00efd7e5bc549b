"""TLS contexts out of files: who is let in and who is believed; files that cannot be used are named and never quoted."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key

from gateway.routing import UpstreamTls
from gateway.tls import (
    ListenerTls,
    TlsFilesError,
    listener_context,
    stamp,
    upstream_context,
    upstream_files,
)
from tests.certificates import (
    Authority,
    Issued,
    Pair,
    client_context,
    make_authority,
    server_context,
    write_file,
    write_pair,
)

NAME = "gateway.example"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority("authority")


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return make_authority("another authority")


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Pair:
    return write_pair(tmp_path, "server", authority, [NAME])


@pytest.fixture
def client_ca(tmp_path: Path, authority: Authority) -> Path:
    return write_file(tmp_path / "ca.pem", authority.pem)


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = NAME
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection in memory, after the handshake. Raises ssl.SSLError as whoever refuses does."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname=name)
    waiting = [theirs, ours]
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting, "the handshake stands still"
    ours.write(b"hello")
    assert theirs.read(5) == b"hello"
    return ours, theirs


# -- the listener


def test_the_listener_shows_its_certificate_and_speaks_http_1_1(authority: Authority, server: Pair) -> None:
    context = listener_context(ListenerTls(server.certificate, server.key))
    client = client_context(authority)
    client.set_alpn_protocols(["h2", "http/1.1"])
    ours, theirs = shake_hands(context, client)
    assert theirs.getpeercert(binary_form=True) == server.issued.der
    assert ours.selected_alpn_protocol() == theirs.selected_alpn_protocol() == "http/1.1"
    assert ours.compression() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_listener_speaks_the_versions_of_today(
    authority: Authority, server: Pair, version: ssl.TLSVersion
) -> None:
    client = client_context(authority)
    client.minimum_version = client.maximum_version = version
    ours, _ = shake_hands(listener_context(ListenerTls(server.certificate, server.key)), client)
    assert ours.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_older_version_is_spoken_on_either_side(authority: Authority, server: Pair) -> None:
    """Even where the library would, if it were let."""
    listener = listener_context(ListenerTls(server.certificate, server.key))
    upstream = upstream_context(UpstreamTls(verify=False))
    old_client, old_server = client_context(authority), server_context(server)
    for context in (listener, upstream, old_client, old_server):
        context.set_ciphers("DEFAULT@SECLEVEL=0")
    for old in (old_client, old_server):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    shake_hands(old_server, old_client)
    for ours, theirs in ((listener, old_client), (old_server, upstream)):
        with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
            shake_hands(ours, theirs)


def test_a_listener_without_authorities_asks_nobody_for_a_certificate(
    tmp_path: Path, authority: Authority, server: Pair
) -> None:
    own = write_pair(tmp_path, "client", authority, ["workload"], client=True)
    ours, _ = shake_hands(
        listener_context(ListenerTls(server.certificate, server.key)), client_context(authority, own)
    )
    assert ours.getpeercert() is None


def test_a_client_may_show_a_certificate_or_none(
    tmp_path: Path, authority: Authority, server: Pair, client_ca: Path
) -> None:
    context = listener_context(ListenerTls(server.certificate, server.key, client_ca))
    own = write_pair(tmp_path, "client", authority, ["workload"], client=True)
    ours, _ = shake_hands(context, client_context(authority, own))
    assert ours.getpeercert(binary_form=True) == own.issued.der
    ours, _ = shake_hands(context, client_context(authority))
    assert not ours.getpeercert()


@pytest.mark.parametrize("what", ["of a stranger", "of a server"])
def test_a_client_certificate_that_proves_nothing_is_refused(
    tmp_path: Path, authority: Authority, stranger: Authority, server: Pair, client_ca: Path, what: str
) -> None:
    context = listener_context(ListenerTls(server.certificate, server.key, client_ca))
    by_stranger = what == "of a stranger"
    shown = write_pair(tmp_path, "shown", stranger if by_stranger else authority, client=by_stranger)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(context, client_context(authority, shown))


def test_the_key_may_be_in_the_file_of_the_certificate(tmp_path: Path, authority: Authority) -> None:
    pair = write_pair(tmp_path, "server", authority, [NAME])
    both = write_file(tmp_path / "both.pem", pair.issued.key + pair.issued.certificate)
    shake_hands(listener_context(ListenerTls(both, both)), client_context(authority))
    upstream_context(UpstreamTls(certificate=str(both)))


def test_the_files_of_a_listener_are_those_it_was_given(tmp_path: Path) -> None:
    certificate, key, ca = (tmp_path / name for name in ("a", "b", "c"))
    assert ListenerTls(certificate, key).files() == (certificate, key)
    assert ListenerTls(certificate, key, ca).files() == (certificate, key, ca)


# -- upstreams


def test_an_upstream_is_believed_if_the_routes_own_authority_vouches_for_it(
    authority: Authority, server: Pair, client_ca: Path
) -> None:
    _, theirs = shake_hands(server_context(server), upstream_context(UpstreamTls(ca=str(client_ca))))
    assert theirs.getpeercert(binary_form=True) == server.issued.der


def test_an_upstream_is_offered_http_1_1_alone(server: Pair) -> None:
    listener = server_context(server)
    listener.set_alpn_protocols(["h2", "http/1.1"])
    ours, _ = shake_hands(listener, upstream_context(UpstreamTls(verify=False)))
    assert ours.selected_alpn_protocol() == "http/1.1"


def test_by_default_an_upstream_is_verified_against_the_authorities_of_the_system(server: Pair) -> None:
    context = upstream_context(UpstreamTls())
    assert context.check_hostname
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(server), context)


def test_an_upstream_of_another_authority_or_name_is_not_believed(
    tmp_path: Path, stranger: Authority, server: Pair, client_ca: Path
) -> None:
    context = upstream_context(UpstreamTls(ca=str(client_ca)))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)issuer|self.signed"):
        shake_hands(server_context(write_pair(tmp_path, "other", stranger, [NAME])), context)
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        shake_hands(server_context(server), context, "elsewhere.example")


def test_an_upstream_that_need_not_be_verified_may_be_anybody(tmp_path: Path, stranger: Authority) -> None:
    context = upstream_context(UpstreamTls(verify=False))
    shake_hands(server_context(write_pair(tmp_path, "other", stranger, ["a.example"])), context, "b.example")


def test_an_upstream_is_shown_our_certificate(
    tmp_path: Path, authority: Authority, server: Pair, client_ca: Path
) -> None:
    own = write_pair(tmp_path, "own", authority, ["gateway"], client=True)
    tls = UpstreamTls(ca=str(client_ca), certificate=str(own.certificate), key=str(own.key))
    ours, _ = shake_hands(server_context(server, client_authority=authority), upstream_context(tls))
    assert ours.getpeercert(binary_form=True) == own.issued.der


def test_the_files_of_a_route_are_those_that_are_given() -> None:
    assert list(upstream_files(UpstreamTls())) == []
    assert list(upstream_files(UpstreamTls("ca", "certificate", "key"))) == [
        Path("ca"), Path("certificate"), Path("key")
    ]  # fmt: skip


# -- files that cannot be used


def encrypted(key: bytes) -> bytes:
    return load_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2hunter2")
    )


BAD_PAIRS: dict[str, Callable[[Issued, Issued], tuple[bytes, bytes]]] = {
    "no certificate": lambda pair, other: (b"", pair.key),
    "no key": lambda pair, other: (pair.certificate, b""),
    "another certificate's key": lambda pair, other: (pair.certificate, other.key),
    "a key for a certificate": lambda pair, other: (pair.key, pair.key),
    "an encrypted key": lambda pair, other: (pair.certificate, encrypted(pair.key)),
    "nonsense": lambda pair, other: (b"\x00\xff" * 500, b"nonsense"),
    "half a certificate": lambda pair, other: (pair.certificate[:300], pair.key),
    "half a key": lambda pair, other: (pair.certificate, pair.key[:100]),
}


def fails_to_load(tmp_path: Path, certificate: Path, key: Path) -> list[str]:
    """What is said of a pair that cannot be used, on either side."""
    said = []
    with pytest.raises(TlsFilesError) as caught:
        listener_context(ListenerTls(certificate, key))
    said.append(str(caught.value))
    with pytest.raises(TlsFilesError) as caught:
        upstream_context(UpstreamTls(certificate=str(certificate), key=str(key)))
    said.append(str(caught.value))
    return said


@pytest.mark.parametrize("what", BAD_PAIRS)
def test_a_pair_that_cannot_be_used_is_named_and_not_quoted(
    tmp_path: Path, authority: Authority, what: str
) -> None:
    pair, other = (write_pair(tmp_path, name, authority).issued for name in ("one", "other"))
    certificate_bytes, key_bytes = BAD_PAIRS[what](pair, other)
    certificate = write_file(tmp_path / "bad.pem", certificate_bytes)
    key = write_file(tmp_path / "bad.key", key_bytes)
    for words in fails_to_load(tmp_path, certificate, key):
        assert str(certificate) in words
        assert str(key) in words
        assert "hunter2" not in words
        assert "PRIVATE" not in words
        assert "\n" not in words
        assert not words.endswith(": ")


def test_files_that_are_not_there_are_named(tmp_path: Path, server: Pair) -> None:
    missing = tmp_path / "missing.pem"
    for certificate, key in (
        (missing, server.key),
        (server.certificate, missing),
        (tmp_path, server.key),
        (missing, missing),
    ):
        for words in fails_to_load(tmp_path, certificate, key):
            assert str(certificate) in words


@pytest.mark.parametrize("what", ["missing", "empty", "a key", "nonsense", "a directory"])
def test_authorities_that_are_none_are_named(tmp_path: Path, server: Pair, what: str) -> None:
    path = tmp_path / "authorities.pem"
    content = {"empty": b"", "a key": server.issued.key, "nonsense": b"nonsense"}.get(what)
    if content is not None:
        path.write_bytes(content)
    elif what == "a directory":
        path.mkdir()
    loads: list[Callable[[], ssl.SSLContext]] = [
        lambda: listener_context(ListenerTls(server.certificate, server.key, path)),
        lambda: upstream_context(UpstreamTls(ca=str(path))),
    ]
    for load in loads:
        with pytest.raises(TlsFilesError) as caught:
            load()
        assert str(path) in str(caught.value)
        assert "PRIVATE" not in str(caught.value)


# -- whether a file has changed


def test_a_stamp_changes_with_the_file_and_stays_as_long_as_that_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert stamp(path) is None
    path.write_bytes(b"one")
    first = stamp(path)
    assert first is not None
    assert stamp(path) == first
    write_file(path, b"two")  # as long as before, and in the same tick of the clock
    os.utime(path, ns=(first[1], first[1]))
    second = stamp(path)
    assert second is not None
    assert second != first, "replaced by another file"
    path.write_bytes(b"three")
    assert stamp(path) != second, "written anew"
    path.unlink()
    assert stamp(path) is None
    assert stamp(path / "below") is None
