"""Runs a gRPC server: health that follows a canary, reflection, interceptors, signals, drain.

The usual `wait_for_termination` with `stop()` in a `finally` does not drain under asyncio: SIGTERM
ends the process before it runs. So the first signal sets an event, health turns NOT_SERVING, and
`stop(grace)` is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from stillhouse.common.v1 import info_pb2, info_pb2_grpc

from services.common import logs, metrics, stats, tracing
from services.common.errors import Overloaded
from services.common.interceptors import ErrorInterceptor
from services.common.methods import Methods, Wrap
from services.common.settings import ServiceSettings
from services.common.tls import names_in, server_credentials
from services.common.tls_callers import KnownCallers

_log = logs.get(__name__)
Hook = Callable[[], Awaitable[None]]
Peers = Callable[[], Awaitable[Sequence[info_pb2.InstanceStats]]]
LIVE = "live"
"""Name under which health answers whether the process itself is well, whatever it can do just now:
an orchestrator starts a process anew where this fails, and only sends no calls to one that is not
ready."""


@functools.cache
def _version() -> str:
    """Return the installed version; looking it up reads files, which takes a millisecond."""
    return metadata.version("stillhouse")


async def _nothing() -> None:
    return None


async def _nobody() -> Sequence[info_pb2.InstanceStats]:
    return ()


@dataclass(frozen=True)
class App:
    """What a service hands to `run`.

    `register` adds servicers to the server and returns their full names; `start` loads models
    (health is NOT_SERVING until it returns); `canary` runs a small forward pass; `drain` ends calls
    that would wait for ever, before the others get their time to finish; `stop` closes what `start`
    opened. `bound` is told the host and port before `start`. `peers` asks the services behind this
    one for their figures. `ready` is set while the service takes work. `wraps` stand before every
    handler, inside the one that turns errors into statuses.
    """

    service: str
    settings: ServiceSettings
    register: Callable[[grpc.aio.Server], Sequence[str]]
    start: Hook = _nothing
    canary: Hook = _nothing
    drain: Hook = _nothing
    stop: Hook = _nothing
    bound: Callable[[str, int], None] = lambda host, port: None
    peers: Peers = _nobody
    wraps: Sequence[Wrap] = ()
    device: str = "cpu"
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class InfoServicer(info_pb2_grpc.InfoServiceServicer):
    """Answers InfoService: the settings, and the figures of the metrics."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def GetInfo(
        self, request: info_pb2.GetInfoRequest, context: Any
    ) -> info_pb2.GetInfoResponse:
        settings = self._app.settings
        return info_pb2.GetInfoResponse(
            service=self._app.service,
            version=_version(),
            device=self._app.device,
            limits=info_pb2.Limits(
                max_message_bytes=settings.max_message_bytes,
                max_batch_items=settings.max_batch_items,
                max_image_bytes=settings.max_image_bytes,
                max_image_pixels=settings.max_image_pixels,
                max_queue_items=settings.max_queue_items,
            ),
        )

    async def GetStats(
        self, request: info_pb2.GetStatsRequest, context: Any
    ) -> info_pb2.GetStatsResponse:
        app = self._app
        own = await asyncio.to_thread(stats.take, app.service, _version(), app.device)
        peers = await app.peers() if request.include_peers else ()
        return info_pb2.GetStatsResponse(instances=[own, *peers])


def server_options(settings: ServiceSettings) -> list[tuple[str, Any]]:
    """Return the channel arguments of a server."""
    age_s = settings.max_connection_age_s
    aging = [("grpc.max_connection_age_ms", max(1, int(age_s * 1000)))] if age_s else []
    return [
        *aging,
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.so_reuseport", 0),
    ]


