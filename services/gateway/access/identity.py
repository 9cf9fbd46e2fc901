"""Who a call comes from, kept beside it."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb

Role: TypeAlias = "access_pb2.Role.ValueType"
Kind: TypeAlias = "pb.CredentialKind.ValueType"
EVERY = "*"
"""Stands for every project in grants."""
_PREFIX = "ROLE_"


@dataclass(frozen=True)
class Identity:
    """A caller: name for the audit log, name for people, and roles by project."""

    subject: str
    display_name: str = ""
    kind: Kind = pb.CREDENTIAL_KIND_NONE
    grants: Mapping[str, Role] = field(default_factory=dict)
    expires: float | None = None
    session: str = ""
    """Id of the session by which the caller calls; empty for other credentials."""

    def role_in(self, project: str) -> Role:
        """Return the role in a project, 0 for none; EVERY asks for that in all projects."""
        none = access_pb2.ROLE_UNSPECIFIED
        return max(self.grants.get(project, none), self.grants.get(EVERY, none))


LOCAL = Identity("local", "local", grants={EVERY: access_pb2.ROLE_ADMIN})
"""Everybody, at a gateway that asks nobody."""
NOBODY = Identity("")
_identity: contextvars.ContextVar[Identity] = contextvars.ContextVar("identity", default=NOBODY)


def current() -> Identity:
    """Return who this task's call comes from; NOBODY outside of calls and in public ones."""
    return _identity.get()


def bind(identity: Identity) -> None:
    """Say who this task's call comes from."""
    _identity.set(identity)


def role_name(role: Role) -> str:
    """Return a role as people write it: `viewer`."""
    return access_pb2.Role.Name(role).removeprefix(_PREFIX).lower()


def as_role(number: int) -> Role:
    """Return a role that was stored as a number."""
    return cast("Role", number)


def role_of(name: str) -> Role:
    """Return the role of that name. Raises ValueError where there is none."""
    return access_pb2.Role.Value(f"{_PREFIX}{name.upper()}")
