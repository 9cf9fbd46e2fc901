"""Asks a service directly for what another project has: tables with a row for every RPC.

A row makes a request for a project and for things by name or digest. Asked by the project that has
them it must succeed, or the row would prove nothing; asked by another project it must be answered
as if there were no such things, to the word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from stillhouse.inference.v2 import open_inference_pb2

from services.common.blobs import digest_of, is_digest

THEIRS, OURS, NOBODYS = "default", "b", "c"
"""Who has something; who asks for it; a project that nobody uses."""
GONE = {"NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
OPEN_INFERENCE = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]


@dataclass(frozen=True)
class Owned:
    """Names and digests of what a project has; several of a kind with spaces between them."""

    def nothing(self) -> Any:
        """Return as many that stand for nothing, each as long."""
        spoiled = {
            field.name: " ".join(map(_nothing, getattr(self, field.name).split()))
            for field in fields(self)
        }
        return replace(self, **spoiled)

    def hide(self, said: str) -> str:
        """Return words that hold what stands for nothing where they held what is owned."""
        for field in fields(self):
            for one in getattr(self, field.name).split():
                said = said.replace(one, _nothing(one))
        return said


def _nothing(one: str) -> str:
    return ("0" if is_digest(one) else "z") * len(one)


Ask = Callable[[str, Any], Message]
"""Makes a request for a project about what is owned."""
Rows = Mapping[str, Sequence[Ask]]


@dataclass(frozen=True)
class Answer:
    """What came of a call: its code, what it said, and the messages before that."""

    code: str
    said: str
    messages: tuple[Message, ...]

    @property
    def refusals(self) -> list[tuple[str, str]]:
        """Codes and words of the call's failure and of its items'."""
        own = [] if self.code == "OK" else [(self.code, self.said)]
        inner = [status for one in self.messages for status in statuses(one)]
        return own + [(code_pb2.Code.Name(one.code), one.message) for one in inner]

    def under(self, project: str) -> str:
        """Return the answer as text, as it would read were it another project's."""
        text = "\n".join(map(str, self.messages))
        return text.replace(f"projects/{project}/", "projects/*/").replace(f'"{project}/', '"*/')


def statuses(message: Message) -> Iterator[status_pb2.Status]:
    """Yield the failures in a message, whatever holds them."""
    if isinstance(message, status_pb2.Status):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            yield from statuses(one)


def methods(*services: ServiceDescriptor) -> dict[str, MethodDescriptor]:
    """Every RPC of some services."""
    return {method.name: method for service in services for method in service.methods}


def check_tables(known: Mapping[str, MethodDescriptor], *tables: Mapping[str, object]) -> None:
    """Assert that every RPC is in one table, and in one alone."""
    named = [name for table in tables for name in table]
    assert sorted(named) == sorted(known)


async def call(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message) -> Answer:
    """Call an RPC and read all it answers."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    parse = message_factory.GetMessageClass(method.output_type).FromString
    serialise, got = type(request).SerializeToString, []
    try:
        if method.server_streaming:
            async for one in channel.unary_stream(path, serialise, parse)(request, timeout=240):
                got.append(one)
        else:
            got.append(await channel.unary_unary(path, serialise, parse)(request, timeout=240))
    except grpc.aio.AioRpcError as error:
        return Answer(error.code().name, str(error.details()), tuple(got))
    return Answer("OK", "", tuple(got))


async def check_refused(
    channel: grpc.aio.Channel, method: MethodDescriptor, ask: Ask, owned: Owned
) -> None:
    """Assert that another project gets what it would get were there nothing."""
    own = await call(channel, method, ask(THEIRS, owned))
    assert not own.refusals, own
    got = await call(channel, method, ask(OURS, owned))
    assert got.refusals, got
    assert {code for code, _ in got.refusals} <= GONE, got.refusals
    void = await call(channel, method, ask(OURS, owned.nothing()))
    assert [(code, owned.hide(said)) for code, said in got.refusals] == void.refusals


async def check_unseen(
    channel: grpc.aio.Channel, method: MethodDescriptor, ask: Ask, owned: Owned
) -> None:
    """Assert that another project is answered as one that nobody uses, and the owner otherwise."""
    void = (await call(channel, method, ask(NOBODYS, owned))).under(NOBODYS)
    got = await call(channel, method, ask(OURS, owned))
    assert not got.refusals, got
    assert got.under(OURS) == void
    own = await call(channel, method, ask(THEIRS, owned))
    assert not own.refusals, own
    assert own.under(THEIRS) != void


def stored(blobs: Path) -> dict[str, str]:
    """Return digests of all that the owner has in the blob store, by path."""
    root = blobs / "projects" / THEIRS
    return {
        str(path.relative_to(root)): digest_of(path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
