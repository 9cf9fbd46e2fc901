"""Asks services whether they are SERVING."""

from __future__ import annotations

import asyncio
import time

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stillhouse_client.certificates import Certificates, open_channel

_ASK_S = 2.0
_POLL_S = 0.15


async def is_serving(address: str, certificates: Certificates | None = None) -> bool:
    """Return whether the service at `address` reports SERVING."""
    async with open_channel(address, certificates, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_ASK_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def wait_serving(
    services: dict[str, str], *, timeout_s: float, certificates: Certificates | None = None
) -> list[str]:
    """Wait until all services (name to address) serve; return the names of those that do not."""
    until_s = time.monotonic() + timeout_s
    missing = dict(services)
    while missing:
        answers = await asyncio.gather(*(is_serving(a, certificates) for a in missing.values()))
        missing = {
            name: address
            for (name, address), serving in zip(missing.items(), answers, strict=True)
            if not serving
        }
        if time.monotonic() > until_s:
            break
        if missing:
            await asyncio.sleep(_POLL_S)
    return list(missing)
