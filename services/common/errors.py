"""The errors a service raises, and the one table that maps them to gRPC codes.

StillhouseError
├── InvalidInput        INVALID_ARGUMENT     BadRequest field violation
├── Unauthenticated     UNAUTHENTICATED      reason CREDENTIALS_MISSING, _INVALID or _EXPIRED
├── PermissionDenied    PERMISSION_DENIED    reason ROLE_TOO_LOW, metadata needed_role, role
├── NotFound            NOT_FOUND            ResourceInfo
│   └── DataLoss        DATA_LOSS            ResourceInfo; stored bytes are damaged
├── AlreadyExists       ALREADY_EXISTS       ResourceInfo
├── Precondition        FAILED_PRECONDITION  PreconditionFailure: what differs
│   └── HeadMoved       FAILED_PRECONDITION  reason HEAD_MOVED, metadata head_version
├── Overloaded          RESOURCE_EXHAUSTED   RetryInfo
│   ├── QuotaReached    RESOURCE_EXHAUSTED   reason QUOTA_REACHED, RetryInfo, QuotaFailure
│   └── NotInTime       RESOURCE_EXHAUSTED   reason NOT_IN_TIME, RetryInfo
├── OutOfSpace          RESOURCE_EXHAUSTED   reason OUT_OF_SPACE; nobody tries again by itself
├── OutOfMemory         RESOURCE_EXHAUSTED   reason OUT_OF_MEMORY; nobody tries again by itself
├── PeerUnavailable     UNAVAILABLE          RetryInfo
├── Cancelled           CANCELLED
├── Unsupported         UNIMPLEMENTED
└── Internal            INTERNAL             request id only
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "stillhouse"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class StillhouseError(Exception):
    """Base of all errors with a meaning for the caller; `message` is written for people."""

    code: int = code_pb2.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def details(self) -> list[Message]:
        """Return the google.rpc detail messages beside ErrorInfo."""
        return []

    def metadata(self) -> dict[str, str]:
        """Return what ErrorInfo says beside the reason, for programs."""
        return {}

    def to_status(self) -> status_pb2.Status:
        """Return the error as a `google.rpc.Status`, ErrorInfo first."""
        info = error_details_pb2.ErrorInfo(
            reason=self.reason, domain=DOMAIN, metadata=self.metadata()
        )
        return status_pb2.Status(
            code=self.code,
            message=self.message,
            details=[_pack(m) for m in [info, *self.details()]],
        )


class InvalidInput(StillhouseError):
    """The request is malformed, out of range, undecodable or of a wrong shape.

    `violations` holds (field, why) where several fields are wrong; `field` alone stands for one.
    """

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_INPUT"

    def __init__(
        self, message: str, *, field: str = "", violations: Sequence[tuple[str, str]] = ()
    ) -> None:
        super().__init__(message)
        self.field = field
        self.violations = violations or [(field, message)]

    def details(self) -> list[Message]:
        found = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=why)
            for field, why in self.violations
        ]
        return [error_details_pb2.BadRequest(field_violations=found)]


class Unauthenticated(StillhouseError):
    """The caller has not shown who he is, or not validly."""

    code = code_pb2.UNAUTHENTICATED
    reason = "CREDENTIALS_INVALID"


class CredentialsMissing(Unauthenticated):
    """The call carries no credentials."""

    reason = "CREDENTIALS_MISSING"


class CredentialsExpired(Unauthenticated):
    """The credentials were good once."""

    reason = "CREDENTIALS_EXPIRED"


class PermissionDenied(StillhouseError):
    """The caller is known and his role is too low."""

    code = code_pb2.PERMISSION_DENIED
    reason = "ROLE_TOO_LOW"

    def __init__(self, message: str, *, needed_role: str, role: str) -> None:
        super().__init__(message)
        self.needed_role, self.role = needed_role, role

    def metadata(self) -> dict[str, str]:
        return {"needed_role": self.needed_role, "role": self.role}


class NotFound(StillhouseError):
    """The named thing does not exist, or is not the caller's."""

    code = code_pb2.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, message: str, *, resource: str = "") -> None:
        super().__init__(message)
        self.resource = resource

    def details(self) -> list[Message]:
        return [
            error_details_pb2.ResourceInfo(resource_name=self.resource, description=self.message)
        ]


class DataLoss(NotFound):
    """Stored bytes are damaged, which is why they are not there: `resource` is their digest.

    Whoever computes again what is not found does so here too.
    """

    code = code_pb2.DATA_LOSS
    reason = "DATA_LOSS"

    def metadata(self) -> dict[str, str]:
        return {"digest": self.resource}


