"""Who work is done for: the ids of a call, kept beside it for logs, metrics and calls onward.

The interceptor binds them when a call comes in, a job when it runs. Queues read them when an item
comes in, so nothing between has to pass them on.
"""

from __future__ import annotations

import contextvars
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import structlog
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.common import tracing

REQUEST_ID = "x-request-id"
JOB_ID = "x-job-id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROJECT = re.compile(r"projects/([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)/")
_NAMES = ("name", "model", "encoder", "student", "dataset", "job", "concept_set.name", "model_name")
"""Fields of requests that hold a resource's name, where there is no field `project`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The ids of one call; empty where there is none."""

    request_id: str = ""
    job_id: str = ""
    project: str = ""


_NOBODY = Caller()
_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller", default=_NOBODY)


def is_id(text: str) -> bool:
    """Return whether an id from outside can go into logs and headers as it is."""
    return _ID.fullmatch(text) is not None


def current() -> Caller:
    """Return whom this task works for."""
    return _caller.get()


def bind(caller: Caller) -> None:
    """Work for a caller from here on, in this task and those it starts; its ids are on every line
    of the log."""
    names = {"request_id": caller.request_id, "job_id": caller.job_id, "project": caller.project}
    if _caller.get() is not _NOBODY:
        structlog.contextvars.unbind_contextvars(*names)
    structlog.contextvars.bind_contextvars(**{name: one for name, one in names.items() if one})
    _caller.set(caller)


def detached() -> contextvars.Context:
    """Return a context that works for nobody, for a task that outlives the call that starts it."""
    context = contextvars.copy_context()
    context.run(bind, _NOBODY)
    context.run(tracing.leave)
    return context


def outgoing() -> tuple[tuple[str, str], ...]:
    """Return the metadata that takes the ids, and the trace, to another service."""
    caller = current()
    ids = ((REQUEST_ID, caller.request_id), (JOB_ID, caller.job_id))
    return (*(one for one in ids if one[1]), *tracing.outgoing())


def project_of(request: object) -> str:
    """Return the project that a request is about; empty where it does not say, or not validly."""
    if not isinstance(request, Message):
        return ""
    for get, is_project in _fields(request.DESCRIPTOR):
        value = get(request)
        found = _PROJECT.match(f"projects/{value}/" if is_project else value)
        if found:
            return found[1]
    return ""


@functools.cache
def _fields(message: Descriptor) -> tuple[tuple[Callable[[Message], str], bool], ...]:
    """What reads the fields of a message that can name its project, and whether each is its bare
    id."""
    fields = message.fields_by_name
    found = [("project", True)] if "project" in fields else []
    for path in _NAMES:
        field = fields.get(path.partition(".")[0])
        wanted = FieldDescriptor.TYPE_MESSAGE if "." in path else FieldDescriptor.TYPE_STRING
        if field is not None and field.type == wanted and not field.is_repeated:
            found.append((path, False))
    return tuple((attrgetter(path), is_project) for path, is_project in found)
