"""Whether a host is this machine alone, and how this machine reaches itself."""

from __future__ import annotations

from ipaddress import ip_address

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]", "": "127.0.0.1"}


def is_loopback(host: str) -> bool:
    """Return whether an address (IPv6 with or without brackets) or a name is loopback's."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def reachable(host: str) -> str:
    """Return the address at which this machine reaches a server of its own that listens on
    `host`: loopback's where it listens on every address."""
    return _WILDCARDS.get(host, host)
