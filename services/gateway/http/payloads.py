"""Between HTTP and messages: query, path and body into a request, a response into JSON.

JSON is proto3 JSON: camelCase names, 64-bit integers as strings, bytes as base64, every field
without presence printed, also where it has its default.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # noqa: F401  registers the details of embedded statuses

from services.common.errors import InvalidInput
from services.gateway.http.rules import Rule, field_of

_TRUTH = {"true": True, "false": False}
_LARGE_BYTES = 1 << 16


async def to_json(message: Message) -> bytes:
    """Return a message as proto3 JSON; a large one is written in a thread."""
    if message.ByteSize() < _LARGE_BYTES:
        return dump(message)
    return await asyncio.to_thread(dump, message)


def dump(message: Message) -> bytes:
    """Return a message as proto3 JSON, UTF-8, on one line."""
    found = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


async def to_request(
    rule: Rule, path: Mapping[str, str], query: Iterable[tuple[str, str]], body: bytes
) -> Message:
    """Return the request of an RPC. Raises InvalidInput that names the field."""
    if len(body) < _LARGE_BYTES:
        return _to_request(rule, path, query, body)
    return await asyncio.to_thread(_to_request, rule, path, query, body)


def _to_request(
    rule: Rule, path: Mapping[str, str], query: Iterable[tuple[str, str]], body: bytes
) -> Message:
    request = rule.request_class()
    given = _query(rule.method.input_type, query)
    if rule.has_body:
        if given:
            raise InvalidInput("send fields in the body, not the query", field=next(iter(given)))
        given = _object(body)
    elif body:
        raise InvalidInput(f"{rule.verb} takes no body")
    try:
        json_format.ParseDict(given, request)
    except SystemError:  # protobuf's answer to half a surrogate in a field's name
        raise InvalidInput("a name in the body is not Unicode text") from None
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise InvalidInput(_short(error)) from None
    for name, value in path.items():
        _set(request, name, value)
    return request


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; no body is an empty one."""
    try:
        found = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is not JSON: {_short(error)}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the body is not a JSON object")
    return cast("dict[str, Any]", found)


def _query(message: Descriptor, query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return query parameters (`page_size`, `pageSize`, `a.b`, repeated ones) as a JSON object."""
    found: dict[str, Any] = {}
    for name, text in query:
        into, kind, parts = found, message, name.split(".")
        for part in parts[:-1]:
            field = _field(kind, part, name)
            if field.message_type is None or field.is_repeated:
                raise InvalidInput(f"{name}: {part} has no fields of its own", field=name)
            into, kind = into.setdefault(field.name, {}), field.message_type
        _put(into, _field(kind, parts[-1], name), name, text)
    return found


def _field(message: Descriptor, part: str, name: str) -> FieldDescriptor:
    field = field_of(message, part)
    if field is None:
        raise InvalidInput(f"{name[:80]}: {message.name} has no such field", field=name[:80])
    return field


def _put(into: dict[str, Any], field: FieldDescriptor, name: str, text: str) -> None:
    if field.message_type is not None:
        raise InvalidInput(f"{name}: a query carries single values only", field=name)
    value: Any = text
    if field.type == FieldDescriptor.TYPE_BOOL:
        value = _TRUTH.get(text.lower())
        if value is None:
            raise InvalidInput(f"{name}: {text[:20]!r} is neither true nor false", field=name)
    if field.is_repeated:
        into.setdefault(field.name, []).append(value)
    elif field.name in into:
        raise InvalidInput(f"{name}: given twice", field=name)
    else:
        into[field.name] = value


def _set(request: Message, name: str, value: str) -> None:
    """Set a field from the path. Raises InvalidInput where the body or query says otherwise."""
    *parents, last = name.split(".")
    target: Any = request
    for part in parents:
        target = getattr(target, part)
    if getattr(target, last) not in ("", value):
        raise InvalidInput(f"{name}: the path says {value[:120]!r}", field=name)
    setattr(target, last, value)


def _short(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]
