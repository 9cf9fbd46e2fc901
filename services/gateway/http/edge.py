"""Runs the HTTP application in the gateway's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc.aio
import uvicorn

from services.common import logs
from services.common.hosts import reachable
from services.common.reloading import ReloadingChannel
from services.common.tls import TlsFiles, channel_credentials, https_context, name_options, names_in
from services.gateway.http.app import make_app
from services.gateway.http.connections import connection_class
from services.gateway.settings import GatewaySettings

_log = logs.get(__name__)
_STARTED_S = 0.01
_LEAVE_S = 2.0


class _Server(uvicorn.Server):
    """A server that leaves signals to the gateway."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Edge:
    """The HTTP side of one gateway; port -1 is none at all."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._grpc_address = ""
        self._channel: grpc.aio.Channel | None = None
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = -1
        """Where it listens, once started."""

    def bound(self, host: str, port: int) -> None:
        """Take the address that the gateway's gRPC server listens on."""
        self._grpc_address = f"{reachable(host)}:{port}"

    async def start(self) -> None:
        """Listen, and print `http listening HOST:PORT`. Raises OSError where the port is taken."""
        if self._settings.http_port < 0:
            return
        host = self._settings.http_host or self._settings.host
        listener = _listen(host, self._settings.http_port)
        self.port = int(listener.getsockname()[1])
        self._channel = self._own_channel()
        config = uvicorn.Config(
            make_app(self._settings, self._channel),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            http=connection_class(self._settings.http_read_s),
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            limit_concurrency=self._settings.http_max_connections,
            ssl_context_factory=_https(self._settings.http_tls),
            timeout_graceful_shutdown=max(1, int(self._settings.drain_s)),
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        while not self._server.started and not self._task.done():
            await asyncio.sleep(_STARTED_S)
        if self._task.done():
            self._task.result()
        print(f"http listening {host}:{self.port}", flush=True)
        _log.info("http listening", address=f"{host}:{self.port}")

    def _own_channel(self) -> grpc.aio.Channel:
        """A channel to the gateway itself, which it shows its own certificate."""
        limit, tls = self._settings.max_message_bytes, self._settings.tls
        options = [("grpc.max_receive_message_length", limit), ("grpc.enable_http_proxy", 0)]
        if tls is None:
            return grpc.aio.insecure_channel(self._grpc_address, options=options)
        named = [*options, *name_options(names_in(tls.cert)[0])]
        return ReloadingChannel(
            tls,
            lambda pems: grpc.aio.secure_channel(
                # Without authorities it trusts what it shows itself.
                self._grpc_address,
                channel_credentials(replace(pems, ca=pems.ca or pems.cert)),
                options=named,
            ),
        )

    async def drain(self) -> None:
        """Stop accepting; requests in flight go on, in the time that their calls get."""
        if self._server is not None:
            self._server.should_exit = True

    async def stop(self) -> None:
        """End what is left and close the channel."""
        if self._task is not None and self._server is not None:
            await self.drain()
            await asyncio.wait({self._task}, timeout=_LEAVE_S)
            self._server.force_exit = True
            await asyncio.wait({self._task}, timeout=_LEAVE_S)
            self._task.cancel()
        if self._channel is not None:
            await self._channel.close()


def _https(tls: TlsFiles | None) -> Callable[..., ssl.SSLContext] | None:
    """What makes uvicorn's TLS context; None where the edge speaks plain text."""
    return None if tls is None else lambda config, default: https_context(tls)


def _listen(host: str, port: int) -> socket.socket:
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    # With its protocol: asyncio turns Nagle's delay off only where it sees TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bare, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"HTTP port {port} of {host}: {error.strerror}") from None
    return listener
