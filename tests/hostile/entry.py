"""Every RPC of every port: methods from the generated modules, who serves them by reflection."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import stillhouse
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

_LIST = reflection_pb2.ServerReflectionRequest(list_services="")


@dataclass(frozen=True)
class Rpc:
    """A method as one process serves it."""

    target: str
    method: MethodDescriptor

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def label(self) -> str:
        return f"{self.target} {self.method.full_name}"

    def read(self, data: bytes) -> Message:
        """Return an answer's message."""
        return message_factory.GetMessageClass(self.method.output_type).FromString(data)


def contract() -> dict[str, ServiceDescriptor]:
    """Return all services of the generated modules, health and reflection, by full name."""
    modules = [health_pb2, reflection_pb2]
    for found in pkgutil.walk_packages(stillhouse.__path__, "stillhouse."):
        if found.name.endswith("_pb2"):
            modules.append(importlib.import_module(found.name))
    services = [s for m in modules for s in m.DESCRIPTOR.services_by_name.values()]
    return {service.full_name: service for service in services}


def served(channel: grpc.Channel) -> list[str]:
    """Return the full names of the services behind a channel, by its own word."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answer = next(iter(stub.ServerReflectionInfo(iter([_LIST]), timeout=30)))
    return sorted(one.name for one in answer.list_services_response.service)


def rpcs(target: str, channel: grpc.Channel) -> Iterator[Rpc]:
    """Yield every method that a process serves. Raises KeyError for one the contract lacks."""
    known = contract()
    for name in served(channel):
        for method in known[name].methods:
            yield Rpc(target, method)
