"""One channel to a gateway: deadlines on every call, retries while it is away, published limits."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

import grpc.aio
from stillhouse.common.v1 import info_pb2, info_pb2_grpc

from stillhouse_client import credentials, plain_text, tracing
from stillhouse_client.certificates import Certificates, open_channel
from stillhouse_client.errors import ClientError, NobodyThere, Overloaded, ServerAway, from_call

R = TypeVar("R")
DEFAULT_ADDRESS = "127.0.0.1:7100"
_START_MESSAGE_BYTES = 32 << 20


class Transport:
    """A channel with the rules of calling; the groups of the client share one."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        certificates: Certificates | None = None,
        key: str = "",
    ) -> None:
        """Connect lazily to `address`; a call may last `timeout_s` and, while the server is away,
        is repeated for `retry_s`. Without certificates it speaks plain text. Without a `key`, that
        of the environment or the one kept for the address is sent, where there is one."""
        self.address = address
        given = key or credentials.find(address)
        self._credentials = (("authorization", f"Bearer {given}"),) if given else ()
        if given and certificates is None:
            plain_text.warn(address)
        self.timeout_s = timeout_s
        self.retry_s = retry_s
        self.channel = open_channel(address, certificates, _options())
        self._info: info_pb2.GetInfoResponse | None = None

    async def __aenter__(self) -> Transport:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with every call: who calls, and the trace."""
        return (*self._credentials, *tracing.headers())

    async def call(
        self, method: Callable[..., Awaitable[R]], request: Any, *, timeout_s: float = 0.0
    ) -> R:
        """Call a unary method; a server that is overloaded says itself how long to pause.

        Every mutating request carries a request id, so all calls are safe to repeat. Raises the
        ClientError that the status stands for.
        """
        until_s, pause_s = time.monotonic() + self.retry_s, 0.1
        while True:
            try:
                deadline_s = timeout_s or self.timeout_s
                return await method(request, timeout=deadline_s, metadata=self.metadata())
            except grpc.aio.AioRpcError as failed:
                error = from_call(failed)
            if not isinstance(error, ServerAway | Overloaded):
                raise error
            if isinstance(error, Overloaded):
                pause_s = max(pause_s, error.retry_after_s)
            if time.monotonic() + pause_s > until_s:
                raise self._named(error)
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(pause_s * 2, 2.0)

    async def stream(
        self, method: Callable[..., Any], request: Any, *, timeout_s: float
    ) -> AsyncIterator[Any]:
        """Yield a server stream's messages. Raises the ClientError of its status; no retry."""
        try:
            call = method(request, timeout=timeout_s, metadata=self.metadata())
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failed:
            raise self._named(from_call(failed)) from None

    def _named(self, error: ClientError) -> ClientError:
        if isinstance(error, NobodyThere):
            return NobodyThere(f"no answer from {self.address}")
        return error

    async def info(self) -> info_pb2.GetInfoResponse:
        """Return the server's identity and limits, asked once."""
        if self._info is None:
            stub = info_pb2_grpc.InfoServiceStub(self.channel)
            self._info = await self.call(stub.GetInfo, info_pb2.GetInfoRequest())
        return self._info

    async def stats(self, *, include_peers: bool = True) -> info_pb2.GetStatsResponse:
        """Return what the server, and the services behind it, have done and what waits."""
        request = info_pb2.GetStatsRequest(include_peers=include_peers)
        stub = info_pb2_grpc.InfoServiceStub(self.channel)
        return await self.call(stub.GetStats, request)


def new_request_id() -> str:
    """Return a UUID for a mutating call."""
    return str(uuid.uuid4())


def _options() -> list[tuple[str, Any]]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    return [
        ("grpc.max_receive_message_length", _START_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _START_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", json.dumps(config)),
    ]
