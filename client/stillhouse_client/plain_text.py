"""Says when an API key crosses a network as it is, for everybody on the way to read."""

from __future__ import annotations

import logging
import re
from ipaddress import ip_address

_log = logging.getLogger(__name__)
_SOCKET = re.compile(r"unix(-abstract)?:")
_SCHEME = re.compile(r"(dns|ipv4|ipv6|passthrough):(//[^/]*/)?")
_PORT = re.compile(r":\d+$")
_warned: set[str] = set()


def warn(address: str) -> None:
    """Warn, once for an address, that a key is sent to it without encryption; not for loopback."""
    if address in _warned or is_local(address):
        return
    _warned.add(address)
    _log.warning(
        "warning: the API key is sent to %s in plain text, and everybody on the way can read it; "
        "give the gateway certificates and the client STILLHOUSE_TLS_CA (docs/access.md)",
        address,
    )


def is_local(address: str) -> bool:
    """Return whether an address of gRPC never leaves this machine."""
    if _SOCKET.match(address):
        return True
    return all(_is_loopback(one) for one in _SCHEME.sub("", address, count=1).split(","))


def _is_loopback(address: str) -> bool:
    # A bare IPv6 address ends like a port.
    bare = address.count(":") > 1 and not address.startswith("[")
    host = address if bare else _PORT.sub("", address)
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
