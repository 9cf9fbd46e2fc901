"""Errors over HTTP: `google.rpc.Status` as JSON under the code that goes with it."""

from __future__ import annotations

import math

import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from starlette.responses import Response

from services.common.errors import StillhouseError
from services.gateway.http import payloads

_HTTP = {
    code_pb2.CANCELLED: 499,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
}
_NAMES = dict(code_pb2.Code.items())


def http_code(code: int) -> int:
    """Return the HTTP status of a gRPC code; unknown ones are 500."""
    return _HTTP.get(code, 500)


def make(code: str, message: str, *, reason: str = "") -> status_pb2.Status:
    """Return a status of the edge's own, where no call was made; `code` is gRPC's name of it."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason or code, domain="stillhouse"))
    return status_pb2.Status(code=_NAMES[code], message=message, details=[info])


def of(error: BaseException) -> status_pb2.Status:
    """Return the status that a failed call, or a check here, stands for."""
    if isinstance(error, StillhouseError):
        return error.to_status()
    if not isinstance(error, grpc.aio.AioRpcError):
        return make("INTERNAL", "internal error")
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:
        status = None
    if status is not None:
        return status
    name = error.code().name
    return make(name, error.details() or name.lower().replace("_", " "))


def to_json(status: status_pb2.Status) -> bytes:
    """Return a status as JSON; details of a type unknown here are left out."""
    try:
        return payloads.dump(status)
    except TypeError:
        return payloads.dump(status_pb2.Status(code=status.code, message=status.message))


def response(status: status_pb2.Status, *, http: int = 0) -> Response:
    """Return a status as a response, under `http` where the code's own would say too little."""
    headers = {"Cache-Control": "no-store"}
    code = http or http_code(status.code)
    if code in (429, 503):
        headers["Retry-After"] = str(_retry_s(status))
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(to_json(status), code, headers, "application/json")


def _retry_s(status: status_pb2.Status) -> int:
    """Return the whole seconds after which a RetryInfo says to come again, else 1."""
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            delay_s = float(info.retry_delay.seconds) + float(info.retry_delay.nanos) / 1e9
            return max(1, math.ceil(delay_s))
    return 1
