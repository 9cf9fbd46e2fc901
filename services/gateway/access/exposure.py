"""Whether a gateway may listen where its settings say, with the authentication that they say."""

from __future__ import annotations

from services.common import logs
from services.common.hosts import is_loopback
from services.gateway.settings import GatewaySettings

_log = logs.get(__name__)


def exposed(settings: GatewaySettings) -> list[str]:
    """Return the addresses beyond loopback that a gateway listens on: `grpc HOST:PORT`."""
    http_host = settings.http_host or settings.host
    found = [("grpc", settings.host, settings.port)]
    if settings.http_port >= 0:
        found.append(("http", http_host, settings.http_port))
    return [f"{kind} {host}:{port}" for kind, host, port in found if not is_loopback(host)]


def refusal(settings: GatewaySettings) -> str:
    """Return why a gateway must not start, and what to do; empty where it may."""
    beyond = exposed(settings)
    if settings.auth == "none" and beyond:
        return (
            f"this gateway would serve everybody who reaches {' and '.join(beyond)}: "
            "authentication is off only on loopback. Make a key with `stillhouse keys admin FILE` "
            "and set GATEWAY_AUTH=required and GATEWAY_ADMIN_KEY_FILE=FILE, or set GATEWAY_HOST "
            "to 127.0.0.1"
        )
    return ""


def warn(settings: GatewaySettings, *, encrypted: bool) -> None:
    """Say in the log that keys cross the network in plain text, where they do."""
    beyond = exposed(settings)
    if beyond and not encrypted:
        _log.warning(
            "keys and data cross the network in plain text; use TLS, or a proxy that does",
            listening=beyond,
        )
