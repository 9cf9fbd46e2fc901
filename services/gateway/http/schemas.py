"""JSON schemas of messages as proto3 JSON writes and reads them.

A message has one schema where it is an answer (what is always printed is required, so typed clients
need no checks) and, where it is also part of a request, a second one that ends in `Input` and has
no output-only fields.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Schema = dict[str, Any]
_INT32 = {"type": "integer", "format": "int32"}
_INT64 = {"type": "string", "format": "int64", "pattern": "^-?[0-9]+$"}
_NUMBER = {"type": "number", "format": "double"}
_SCALARS: dict[int, Schema] = {
    FieldDescriptor.TYPE_DOUBLE: _NUMBER,
    FieldDescriptor.TYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    **dict.fromkeys(
        (
            FieldDescriptor.TYPE_INT32,
            FieldDescriptor.TYPE_SINT32,
            FieldDescriptor.TYPE_UINT32,
            FieldDescriptor.TYPE_FIXED32,
            FieldDescriptor.TYPE_SFIXED32,
        ),
        _INT32,
    ),
    **dict.fromkeys(
        (
            FieldDescriptor.TYPE_INT64,
            FieldDescriptor.TYPE_SINT64,
            FieldDescriptor.TYPE_UINT64,
            FieldDescriptor.TYPE_FIXED64,
            FieldDescriptor.TYPE_SFIXED64,
        ),
        _INT64,
    ),
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
        "additionalProperties": True,
    },
}
Comment = Callable[[str], str]
"""Returns what the contract says of a full name; empty where that is not known."""


class Schemas:
    """Collects the schemas that an OpenAPI document's paths refer to."""

    def __init__(self, comment: Comment = lambda name: "") -> None:
        self._comment = comment
        self.found: dict[str, Schema] = {}
        self._owners: dict[str, str] = {}

    def answer(self, message: Descriptor) -> Schema:
        """Return a reference to the schema of a message as an answer prints it."""
        return self._reference(message, "", frozenset())

    def request(self, message: Descriptor, in_path: Collection[str]) -> Schema:
        """Return a reference to the schema of a request's body, without what the path carries."""
        return self._reference(message, "Input", frozenset(in_path))

    def field(self, field: FieldDescriptor, suffix: str = "") -> Schema:
        """Return the schema of a field."""
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            values = self._single(kind.fields_by_name["value"], suffix)
            return {"type": "object", "additionalProperties": values}
        single = self._single(field, suffix)
        return {"type": "array", "items": single} if field.is_repeated else single

    def _single(self, field: FieldDescriptor, suffix: str) -> Schema:
        if field.message_type is not None:
            return self._reference(field.message_type, suffix, frozenset())
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return dict(_SCALARS[field.type])

    def _enum(self, enum: EnumDescriptor) -> Schema:
        values = [value.name for value in enum.values]
        return self._named(enum, "", lambda: {"type": "string", "enum": values})

    def _reference(self, message: Descriptor, suffix: str, hidden: frozenset[str]) -> Schema:
        known = _WELL_KNOWN.get(message.full_name)
        if known is not None:
            return dict(known)
        end = "" if message.name.endswith("Request") else suffix
        return self._named(message, end, lambda: self._object(message, suffix, hidden))

    def _named(
        self, owner: Descriptor | EnumDescriptor, suffix: str, make: Callable[[], Schema]
    ) -> Schema:
        name = f"{owner.name}{suffix}"
        if self._owners.setdefault(name, owner.full_name) != owner.full_name:
            name = "".join(p.capitalize() for p in owner.full_name.split(".")[1:-1]) + name
            self._owners[name] = owner.full_name
        if name not in self.found:
            self.found[name] = {}  # before the fields: messages may hold themselves
            self.found[name] |= make()
            self._describe(self.found[name], owner.full_name)
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, message: Descriptor, suffix: str, hidden: frozenset[str]) -> Schema:
        fields = [f for f in message.fields if f.name not in hidden]
        if suffix:
            fields = [f for f in fields if not _has(f, field_behavior_pb2.OUTPUT_ONLY)]
        required = [f.json_name for f in fields if _is_required(f, bool(suffix))]
        properties = {f.json_name: self._property(f, suffix) for f in fields}
        schema: Schema = {"type": "object", "properties": properties}
        if required:
            schema["required"] = required
        if suffix:
            schema["additionalProperties"] = False
        return schema

    def _property(self, field: FieldDescriptor, suffix: str) -> Schema:
        schema = self.field(field, suffix)
        self._describe(schema, field.full_name)
        return schema

    def _describe(self, schema: Schema, name: str) -> None:
        if text := self._comment(name):
            schema["description"] = text


def is_required(field: FieldDescriptor) -> bool:
    """Return whether a request must carry a field."""
    return _has(field, field_behavior_pb2.REQUIRED)


def _is_required(field: FieldDescriptor, is_input: bool) -> bool:
    return is_required(field) if is_input else not field.has_presence


def _has(field: FieldDescriptor, behavior: int) -> bool:
    return behavior in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