async def run(app: App) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Prints `listening HOST:PORT` when bound."""
    check_open(app)
    tracing.start(app.service, _version(), app.settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = grpc.aio.server(options=server_options(app.settings))
    checks = health.aio.HealthServicer()
    names = _register(app, server, checks)
    await _set_health(checks, names, serving=False)
    await checks.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
    port = _listen(app, server)
    await server.start()
    app.bound(app.settings.host, port)
    metrics.start(app.service, _version(), app.device, app.settings)
    print(f"listening {app.settings.host}:{port}", flush=True)
    _log.info(
        "listening",
        address=f"{app.settings.host}:{port}",
        settings=app.settings.shown(),
    )
    worker = asyncio.create_task(_start_and_watch(app, checks, names))
    await asyncio.wait(
        [worker, asyncio.create_task(stopping.wait())], return_when=asyncio.FIRST_COMPLETED
    )
    failed = worker.done()
    worker.cancel()  # no canary may call a service ready that drains
    app.ready.clear()
    await checks.enter_graceful_shutdown()
    _log.info("draining", drain_s=app.settings.drain_s)
    await app.drain()
    await server.stop(app.settings.drain_s)
    with contextlib.suppress(asyncio.CancelledError):
        await worker
    await app.stop()
    with ThreadPoolExecutor(1) as own:  # the loop's executor may have been the app's, and be gone
        await loop.run_in_executor(own, tracing.stop)
    if failed:
        sys.exit(1)


def check_open(app: App) -> None:
    """End the process where it would answer everybody on the network. The gateway asks callers who
    they are; the services behind it know nobody but its certificate."""
    settings = app.settings
    if app.service == "gateway" or not settings.is_open:
        return
    prefix = app.service.upper()
    sys.exit(
        f"{prefix}_HOST={settings.host}: whoever reaches this address could call the {app.service} "
        f"service and read every project's data. Give {prefix}_TLS_CERT, {prefix}_TLS_KEY and "
        f"{prefix}_TLS_CA (`stillhouse certs FOLDER` makes some for a trial), listen on 127.0.0.1, "
        f"or, where a service mesh decides who may call, set {prefix}_TRUSTED_NETWORK=true."
    )


def _wraps(app: App) -> list[Wrap]:
    settings = app.settings
    wraps = [ErrorInterceptor().wrap, *app.wraps]
    if not settings.tls_clients or settings.tls is None:
        return wraps
    # The gateway's HTTP side calls the gateway itself.
    own = names_in(settings.tls.cert) if app.service == "gateway" else []
    return [KnownCallers([*settings.tls_clients, *own]).wrap, *wraps]


def _listen(app: App, server: grpc.aio.Server) -> int:
    """Bind the port, encrypted where there are certificates, and return its number."""
    address = f"{app.settings.host}:{app.settings.port}"
    if app.settings.tls is None:
        return int(server.add_insecure_port(address))
    try:
        credentials = server_credentials(app.settings.tls)
    except (OSError, ValueError) as error:
        sys.exit(f"{app.service}: certificates cannot be used: {error}")
    return int(server.add_secure_port(address, credentials))


def _register(app: App, server: grpc.aio.Server, checks: Any) -> list[str]:
    methods = Methods(_wraps(app))
    names = [*app.register(methods.server), "stillhouse.common.v1.InfoService"]
    info_pb2_grpc.add_InfoServiceServicer_to_server(InfoServicer(app), methods.server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, methods.server)
    if app.settings.reflection:
        listed = [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(listed), methods.server
        )
    server.add_generic_rpc_handlers([methods])
    return names


async def _set_health(checks: Any, names: Sequence[str], *, serving: bool) -> None:
    codes = health_pb2.HealthCheckResponse
    for name in ["", *names]:
        await checks.set(name, codes.SERVING if serving else codes.NOT_SERVING)


async def _start_and_watch(app: App, checks: Any, names: Sequence[str]) -> None:
    """Start the app, then let readiness follow the canary.

    A service that cannot compute is not ready.
    """
    try:
        await app.start()
    except Exception as error:
        _log.error("cannot start", exc_info=error)
        return
    # What is there now stays: looking through it for garbage would hold calls up again and again.
    gc.collect()
    gc.freeze()
    while True:
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that meets a finished canary.
            async with asyncio.timeout(max(app.settings.canary_s, 30.0)):
                await app.canary()
            await _set_health(checks, names, serving=True)
            if not app.ready.is_set():
                app.ready.set()
                _log.info("ready")
        except Exception as error:
            if type(error) is Overloaded:
                # It does what it can; were it not ready, its calls would flood the others.
                _log.info("no room for the canary")
            else:
                _log.warning("canary failed", exc_info=error)
                app.ready.clear()
                await _set_health(checks, names, serving=False)
        await asyncio.sleep(app.settings.canary_s)
