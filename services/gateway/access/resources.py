"""Which resource a call was about, for the audit log: what it made, else what it named."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_NAMES = ("name", "student", "dataset", "job", "model", "encoder", "model_name")
_DIGEST = "archive"


def named(request: Any, response: Any) -> str:
    """Return the name of what a call made or changed; empty where it says nothing."""
    if isinstance(response, Message):
        for read in _readers(response.DESCRIPTOR):
            if found := read(response):
                return found
    if not isinstance(request, Message):
        return ""
    texts = _texts(request)
    for field in _NAMES:
        if texts.get(field):
            return texts[field]
    for project in (texts.get("project"), texts.get("project_id")):
        if project:
            return f"projects/{project}"
    # Such as UpdateProject's, which brings the project itself: its name, and nothing else of it.
    return next((found for read in _readers(request.DESCRIPTOR) if (found := read(request))), "")


def _texts(request: Message) -> dict[str, str]:
    """The fields of a request that are one text each; those that hold messages may hold secrets."""
    return {
        field.name: str(getattr(request, field.name))
        for field in request.DESCRIPTOR.fields
        if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
    }


@functools.cache
def _readers(message: Descriptor) -> tuple[Callable[[Any], str], ...]:
    """Return what reads names from the resources that a response holds."""
    found: list[Callable[[Any], str]] = []
    for field in message.fields:
        if field.message_type is None or field.is_repeated:
            continue
        inner = field.message_type.fields_by_name
        if "name" in inner and inner["name"].type == FieldDescriptor.TYPE_STRING:
            found.append(functools.partial(_read, field.name, "name"))
        elif field.name == _DIGEST and "digest" in inner:
            found.append(functools.partial(_read, field.name, "digest"))
    return tuple(found)


def _read(field: str, inner: str, message: Any) -> str:
    return str(getattr(getattr(message, field), inner))
