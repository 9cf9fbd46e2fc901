"""Client channels between services: limits, keepalive, deadlines, and statuses back to errors."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from services.common import callers, logs, tracing
from services.common.addresses import is_several, listed, target
from services.common.errors import Overloaded, PeerUnavailable, StillhouseError, from_status
from services.common.reloading import BlockingChannel, ReloadingChannel
from services.common.spread import SpreadChannel
from services.common.tls import TlsFiles, channel_credentials, name_options

R = TypeVar("R")
_RESOLVE_MS = 5_000
"""Shortest time between two look-ups of a name: how soon a new instance can be found."""
_log = logs.get(__name__)
_LONGEST_HINT_S = 60.0


def open_channel(
    address: str,
    *,
    max_message_bytes: int,
    credentials: grpc.ChannelCredentials | None = None,
    tls: TlsFiles | None = None,
    service: str = "",
) -> grpc.aio.Channel:
    """Open a channel to `host:port`, to the addresses of a name (`dns:///name:port`), or to several
    addresses (`10.0.0.1:7101,10.0.0.2:7101`). Without credentials or `tls` it is not encrypted.

    With `tls` it shows our certificate, which is read again when it changes, and lets nobody but
    `service` answer. Several addresses take the calls in turn. An instance gets calls from the
    moment that it says it is ready, and none once it says that it is not; one that is away is tried
    again every two seconds.
    """
    options = _options(address, max_message_bytes)
    if tls is not None:
        named = [*options, *name_options(tls.name_of(service, address))]
        return ReloadingChannel(
            tls, lambda pems: _open(address, channel_credentials(pems), options=named)
        )
    return _open(address, credentials, options=options)


def _open(
    address: str, credentials: grpc.ChannelCredentials | None, *, options: list[tuple[str, Any]]
) -> grpc.aio.Channel:
    def one(place: str) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(place, options=options)
        return grpc.aio.secure_channel(place, credentials, options=options)

    members = listed(address)
    return SpreadChannel(one(target(address)), map(one, members)) if members else one(address)


def open_blocking_channel(
    address: str, *, max_message_bytes: int, tls: TlsFiles | None, service: str
) -> grpc.Channel | BlockingChannel:
    """Open a channel for blocking stubs, as `open_channel` does for the others."""
    options = _options(address, max_message_bytes)
    if tls is None:
        return grpc.insecure_channel(target(address), options=options)
    named = [*options, *name_options(tls.name_of(service, address))]
    return BlockingChannel(
        tls,
        lambda pems: grpc.secure_channel(target(address), channel_credentials(pems), options=named),
    )


def _options(address: str, max_message_bytes: int) -> list[tuple[str, Any]]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if is_several(address):
        config["healthCheckConfig"] = {"serviceName": ""}
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", _RESOLVE_MS),
        ("grpc.service_config", json.dumps(config)),
    ]


def to_error(error: grpc.aio.AioRpcError) -> StillhouseError:
    """Return the error that a failed call stands for.

    A call that was cancelled, and not by us, met a server that shuts down: it is away.
    """
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is None:
        code = int(error.code().value[0])  # type: ignore[index]
        code = code_pb2.UNAVAILABLE if code == code_pb2.CANCELLED else code
        status = status_pb2.Status(code=code, message=error.details() or error.code().name.lower())
    return from_status(status)


async def call(method: Callable[..., Awaitable[R]], request: Any, *, timeout_s: float) -> R:
    """Call a unary method with a deadline, on behalf of this task's caller. Raises the
    StillhouseError its status stands for."""
    span = tracing.begin_call(_method_of(request), "client")
    try:
        answer = await method(request, timeout=timeout_s, metadata=callers.outgoing())
    except grpc.aio.AioRpcError as error:
        tracing.end_call(span, error.code().name, failed=True)
        raise to_error(error) from None
    except BaseException:
        tracing.end_call(span, grpc.StatusCode.CANCELLED.name, failed=False)
        raise
    tracing.end_call(span, grpc.StatusCode.OK.name, failed=False)
    return answer


def _method_of(request: Any) -> str:
    """Return the method that takes this request, as our contract names them."""
    package, _, name = str(request.DESCRIPTOR.full_name).rpartition(".")
    return f"{package}/{name.removesuffix('Request')}"


async def retrying(attempt: Callable[[], Awaitable[R]], *, give_up_s: float, what: str) -> R:
    """Run `attempt` again, with growing pauses, while a peer is away or overloaded, for
    `give_up_s` at most. A peer that is overloaded says itself how long to pause.

    Raises PeerUnavailable, which says for what and how long nobody was there, or Overloaded.
    """
    until_s, pause_s = time.monotonic() + give_up_s, 0.1
    while True:
        try:
            return await attempt()
        except (PeerUnavailable, Overloaded) as error:
            if not isinstance(error, PeerUnavailable):
                pause_s = min(max(pause_s, error.retry_after_s), _LONGEST_HINT_S)
            if time.monotonic() + pause_s > until_s:
                if type(error) is not PeerUnavailable:
                    raise
                said = f"{what}: no answer for {give_up_s:.0f} s, at last: {error.message}"
                raise PeerUnavailable(said, retry_after_s=error.retry_after_s) from error
            _log.info(
                "waiting for a peer",
                what=what,
                reason=error.message[:200],
                pause_s=round(pause_s, 1),
            )
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(pause_s * 2, 3.0)
