"""Server interceptor: request id, access log, metrics, and errors to statuses, for all RPC
kinds."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status
from prometheus_client import Counter, Histogram

from services.common import callers, logs, metrics, tracing
from services.common.callers import Caller
from services.common.errors import (
    Internal,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    StillhouseError,
    Unsupported,
    is_out_of_memory,
    is_out_of_space,
)
from services.common.methods import Wrap

_DISK_FULL_S = 60.0
_QUIET = (
    "grpc.health.",
    "grpc.reflection.",
    "stillhouse.common.v1.InfoService/",
    "inference.GRPCInferenceService/ServerLive",
    "inference.GRPCInferenceService/ServerReady",
)
"""Calls that look after the service; they are neither logged nor traced."""
_OURS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that are the service's failure; with the others the caller is told no."""
_NOT_WRITTEN = "Method not implemented!"
"""What the generated servicers raise."""
_random = random.Random()
"""For request ids, which tell calls apart and keep no secret; the system's own generator would take
longer than the rest of noting a call."""
_log = logs.get(__name__)
_plain_log = logging.getLogger(__name__)
"""Says whether a line is wanted; the other makes half of it before it asks."""

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext
"""The context a servicer method gets; gRPC's class takes parameters in its stubs alone."""


def time_left_s(context: Context | None) -> float | None:
    """Return the seconds that a call has until its caller's deadline; None where it has none."""
    return None if context is None else context.time_remaining()


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every handler as what `wrap(handler, method)` makes of it. A server that knows
    its methods beforehand wraps them itself, see `methods`."""

    def __init__(self, wrap: Wrap) -> None:
        self.wrap = wrap
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        """By method, a handler and what it became; wrapping it anew would cost every call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self.wrap(handler, method.removeprefix("/"))
            self._wrapped[method] = handler, wrapped
        return wrapped


class ErrorInterceptor(WrappingInterceptor):
    """Wraps every handler: whatever it raises ends as one rich status, never as a stack trace."""

    def __init__(self) -> None:
        super().__init__(_wrap)


class _Call:
    """One RPC in flight: its names, its clock, and how it ends."""

    span: tracing.Span | None = None

    def __init__(self, method: str, context: Context) -> None:
        self.method = method
        self.metadata: Mapping[str, Any] = dict(context.invocation_metadata() or ())
        self.request_id = self._given(callers.REQUEST_ID) or f"{_random.getrandbits(128):032x}"
        self.quiet = self.method.startswith(_QUIET)
        self.started_s = time.perf_counter()

    def bind(self, request: object) -> None:
        project, job_id = callers.project_of(request), self._given(callers.JOB_ID)
        callers.bind(Caller(self.request_id, job_id, project))
        _started(self.method).inc()
        if tracing.is_on() and not self.quiet:
            tracing.enter(self.metadata)
            ids = {"request_id": self.request_id, "project": project, "job_id": job_id}
            about = {f"stillhouse.{name}": one for name, one in ids.items() if one}
            self.span = tracing.begin_call(self.method, "server", about)

    def finish(self, code: str) -> None:
        seconds = time.perf_counter() - self.started_s
        _seconds(self.method, code).observe(seconds)
        if self.quiet:
            return
        if _plain_log.isEnabledFor(logging.DEBUG):
            _log.debug("rpc", method=self.method, code=code, ms=round(seconds * 1000, 1))
        if self.span is not None:
            tracing.end_call(self.span, code, failed=code in _OURS)

    def _given(self, name: str) -> str:
        value = str(self.metadata.get(name, ""))
        return value if callers.is_id(value) else ""

    def status_of(self, error: BaseException) -> status_pb2.Status:
        # Of a method that no servicer has; a library's own error of this type is a failure of ours.
        if isinstance(error, NotImplementedError) and str(error) == _NOT_WRITTEN:
            return Unsupported(f"{self.method}: this server does not have it").to_status()
        if isinstance(error, StillhouseError) and not isinstance(error, Internal):
            return error.to_status()
        if is_out_of_space(error):
            _log.error("no space left", method=self.method, why=str(error))
            said = "the service's disk is full and the call was not done; make room and try again"
            return Overloaded(said, retry_after_s=_DISK_FULL_S).to_status()
        if is_out_of_memory(error):
            _log.error("no memory left", method=self.method, why=str(error)[:300])
            return OutOfMemory("the call does not fit into memory; ask for less").to_status()
        _log.error("unexpected error", method=self.method, exc_info=error)
        return Internal(f"internal error; quote request id {self.request_id}").to_status()

    async def fail(self, context: Context, error: BaseException) -> None:
        status = self.status_of(error)
        self.finish(code_pb2.Code.Name(status.code))
        await context.abort_with_status(rpc_status.to_status(status))


@functools.cache
def _started(method: str) -> Counter:
    """The series of a method; finding it anew would cost every call."""
    return metrics.CALLS_STARTED.labels(method)


@functools.cache
def _seconds(method: str, code: str) -> Histogram:
    return metrics.CALL_SECONDS.labels(method, code)


def _wrap(handler: Any, method: str) -> Any:
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        # One that writes to the context, as health's does, is waited for like a unary one.
        wrapped = _unary if inspect.iscoroutinefunction(inner) else _streaming
        return make(wrapped(inner, method), _reader(handler), handler.response_serializer)
    make_unary = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
    return make_unary(_unary(inner, method), _reader(handler), handler.response_serializer)


def _reader(handler: Any) -> Callable[[bytes], Any]:
    """Return what makes a request of bytes. Where they are no message, gRPC by itself would end the
    call as UNKNOWN: a single request becomes the error instead, which `_check` raises in the
    handler; of a stream it is raised at once, in the handler too, which reads the stream."""
    read, is_stream = handler.request_deserializer, handler.request_streaming

    def reading(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            error = InvalidInput("the request is not an encoded message of this method's type")
            if is_stream:
                raise error from None
            return error

    return reading


def _check(request: Any) -> None:
    if isinstance(request, InvalidInput):
        raise request


def _unary(inner: Callable[[Any, Context], Awaitable[Any]], method: str) -> Any:
    async def handle(request: Any, context: Context) -> Any:
        call = _Call(method, context)
        call.bind(request)
        try:
            _check(request)
            response = await inner(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            call.finish("CANCELLED")
            raise
        except Exception as error:
            return await call.fail(context, error)
        call.finish("OK")
        return response

    return handle


def _streaming(inner: Callable[[Any, Context], AsyncIterator[Any]], method: str) -> Any:
    async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
        call = _Call(method, context)
        call.bind(request)
        try:
            _check(request)
            async for response in inner(request, context):
                yield response
        except (grpc.aio.AbortError, asyncio.CancelledError):
            call.finish("CANCELLED")
            raise
        except Exception as error:
            await call.fail(context, error)
        else:
            call.finish("OK")

    return handle
