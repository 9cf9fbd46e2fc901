"""Calls the gateway's own gRPC services: one place then checks limits, errors and who asks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from stillhouse.gateway.v1 import access_pb2, access_pb2_grpc

from services.common.callers import REQUEST_ID
from services.common.errors import InvalidInput
from services.gateway.http.rules import Rule

T = TypeVar("T")
CALL_S = 600.0
"""Deadline of a call with one answer; a cold model may have to load first."""
_WHO_S = 30.0
_FROM_ANYBODY_BYTES = 64 << 10
"""Of a body, before it is asked who sends it."""
_PASSED = ("authorization", "cookie", "traceparent", "tracestate")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")


def metadata(request: Request) -> tuple[tuple[str, str], ...]:
    """Return the metadata of the calls that a request leads to: who asks, and the request id."""
    found = [(REQUEST_ID, str(request.state.request_id))]
    for name in _PASSED:
        value = request.headers.get(name)
        if value is None:
            continue
        if not _PRINTABLE.fullmatch(value):
            raise InvalidInput(f"header {name}: only printable ASCII", field=name)
        found.append((name, value))
    return tuple(found)


def check_length(request: Request, limit_bytes: int) -> None:
    """Raise BodyTooLarge where the header already says so."""
    if int(request.headers.get("content-length") or 0) > limit_bytes:
        raise BodyTooLarge(limit_bytes)


async def body_of(request: Request, limit_bytes: int, caller: Caller) -> bytes:
    """Return a request's body. Raises BodyTooLarge, and AioRpcError where a body that is not small
    comes from somebody who may not call at all: nobody else's fills the memory."""
    check_length(request, limit_bytes)
    parts, size, known = [], 0, False
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        if size > _FROM_ANYBODY_BYTES and not known:
            await caller.identify(request)
            known = True
        parts.append(part)
    return b"".join(parts)


class BodyTooLarge(InvalidInput):
    """The body is over `limit_bytes`."""

    reason = "BODY_TOO_LARGE"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is over the limit of {limit_bytes:,} bytes")


class Caller:
    """The RPCs of one channel, by rule."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._access = access_pb2_grpc.AccessServiceStub(channel)

    async def identify(self, request: Request) -> None:
        """Raise AioRpcError where a request's credentials are none or not good."""
        await self._access.WhoAmI(
            access_pb2.WhoAmIRequest(), metadata=metadata(request), timeout=_WHO_S
        )

    async def unary(self, rule: Rule, message: Message, request: Request) -> Message:
        """Call an RPC with one answer; the call ends when the HTTP caller leaves.

        Raises AioRpcError, or ClientDisconnect.
        """
        method: Any = self.channel.unary_unary(
            rule.rpc,
            request_serializer=rule.request_class.SerializeToString,
            response_deserializer=rule.response_class.FromString,
        )
        call = method(message, timeout=CALL_S, metadata=metadata(request))
        return await _while_there(request, call)

    def stream(self, rule: Rule, message: Message, request: Request) -> Any:
        """Start an RPC with many answers; whoever reads it cancels it at the end."""
        method: Any = self.channel.unary_stream(
            rule.rpc,
            request_serializer=rule.request_class.SerializeToString,
            response_deserializer=rule.response_class.FromString,
        )
        return method(message, metadata=metadata(request))


async def _while_there(request: Request, call: Awaitable[T]) -> T:
    """Return the call's answer; a caller that leaves cancels it, so nothing computes for nobody."""
    answer = asyncio.ensure_future(call)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


async def _gone(request: Request) -> None:
    """Return once the HTTP caller has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
