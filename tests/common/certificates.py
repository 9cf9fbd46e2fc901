"""Certificates for tests: those that `stillhouse certs` makes, and some that must not be let in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from stillhouse_client import authority
from stillhouse_client.authority import HOLDERS

OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.initial_reconnect_backoff_ms", 100)]


def folder(path: Path, *, days: int = 90) -> Path:
    """Make an authority and its certificates, or renew those in a folder."""
    assert [one.stem for one in authority.make(path, days=days)] == list(HOLDERS)
    return path


def expired(path: Path) -> Path:
    """Let a folder's certificates have ended yesterday."""
    authority.make(path, days=1, since=datetime.now(UTC) - timedelta(days=2))
    return path


def channel(
    address: str, certs: Path, *, who: str = "client", ca: Path | None = None
) -> grpc.Channel:
    """Open a channel that shows somebody's certificate."""
    pems = ((ca or certs) / "ca.pem", certs / f"{who}.key", certs / f"{who}.pem")
    credentials = grpc.ssl_channel_credentials(*(one.read_bytes() for one in pems))
    return grpc.secure_channel(address, credentials, options=OPTIONS)


def environment(prefix: str, certs: Path, who: str) -> dict[str, str]:
    """Return the settings that make a service speak mutual TLS."""
    paths = {"CERT": f"{who}.pem", "KEY": f"{who}.key", "CA": "ca.pem"}
    return {f"{prefix}_TLS_{name}": str(certs / file) for name, file in paths.items()}
