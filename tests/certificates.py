"""Certificates for the tests, made at run time: authorities, and what they issue to servers and clients. EC P-256, as PEM.

`make_authority` and `issue` give bytes; `write_pair` and `write_file` put them where a process reads them, each file replaced
as a whole, as an agent that renews certificates does.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAMES = ("127.0.0.1", "localhost")
"""What a server's certificate is for, if nothing else is said."""

_VALID = dt.timedelta(days=1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues certificates; `pem` is what those trust who trust it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes

    @property
    def der(self) -> bytes:
        """What the other side of a handshake is shown."""
        return ssl.PEM_cert_to_DER_cert(self.certificate.decode("ascii"))


@dataclass(frozen=True, slots=True)
class Pair:
    """Where a certificate and its key are, and what they are."""

    certificate: Path
    key: Path
    issued: Issued


def make_authority(name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, name, key.public_key(), key.public_key())
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_SIGNS_CERTIFICATES, critical=True)
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Authority, names: Sequence[str] = NAMES, *, client: bool = False) -> Issued:
    """A certificate for these host names and addresses, or for a client of that name."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    issuer = authority.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    certificate = (
        _builder(names[0], str(issuer), key.public_key(), authority.key.public_key())
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Issued(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def write_pair(
    directory: Path, name: str, authority: Authority, names: Sequence[str] = NAMES, *, client: bool = False
) -> Pair:
    """Issue a certificate into `<name>.pem` and its key into `<name>.key`, in place of what was there."""
    issued = issue(authority, names, client=client)
    return Pair(
        write_file(directory / f"{name}.pem", issued.certificate),
        write_file(directory / f"{name}.key", issued.key),
        issued,
    )


def write_file(path: Path, data: bytes) -> Path:
    """Put a file in place of what was there, all of it at once."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.chmod(0o600)
    return fresh.replace(path)


def server_context(pair: Pair, *, client_authority: Authority | None = None) -> ssl.SSLContext:
    """For a server with this certificate; with an authority, one that lets nobody in without a client certificate of it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if client_authority is not None:
        context.load_verify_locations(cadata=client_authority.pem.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    """For a client that trusts this authority and no other; with a pair, one that has a certificate to show."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.pem.decode("ascii"))
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    return context


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePublicKey, issuer_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
