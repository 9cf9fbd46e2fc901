"""What the contract's comments say, by full name: from the descriptors written beside the code."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2

from services.gateway.http.schemas import Comment

FILE = "contract.binpb"
_PACKAGE = "stillhouse"
_ENUM, _SERVICE = 5, 6
_Path = tuple[int, ...]


def load_comments() -> Comment:
    """Return a look-up of comments; it knows none where the descriptors were not written."""
    file = resources.files(_PACKAGE) / FILE
    if not file.is_file():
        return lambda name: ""
    found: dict[str, str] = {}
    for proto in descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()).file:
        found |= _comments(proto)
    return lambda name: found.get(name, "")


def _comments(proto: descriptor_pb2.FileDescriptorProto) -> dict[str, str]:
    names = dict(_names(proto))
    return {
        names[tuple(place.path)]: " ".join(place.leading_comments.split())
        for place in proto.source_code_info.location
        if place.leading_comments and tuple(place.path) in names
    }


def _names(proto: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[_Path, str]]:
    """Yield the path of everything named in a file, as source locations give it, and the name."""
    for at, message in enumerate(proto.message_type):
        yield from _members(message, (4, at), proto.package)
    for at, enum in enumerate(proto.enum_type):
        yield (_ENUM, at), f"{proto.package}.{enum.name}"
    for at, service in enumerate(proto.service):
        name = f"{proto.package}.{service.name}"
        yield (_SERVICE, at), name
        for of, method in enumerate(service.method):
            yield (_SERVICE, at, 2, of), f"{name}.{method.name}"


def _members(message: Any, path: _Path, parent: str) -> Iterator[tuple[_Path, str]]:
    name = f"{parent}.{message.name}"
    yield path, name
    for at, field in enumerate(message.field):
        yield (*path, 2, at), f"{name}.{field.name}"
    for at, nested in enumerate(message.nested_type):
        yield from _members(nested, (*path, 3, at), name)