class AlreadyExists(NotFound):
    """A thing of that name exists already."""

    code = code_pb2.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class Precondition(StillhouseError):
    """A mismatch found before work starts; `differences` says what differs."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"

    def __init__(self, message: str, *, differences: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.differences = differences or {}

    def details(self) -> list[Message]:
        violations = [
            error_details_pb2.PreconditionFailure.Violation(
                type="MISMATCH", subject=k, description=v
            )
            for k, v in self.differences.items()
        ]
        return [error_details_pb2.PreconditionFailure(violations=violations)] if violations else []


class HeadMoved(Precondition):
    """A student has another head than the caller saw; `head_version` is its full name."""

    reason = "HEAD_MOVED"

    def __init__(self, message: str, *, head_version: str) -> None:
        super().__init__(message, differences={"head_version": head_version})
        self.head_version = head_version

    def metadata(self) -> dict[str, str]:
        return {"head_version": self.head_version}


class Overloaded(StillhouseError):
    """The queue is full; retry after `retry_after_s` seconds."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def details(self) -> list[Message]:
        return [error_details_pb2.RetryInfo(retry_delay=_duration(self.retry_after_s))]


class QuotaReached(Overloaded):
    """The caller's project holds its share of the queue; others still have room."""

    reason = "QUOTA_REACHED"

    def __init__(self, message: str, *, subject: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.subject = subject

    def details(self) -> list[Message]:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=self.subject, description=self.message
        )
        return [*super().details(), error_details_pb2.QuotaFailure(violations=[violation])]


class NotInTime(Overloaded):
    """The answer would come after the caller's deadline, so nothing is computed."""

    reason = "NOT_IN_TIME"


class PeerUnavailable(Overloaded):
    """Another service, or this one while it starts or drains, cannot answer now."""

    code = code_pb2.UNAVAILABLE
    reason = "UNAVAILABLE"


class OutOfSpace(StillhouseError):
    """A disk is full: what was begun cannot be finished before somebody makes room."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "OUT_OF_SPACE"


class OutOfMemory(StillhouseError):
    """A forward pass does not fit into memory, and cannot be made smaller."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "OUT_OF_MEMORY"


class Cancelled(StillhouseError):
    """The work was cancelled."""

    code = code_pb2.CANCELLED
    reason = "CANCELLED"


class Unsupported(StillhouseError):
    """This build or deployment does not have the method."""

    code = code_pb2.UNIMPLEMENTED
    reason = "UNSUPPORTED"


class Internal(StillhouseError):
    """A bug. The message names the request id and nothing of the inside."""


_BY_CODE: dict[int, type[StillhouseError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidInput,
    code_pb2.NOT_FOUND: NotFound,
    code_pb2.DATA_LOSS: DataLoss,
    code_pb2.ALREADY_EXISTS: AlreadyExists,
    code_pb2.FAILED_PRECONDITION: Precondition,
    code_pb2.RESOURCE_EXHAUSTED: Overloaded,
    code_pb2.UNAVAILABLE: PeerUnavailable,
    code_pb2.DEADLINE_EXCEEDED: PeerUnavailable,
    code_pb2.CANCELLED: Cancelled,
    code_pb2.UNIMPLEMENTED: Unsupported,
}


def from_status(status: status_pb2.Status) -> StillhouseError:
    """Return the error a status stands for; an unknown code becomes Internal."""
    reason = _reason(status)
    for kind in (OutOfSpace, OutOfMemory):
        if reason == kind.reason:
            return kind(status.message)
    found = _BY_CODE.get(status.code, Internal)
    if issubclass(found, Overloaded):
        return found(status.message, retry_after_s=_retry_after_s(status))
    return found(status.message)


def is_out_of_space(error: BaseException) -> bool:
    """Return whether a library failed because a disk is full, or a quota used up."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    # Libraries in Rust, as safetensors is, have it in the text alone.
    return any(f"(os error {code})" in str(error) for code in _NO_SPACE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a computation failed because memory is full, a device's or the machine's."""
    # By name, because torch's class is not known here; its CPU allocator has it in the text alone.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)
    )


def _reason(status: status_pb2.Status) -> str:
    """Return the reason that a status' ErrorInfo gives; empty where it has none."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def _retry_after_s(status: status_pb2.Status) -> float:
    """Return the seconds of a status' RetryInfo; 1 where it has none."""
    for detail in status.details:
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return 1.0


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int((seconds % 1) * 1e9))
