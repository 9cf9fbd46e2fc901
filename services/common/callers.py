"""Who work is done for: the ids of a call, kept beside it for logs, metrics and calls onward.

The interceptor binds them when a call comes in, a job when it runs. Queues read them when an item
comes in, so nothing between has to pass them on.
"""

from __future__ import annotations

import contextvars
import functools
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.common import tracing
from services.common.errors import InvalidInput
from services.common.inference.names import parse_model_name

REQUEST_ID = "x-request-id"
JOB_ID = "x-job-id"
Read = Callable[[str], str]
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROJECT = re.compile(r"projects/([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:/|\Z)")
_NAMES = (
    "name",
    "model",
    "encoder",
    "student",
    "dataset",
    "job",
    "concept_set.name",
    "project.name",
    "model_name",
)
"""Fields of requests that hold a resource's name, where there is no field `project`."""
_OPEN_INFERENCE = "inference."
_OPEN_NAMES = ("name", "model_name")
"""Those of the Open Inference Protocol, whose names have short forms."""


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
    _caller.set(caller)


def log_ids(_: object, __: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put the caller's ids on a line of the log, as a processor of structlog: only few calls write
    one, so that nothing is made ready for it before."""
    caller = current()
    names = {"request_id": caller.request_id, "job_id": caller.job_id, "project": caller.project}
    for name, one in names.items():
        if one:
            line.setdefault(name, one)
    return line


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
    for get, read in _fields(request.DESCRIPTOR):
        if found := read(get(request)):
            return found
    return ""


def projects_of(request: object) -> tuple[str, ...]:
    """Return all projects that a request names; who may call it is asked for each."""
    if not isinstance(request, Message):
        return ()
    found: list[str] = []
    for get, read in _fields(request.DESCRIPTOR):
        project = read(get(request))
        if project and project not in found:
            found.append(project)
    return tuple(found)


def _project_of_name(name: str) -> str:
    found = _PROJECT.match(name)
    return found[1] if found else ""


def _project_of_id(project: str) -> str:
    return _project_of_name(f"projects/{project}/")


def _project_of_model(name: str) -> str:
    try:
        return parse_model_name(name).project
    except InvalidInput:
        return ""


@functools.cache
def _fields(message: Descriptor) -> tuple[tuple[Callable[[Message], str], Read], ...]:
    """What gets the fields of a message that can name its project, and what reads it from each."""
    fields = message.fields_by_name
    is_open = message.full_name.startswith(_OPEN_INFERENCE)
    found: list[tuple[str, Read]] = [
        (name, _project_of_id)
        for name in ("project", "project_id", "repository_name")
        if name in fields and fields[name].type == FieldDescriptor.TYPE_STRING
    ]
    for path in _NAMES:
        field = fields.get(path.partition(".")[0])
        wanted = FieldDescriptor.TYPE_MESSAGE if "." in path else FieldDescriptor.TYPE_STRING
        if field is not None and field.type == wanted and not field.is_repeated:
            read = _project_of_model if is_open and path in _OPEN_NAMES else _project_of_name
            found.append((path, read))
    return tuple((attrgetter(path), read) for path, read in found)
