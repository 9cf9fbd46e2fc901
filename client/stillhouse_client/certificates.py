"""What a client shows to a gateway that asks for certificates, and whom it trusts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from stillhouse_client.errors import InvalidRequest

CA = "ca.pem"


@dataclass(frozen=True)
class Certificates:
    """PEM files, read when a connection is opened. Without `ca` the system's authorities are
    trusted; without `cert` and `key` no certificate is shown. `name` is expected in the gateway's
    certificate instead of the host of its address."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    name: str = ""

    def channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        """Open an encrypted channel. Raises InvalidRequest where a file cannot be read."""
        try:
            ca, key, cert = (_read(path) for path in (self.ca, self.key, self.cert))
        except OSError as error:
            raise InvalidRequest(f"certificate {error.filename}: {error.strerror}") from None
        named = [("grpc.ssl_target_name_override", self.name)] if self.name else []
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return grpc.aio.secure_channel(address, credentials, options=[*options, *named])


def in_folder(folder: Path, who: str = "client", *, name: str = "") -> Certificates:
    """Return the certificates of one of those whom `stillhouse certs` made some for."""
    return Certificates(folder / f"{who}.pem", folder / f"{who}.key", folder / CA, name)


def open_channel(
    address: str, certificates: Certificates | None, options: list[tuple[str, Any]]
) -> grpc.aio.Channel:
    """Open a channel; without certificates it is not encrypted."""
    if certificates is None:
        return grpc.aio.insecure_channel(address, options=options)
    return certificates.channel(address, options)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()
