"""Who may call which RPC: the contract's `access` options, and a table for protocols not ours."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from stillhouse.common.v1 import access_pb2 as pb

Role: TypeAlias = "pb.Role.ValueType"
PROJECT = pb.ACCESS_SCOPE_PROJECT
INSTALLATION = pb.ACCESS_SCOPE_INSTALLATION
CALLER = pb.ACCESS_SCOPE_CALLER
PUBLIC = pb.ACCESS_SCOPE_PUBLIC
_OPEN_INFERENCE = "inference.GRPCInferenceService/"


@dataclass(frozen=True)
class Rule:
    """What a call of one RPC needs. The default is the strictest: an admin's change."""

    role: Role = pb.ROLE_ADMIN
    scope: int = PROJECT
    read_only: bool = False
    stores: bool = False


_PUBLIC = Rule(pb.ROLE_UNSPECIFIED, PUBLIC, read_only=True)
_READS = Rule(pb.ROLE_VIEWER, PROJECT, read_only=True)
_FOREIGN = {
    "grpc.health.v1.Health/Check": _PUBLIC,
    "grpc.health.v1.Health/Watch": _PUBLIC,
    "grpc.health.v1.Health/List": _PUBLIC,
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(
        pb.ROLE_UNSPECIFIED, CALLER, read_only=True
    ),
    f"{_OPEN_INFERENCE}ServerLive": _PUBLIC,
    f"{_OPEN_INFERENCE}ServerReady": _PUBLIC,
    f"{_OPEN_INFERENCE}ServerMetadata": _PUBLIC,
    f"{_OPEN_INFERENCE}ModelReady": _READS,
    f"{_OPEN_INFERENCE}ModelMetadata": _READS,
    f"{_OPEN_INFERENCE}ModelInfer": _READS,
    f"{_OPEN_INFERENCE}ModelStatistics": _READS,
    f"{_OPEN_INFERENCE}RepositoryIndex": _READS,
    f"{_OPEN_INFERENCE}RepositoryModelLoad": Rule(pb.ROLE_RUNNER),
    f"{_OPEN_INFERENCE}RepositoryModelUnload": Rule(pb.ROLE_RUNNER),
}
"""Protos of others cannot carry our option."""


@functools.cache
def rule_of(method: str) -> Rule:
    """Return the rule of a method, `package.Service/Method`."""
    if method in _FOREIGN:
        return _FOREIGN[method]
    try:
        found = descriptor_pool.Default().FindMethodByName(method.replace("/", "."))
    except KeyError:
        return Rule()
    return _of(found)


def _of(method: MethodDescriptor) -> Rule:
    options = method.GetOptions()
    if not options.HasExtension(pb.access):
        return Rule()
    given = options.Extensions[pb.access]
    scope = given.scope or PROJECT
    in_project = scope in (PROJECT, INSTALLATION)
    role = given.role or (pb.ROLE_ADMIN if in_project else pb.ROLE_UNSPECIFIED)
    return Rule(role, scope, read_only=given.read_only, stores=given.stores)
