"""Starts the gateway: `python -m services.gateway`."""

from __future__ import annotations

import sys

import uvloop

from services.common import logs, server
from services.gateway.settings import GatewaySettings

_SWITCH_S = 0.001
"""How long a thread that reads or writes tables keeps the event loop from running; five times less
than Python's own choice, because a call crosses from one to the other several times."""


def main() -> None:
    """Build the gateway from its settings and serve until a signal."""
    settings = GatewaySettings()
    logs.configure("gateway", level=settings.log_level, json=settings.log_json)
    sys.setswitchinterval(_SWITCH_S)
    uvloop.run(_serve(settings))


async def _serve(settings: GatewaySettings) -> None:
    await server.run(build(settings))


def build(settings: GatewaySettings) -> server.App:
    """Assemble the gateway. Call it in the event loop, which channels belong to."""
    from services.gateway.access import exposure
    from services.gateway.assembly import Gateway

    if said := exposure.refusal(settings):
        sys.exit(said)
    exposure.warn(settings, encrypted=settings.tls is not None)
    gateway = Gateway(settings)

    return server.App(
        service="gateway",
        settings=settings,
        register=gateway.register,
        start=gateway.start,
        canary=gateway.canary,
        drain=gateway.drain,
        stop=gateway.stop,
        bound=gateway.edge.bound,
        ready=gateway.ready,
        peers=gateway.instances.stats,
        wraps=[gateway.interceptor.wrap],
    )


if __name__ == "__main__":
    main()
