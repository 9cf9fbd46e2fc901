"""The errors a client call ends with, each with what to do about it.

ClientError
├── InvalidRequest      the request is wrong: fields and why
├── NotLoggedIn         the server asks who calls, and was not shown, or not validly
├── NotAllowed          the caller's role is too low
├── NotFound            no such name in this project
├── Damaged             what is asked for is stored, and its bytes are damaged
├── Conflict            the name is taken
├── Mismatch            things do not fit together: what differs
├── Overloaded          the server is busy: try again later
├── ServerAway          the server, or one behind it, cannot answer now
│   └── NobodyThere     nobody answers at the address
├── DeadlinePassed      the call took longer than it may
├── Stopped             the call was cancelled
├── Unsupported         this server does not have the method
└── ServerFault         a bug on the server, with a request id
"""

from __future__ import annotations

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status


class ClientError(Exception):
    """Base of all errors of this package; `message` says what happened, `hint` what to do."""

    hint = ""

    def __init__(self, message: str, *, hint: str = "", fields: dict[str, str] | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint or type(self).hint
        self.fields = fields or {}

    @property
    def kind(self) -> str:
        """Return the class name: what scripts compare with."""
        return type(self).__name__


class InvalidRequest(ClientError):
    """The request is malformed or out of range; `fields` names what."""


class NotLoggedIn(ClientError):
    """The server asks who calls, and was not shown, or not validly."""

    hint = "run `stillhouse login`, or set STILLHOUSE_API_KEY"


class NotAllowed(ClientError):
    """The caller's role is too low."""

    hint = "an admin of the project can make a key with a higher role"


class NotFound(ClientError):
    """The name does not exist, or is not yours."""


class Damaged(ClientError):
    """Stored bytes are damaged; `fields["resource"]` is their digest."""

    hint = "whoever runs the server finds and repairs it with `stillhouse fsck`"


class Conflict(ClientError):
    """The name is taken."""

    hint = "choose another name, or use what is already there"


class Mismatch(ClientError):
    """Things do not fit together; `fields` says what differs."""


class Overloaded(ClientError):
    """The server has no room, or no time before the deadline; `retry_after_s` is when it expects to
    have some, 0 where it does not say."""

    retry_after_s = 0.0
    hint = "the server is busy; try again in a moment"


class ServerAway(ClientError):
    """The server, or a service behind it, cannot answer now."""

    hint = "a service behind the gateway is away or starting; see `stillhouse status`"


class NobodyThere(ServerAway):
    """Nobody answers at the address."""

    hint = "start it with `stillhouse up`, or name another server with --address"


class DeadlinePassed(ClientError):
    """The call took longer than its deadline."""

    hint = "the server is slow or stuck; look at its log with `stillhouse status`"


class Stopped(ClientError):
    """The call was cancelled."""


class Unsupported(ClientError):
    """This server does not have the method."""

    hint = "client and server are of different versions; install the same one"


class ServerFault(ClientError):
    """A bug on the server."""

    hint = "the server's log has the details under this request id"


_BY_CODE: dict[int, type[ClientError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidRequest,
    code_pb2.OUT_OF_RANGE: InvalidRequest,
    code_pb2.UNAUTHENTICATED: NotLoggedIn,
    code_pb2.PERMISSION_DENIED: NotAllowed,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.DATA_LOSS: Damaged,
    code_pb2.ALREADY_EXISTS: Conflict,
    code_pb2.FAILED_PRECONDITION: Mismatch,
    code_pb2.RESOURCE_EXHAUSTED: Overloaded,
    code_pb2.UNAVAILABLE: ServerAway,
    code_pb2.DEADLINE_EXCEEDED: DeadlinePassed,
    code_pb2.CANCELLED: Stopped,
    code_pb2.UNIMPLEMENTED: Unsupported,
}


def from_status(status: status_pb2.Status) -> ClientError:
    """Return the error of a `google.rpc.Status`, as calls and per-item results carry it."""
    kind = _BY_CODE.get(status.code, ServerFault)
    fields: dict[str, str] = {}
    retry_after_s = 0.0
    for detail in _details(status):
        if isinstance(detail, error_details_pb2.BadRequest):
            fields |= {v.field: v.description for v in detail.field_violations if v.field}
        elif isinstance(detail, error_details_pb2.PreconditionFailure):
            fields |= {v.subject: v.description for v in detail.violations}
        elif isinstance(detail, error_details_pb2.ResourceInfo) and detail.resource_name:
            fields["resource"] = detail.resource_name
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after_s = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
    found = kind(status.message or kind.__name__, fields=fields)
    if isinstance(found, Overloaded):
        found.retry_after_s = retry_after_s
    return found


def from_call(error: grpc.aio.AioRpcError) -> ClientError:
    """Return the error of a failed call. One that was cancelled, and not by us, met a server that
    shuts down: it is away."""
    status = rpc_status.from_call(error)
    if status is None:
        code = int(error.code().value[0])  # type: ignore[index]
        code = code_pb2.UNAVAILABLE if code == code_pb2.CANCELLED else code
        if code == code_pb2.UNAVAILABLE:
            return NobodyThere(error.details() or "connection failed")
        status = status_pb2.Status(code=code, message=error.details() or error.code().name.lower())
    return from_status(status)


def _details(status: status_pb2.Status) -> list[Message]:
    kinds = (
        error_details_pb2.BadRequest,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.ResourceInfo,
        error_details_pb2.RetryInfo,
    )
    found: list[Message] = []
    for packed in status.details:
        for kind in kinds:
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found.append(message)
    return found
