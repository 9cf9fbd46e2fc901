"""A small certificate authority for trials: one certificate a service, and one for clients."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stillhouse_client.certificates import CA

HOLDERS = ("teacher", "concepts", "student", "gateway", "client")
"""Whom certificates are made for, by their names."""
_CA_KEY = "ca.key"
_CA_DAYS = 3650
_CLOCKS = timedelta(minutes=5)
"""How far clocks may differ."""
_LOCAL = ("localhost", "127.0.0.1", "::1")


def make(
    folder: Path, *, days: int = 90, names: Sequence[str] = (), since: datetime | None = None
) -> list[Path]:
    """Write `NAME.pem` and `NAME.key` for all of HOLDERS, and return the certificates' paths.

    An authority that the folder holds goes on; so making them again renews them. `names` are more
    host names and addresses of the services. Keys are readable by their owner alone. They are good
    from now on, or from `since`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, authority = _authority(folder)
    made = []
    for holder in HOLDERS:
        own = ec.generate_private_key(ec.SECP256R1())
        hosts = [holder, *_LOCAL, *names] if holder != "client" else [holder]
        certificate = (
            _certificate(holder, days, since)
            .issuer_name(authority.subject)
            .public_key(own.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_host(one) for one in hosts]), False)
            .add_extension(x509.ExtendedKeyUsage(_usages(holder)), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False
            )
            .sign(key, hashes.SHA256())
        )
        # A service reads both as soon as one changes, and takes no pair that differs.
        _write(folder / f"{holder}.key", _pem_of_key(own), private=True)
        made.append(_write(folder / f"{holder}.pem", _pem(certificate)))
    return made


def _authority(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Return the folder's authority, made where there is none."""
    paths = folder / _CA_KEY, folder / CA
    if all(path.is_file() for path in paths):
        key = serialization.load_pem_private_key(paths[0].read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{paths[0]} is no key of ours")
        return key, x509.load_pem_x509_certificate(paths[1].read_bytes())
    own = ec.generate_private_key(ec.SECP256R1())
    builder = _certificate("stillhouse trial authority", _CA_DAYS)
    certificate = (
        builder.issuer_name(_name("stillhouse trial authority"))
        .public_key(own.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False)
        .add_extension(_signs(), critical=True)
        .sign(own, hashes.SHA256())
    )
    _write(paths[0], _pem_of_key(own), private=True)
    _write(paths[1], _pem(certificate))
    return own, certificate


def _certificate(name: str, days: int, since: datetime | None = None) -> x509.CertificateBuilder:
    now = since or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usages(holder: str) -> list[x509.ObjectIdentifier]:
    caller = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return caller if holder == "client" else [*caller, ExtendedKeyUsageOID.SERVER_AUTH]


def _signs() -> x509.KeyUsage:
    other = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(key_cert_sign=True, crl_sign=True, **other)


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, data: bytes, *, private: bool = False) -> Path:
    """Replace a file whole, so that nobody reads half of it."""
    part = path.with_suffix(path.suffix + ".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    part.chmod(0o600 if private else 0o644)
    return part.replace(path)
