"""Mutual TLS: what a service shows, whom it lets call, and how it knows the services it calls.

Certificates are files that something else renews (cert-manager, `stillhouse certs`), so they are
read again when they change: a server asks at every handshake, a channel between calls. A pair that
does not fit together, as while it is being replaced, is not taken, and the one before stays.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from services.common import logs
from services.common.addresses import names_a_host

_LOOK_S = 2.0
"""Between two looks at the files."""
_log = logs.get(__name__)
Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Pems:
    """The contents of the files; `ca` is empty where callers need no certificate."""

    cert: bytes
    key: bytes
    ca: bytes


@dataclass(frozen=True)
class TlsFiles:
    """Paths of PEM files. `names` are those to expect in other services' certificates where they
    are not the host of the address, by service."""

    cert: Path
    key: Path
    ca: Path | None = None
    names: dict[str, str] = field(default_factory=dict)

    def read(self) -> Pems:
        """Return the contents. Raises OSError where one cannot be read, ValueError where the key
        is not the certificate's or the authorities are none."""
        checking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            checking.load_cert_chain(self.cert, self.key)
            if self.ca is not None:
                checking.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ValueError(f"{self.cert}, {self.key}, {self.ca}: {error}") from None
        ca = b"" if self.ca is None else self.ca.read_bytes()
        return Pems(self.cert.read_bytes(), self.key.read_bytes(), ca)

    def stamp(self) -> Stamp:
        """Return what changes when a file does. Raises OSError."""
        paths = [self.cert, self.key, *([self.ca] if self.ca else [])]
        found = [path.stat() for path in paths]
        return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)

    def name_of(self, service: str, address: str) -> str:
        """Return the name to expect in a service's certificate; empty means the host of the
        address, which a list of addresses has not."""
        return self.names.get(service) or ("" if names_a_host(address) else service)


class Certificates:
    """The contents of files as they are now. Raises OSError and ValueError when made, later never:
    what cannot be used is logged, and what was there before stays."""

    def __init__(self, files: TlsFiles) -> None:
        self.files = files
        self._stamp = files.stamp()
        self._pems = files.read()
        self._look_s = time.monotonic() + _LOOK_S

    def now(self, *, at_once: bool = False) -> Pems:
        """Return the contents, after a look at the files unless one was just taken; the same object
        where nothing has changed."""
        if at_once or time.monotonic() >= self._look_s:
            self._look_s = time.monotonic() + _LOOK_S
            self._look()
        return self._pems

    def _look(self) -> None:
        try:
            stamp = self.files.stamp()
            if stamp == self._stamp:
                return
            self._pems = self.files.read()
        except (OSError, ValueError) as error:
            _log.error("certificates stay as they were", reason=str(error))
            return
        self._stamp = stamp
        _log.info("certificates read again", certificate=str(self.files.cert))


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return what a server listens with. Where there are authorities, a caller that shows no
    certificate of theirs is not let in. Raises OSError, ValueError."""
    certificates = Certificates(files)

    def fetch() -> Any:
        pems = certificates.now(at_once=True)
        return grpc.ssl_server_certificate_configuration(
            [(pems.key, pems.cert)], root_certificates=pems.ca or None
        )

    return grpc.dynamic_ssl_server_credentials(
        fetch(), fetch, require_client_authentication=files.ca is not None
    )


def channel_credentials(pems: Pems) -> grpc.ChannelCredentials:
    """Return what a channel shows, and whom it trusts: without authorities, the system's."""
    return grpc.ssl_channel_credentials(pems.ca or None, pems.key, pems.cert)


def name_options(name: str) -> list[tuple[str, Any]]:
    """Return the channel arguments that let a server be called by another name than its
    address."""
    if not name:
        return []
    return [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]


def names_in(certificate: Path) -> list[str]:
    """Return the DNS names in a certificate file; without any, its common name."""
    from cryptography import x509  # the gateway's and the client's dependency alone

    found = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    try:
        held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = held.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    common = found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return names or [str(one.value) for one in common]


def https_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of an HTTPS server; browsers need no certificate. It follows the files:
    each handshake gets the newest. Raises OSError, ValueError."""
    certificates = Certificates(files)
    made: list[tuple[Pems, ssl.SSLContext]] = []

    def newest() -> ssl.SSLContext:
        pems = certificates.now(at_once=True)
        if not made or made[0][0] is not pems:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(["http/1.1"])
            context.load_cert_chain(files.cert, files.key)
            made[:] = [(pems, context)]
        return made[0][1]

    def greet(handshake: Any, name: str | None, first: ssl.SSLContext) -> None:
        try:
            handshake.context = newest()
        except (OSError, ssl.SSLError) as error:  # replaced between the look and the read
            _log.error("certificates stay as they were", reason=str(error))

    context = newest()
    context.sni_callback = greet
    return context
