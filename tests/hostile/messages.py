"""Requests by type: plausible ones from a world's names, and what an enemy makes of them."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.hostile import values

Names = Mapping[str, Sequence[Any]]
"""Values that exist, by field name, or by `Method.field` where methods differ."""
_DEPTH = 5
_LARGE = (0, 1, 2, 5, 257, 3000)


def plausible(
    rng: random.Random, kind: Descriptor, names: Names, where: str = "", depth: int = 0
) -> Message:
    """Return a message whose fields are mostly set, with names that exist."""
    message = message_factory.GetMessageClass(kind)()
    if kind.full_name in names:
        message.CopyFrom(rng.choice(names[kind.full_name]))
        return message
    chosen = {one.name: rng.choice(one.fields).name for one in kind.oneofs}
    for field in kind.fields:
        group = field.containing_oneof
        if rng.random() < (0.1 if group is None else 0.0) or (
            group and chosen[group.name] != field.name
        ):
            continue
        if field.message_type is None or depth < _DEPTH:
            _fill(rng, message, field, names, where, depth)
    return message


def _fill(
    rng: random.Random,
    message: Message,
    field: FieldDescriptor,
    names: Names,
    where: str,
    depth: int,
) -> None:
    if _is_map(field):
        return
    if field.message_type is not None:
        pool = names.get(field.message_type.full_name)
        many = (
            [rng.choice(pool) for _ in range(2)]
            if pool
            else [
                plausible(rng, field.message_type, names, where, depth + 1)
                for _ in range(rng.choice((1, 2)))
            ]
        )
        if field.is_repeated:
            getattr(message, field.name).extend(many)
        else:
            getattr(message, field.name).CopyFrom(many[0])
        return
    found = [_known(rng, field, names, where) for _ in range(rng.choice((1, 2)))]
    _put(message, field, found)


def _known(rng: random.Random, field: FieldDescriptor, names: Names, where: str) -> Any:
    pool = names.get(f"{where}.{field.name}") or names.get(field.name)
    if pool and field.enum_type is None:
        return rng.choice(pool)
    if field.enum_type is not None:
        return rng.choice(field.enum_type.values).number
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return False
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return b"" if field.type == FieldDescriptor.TYPE_BYTES else ""
    return rng.choice((0, 0, 1, 2))


def hostile(rng: random.Random, kind: Descriptor, depth: int = 0) -> Message:
    """Return a message of hostile values alone."""
    message = message_factory.GetMessageClass(kind)()
    for field in kind.fields:
        if rng.random() < 0.4 or (field.message_type is not None and depth >= _DEPTH):
            continue
        _spoil(rng, message, field, depth)
    return message


def _spoil(rng: random.Random, message: Message, field: FieldDescriptor, depth: int = 0) -> None:
    """Set one field to something hostile."""
    if _is_map(field):
        return
    count = rng.choice(_LARGE) if depth == 0 else rng.choice(_LARGE[:4])
    if field.message_type is not None:
        one = hostile(rng, field.message_type, depth + 1)
        if field.is_repeated:
            getattr(message, field.name).extend([one] * (count if one.ByteSize() < 1000 else 1))
        else:
            getattr(message, field.name).CopyFrom(one)
        return
    found = values.value(rng, field)
    size = len(found) if isinstance(found, str | bytes) else 8
    _put(message, field, [found] * (count if size < 1000 else 1))


def _put(message: Message, field: FieldDescriptor, found: list[Any]) -> None:
    if field.is_repeated:
        del getattr(message, field.name)[:]
        getattr(message, field.name).extend(found)
    elif found:
        setattr(message, field.name, found[0])


def mutate(rng: random.Random, message: Message) -> Message:
    """Return a copy in which one to three fields, at any depth, are hostile."""
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(rng.choice((1, 1, 2, 3))):
        target = _somewhere(rng, changed)
        fields = target.DESCRIPTOR.fields
        if fields:
            _spoil(rng, target, rng.choice(fields), 1)
    return changed


def _somewhere(rng: random.Random, message: Message) -> Message:
    """Return the message itself or one inside it."""
    while rng.random() < 0.6:
        inner = [
            m
            for f, v in message.ListFields()
            if f.message_type and not _is_map(f)
            for m in (v if f.is_repeated else [v])
        ]
        if not inner:
            break
        message = rng.choice(inner)
    return message


def wire(rng: random.Random, data: bytes) -> bytes:
    """Return an encoded message with bits flipped, pieces lost or lengths that lie."""
    found = bytearray(data or b"\x0a\x01a")
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(found) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(found):
            found[at] = rng.randrange(256)
        elif how == 1:
            found[at:at] = rng.choice(
                (
                    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
                    b"\x0b" * 200,
                    b"\x0a\xff\x7f",
                    b"\xc3\x28",
                )
            )
        elif how == 2:
            del found[at:]
        else:
            found += rng.randbytes(9)
    return bytes(found)


def statuses_of(message: Message) -> list[int]:
    """Return the codes of all google.rpc.Status messages inside an answer, to any depth."""
    if message.DESCRIPTOR.full_name == "google.rpc.Status":
        return [message.code]  # type: ignore[attr-defined]
    found: list[int] = []
    for field, value in message.ListFields():
        if field.message_type is not None and not _is_map(field):
            for one in value if field.is_repeated else [value]:
                found += statuses_of(one)
    return found


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def resource_of(method: str) -> str:
    """Return which kind of name a method's `name` field holds."""
    kinds = (
        "Dataset",
        "Job",
        "StudentVersion",
        "Student",
        "Encoder",
        "ConceptSet",
        "Model",
        "Teacher",
    )
    found = [kind for kind in kinds if kind in method]
    return (
        found[0]
        if found
        else ("StudentVersion" if re.search("Export|Promote", method) else "Model")
    )
