"""One server of the Open Inference Protocol: calls with a deadline, asked again while it is away,
its failures as our errors."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio
from stillhouse.inference.v2 import open_inference_pb2 as pb
from stillhouse.inference.v2 import open_inference_pb2_grpc

from services.common.channels import open_channel, to_error
from services.common.errors import (
    Cancelled,
    InvalidInput,
    NotFound,
    Overloaded,
    PeerUnavailable,
    Precondition,
    StillhouseError,
)
from services.common.remote_models import RemoteFields

R = TypeVar("R")
_MAX_CHARS = 500
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def credentials_of(entry: RemoteFields) -> grpc.ChannelCredentials | None:
    """What a channel to an entry's server is opened with: the system's certificates for
    `grpcs://`, nothing for `grpc://`. The place for certificates and tokens of one's own."""
    return grpc.ssl_channel_credentials() if entry.is_encrypted else None


class OipServer:
    """The server of an entry. Every method raises PeerUnavailable where it is away or broken,
    Overloaded where it is busy, Precondition where it does not have the model or refuses the
    caller, InvalidInput with what it said of the input."""

    def __init__(
        self, entry: RemoteFields, *, timeout_s: float, retry_s: float, max_message_bytes: int
    ) -> None:
        self._url, self._model, self._version = entry.url, entry.remote_model, entry.remote_version
        self._timeout_s, self._retry_s = timeout_s, retry_s
        self._channel = open_channel(
            entry.target, max_message_bytes=max_message_bytes, credentials=credentials_of(entry)
        )
        self._stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(grace=None)

    async def metadata(self, left_s: float | None = None) -> pb.ModelMetadataResponse:
        """Return what the server tells of the model."""
        request = pb.ModelMetadataRequest(name=self._model, version=self._version)
        try:
            return await self._ask(lambda s: self._stub.ModelMetadata(request, timeout=s), left_s)
        except (NotFound, InvalidInput) as error:
            raise Precondition(error.message, differences={"model": self._model}) from None

    async def infer(
        self, request: pb.ModelInferRequest, left_s: float | None = None
    ) -> pb.ModelInferResponse:
        """Run the model on a request's tensors, within `left_s` of the caller."""
        request.model_name, request.model_version = self._model, self._version
        try:
            return await self._ask(lambda s: self._stub.ModelInfer(request, timeout=s), left_s)
        except NotFound as error:
            raise Precondition(error.message, differences={"model": self._model}) from None

    async def _ask(self, call: Callable[[float], Awaitable[R]], left_s: float | None) -> R:
        began_s, pause_s = time.monotonic(), 0.1
        limit_s = min(self._timeout_s if left_s is None else left_s, self._timeout_s)
        while True:
            spent_s = time.monotonic() - began_s
            try:
                return await call(max(limit_s - spent_s, 0.001))
            except grpc.aio.AioRpcError as error:
                spent_s = time.monotonic() - began_s
                again = error.code() is grpc.StatusCode.UNAVAILABLE
                if not again or spent_s + pause_s > min(self._retry_s, limit_s):
                    raise self._failure(error) from None
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(pause_s * 2, 1.0)

    def _failure(self, error: grpc.aio.AioRpcError) -> StillhouseError:
        code, said = error.code(), (error.details() or "")[:_MAX_CHARS]
        found = to_error(error)
        if code in _REFUSED:
            return Precondition(f"{self._url} refuses the caller: {said}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return Precondition(f"{self._url} does not speak the protocol: {said}")
        if isinstance(found, (InvalidInput, NotFound, Overloaded, Precondition, Cancelled)):
            return type(found)(f"{self._url}: {said}")
        return PeerUnavailable(f"{self._url} failed with {code.name}: {said}", retry_after_s=5.0)
