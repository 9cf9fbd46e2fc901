"""Where a service is: one address, the addresses of a name, or a list of addresses.

`host:port` is one instance. `dns:///name:port` stands for all that the name resolves to, as that of
a headless service in Kubernetes does. `10.0.0.1:7101,10.0.0.2:7101` are these instances; some may
be away. Any other target of gRPC (`ipv4:`, `unix:`) goes through as it is.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Annotated

from pydantic import AfterValidator

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:")


def check_address(address: str) -> str:
    """Return an address that a channel can be opened to. Raises ValueError for a list that holds
    anything but IPv4 addresses with ports."""
    for part in listed(address):
        host, _, port = part.rpartition(":")
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError(
                f"{part!r} is not an IPv4 address and a port; a list holds nothing else, and "
                "several instances behind a name are dns:///NAME:PORT"
            ) from None
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65_536):
            raise ValueError(f"{part!r} has no port from 1 to 65535")
    return address


Address = Annotated[str, AfterValidator(check_address)]
"""A setting that holds an address."""


def is_several(address: str) -> bool:
    """Return whether more than one instance may be behind an address."""
    return "," in address or address.startswith("dns:")


def names_a_host(address: str) -> bool:
    """Return whether an address is one host, by name or by number, which its certificate holds."""
    return "," not in address and not address.startswith(("ipv4:", "ipv6:", "unix:"))


def target(address: str) -> str:
    """Return the target that gRPC understands."""
    parts = listed(address)
    return f"ipv4:{','.join(parts)}" if parts else address


def listed(address: str) -> list[str]:
    """Return the members of a list of addresses; nothing where it is no list, or gRPC's own."""
    if "," not in address or address.startswith(_SCHEMES):
        return []
    return [part.strip() for part in address.split(",")]
