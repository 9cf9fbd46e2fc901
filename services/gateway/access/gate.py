"""Decides whether a caller may make a call, and in what words he is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from services.common import callers, names
from services.common.errors import InvalidInput, NotFound, PermissionDenied, StillhouseError
from services.gateway.access.identity import EVERY, Identity, Role, role_name
from services.gateway.access.rules import CALLER, INSTALLATION, PUBLIC, Rule

_NOUNS = {
    "apiKeys": "API key",
    "datasets": "dataset",
    "distillationJobs": "job",
    "encoders": "encoder",
    "models": "model",
    "students": "student",
}
_NAMED = ("name", "model", "encoder", "student", "dataset", "job", "model_name")
_OPEN = "inference."
_OPEN_LISTS = "RepositoryIndexRequest"


def projects_of(request: Any) -> tuple[str, ...]:
    """Return all projects that a request names, EVERY where it names that."""
    found = callers.projects_of(request)
    if found or not isinstance(request, Message):
        return found
    fields = request.DESCRIPTOR.fields_by_name
    if request.DESCRIPTOR.name == _OPEN_LISTS and not request.repository_name:  # type: ignore[attr-defined]
        return (names.DEFAULT_PROJECT,)
    # Project ids have no such sign, so only requests about every project say so.
    if "project" in fields and request.project == EVERY:  # type: ignore[attr-defined]
        return (EVERY,)
    name = str(getattr(request, "name", "")) if "name" in fields else ""
    return (EVERY,) if name.startswith(f"projects/{EVERY}/") else ()


def check(rule: Rule, identity: Identity, projects: Sequence[str], request: Any) -> None:
    """Raise NotFound, PermissionDenied or InvalidInput where a caller may not make a call."""
    if rule.scope in (PUBLIC, CALLER):
        return
    for project in projects:
        if not identity.role_in(project):
            raise missing(request, project)
    if rule.scope == INSTALLATION or (not projects and EVERY in identity.grants):
        projects = (EVERY,)
    if not projects:
        raise InvalidInput(
            "the call names no project; give its id, or a name of the form projects/PROJECT/...",
            field="project",
        )
    for project in projects:
        role = identity.role_in(project)
        if role < rule.role:
            raise _too_low(rule.role, role, project)


def missing(request: Any, project: str) -> StillhouseError:
    """Return the error of a thing that is not there, which is also that of another's thing: who
    has no role in a project does not learn what is in it."""
    digest = str(getattr(request, "digest", ""))
    if digest:
        return NotFound(f"no blob {digest[:80]} in project {project}", resource=digest[:80])
    for field in _NAMED:
        name = str(getattr(request, field, ""))
        match name.split("/"):
            case ["projects", named, collection, one, *_] if named == project:
                full = f"projects/{named}/{collection}/{one}"[:200]
                noun = _NOUNS.get(collection, "resource")
                return NotFound(f"there is no {noun} {full}", resource=full)
    return NotFound(f"there is no project {project}", resource=f"projects/{project}")


def _too_low(needed: Role, role: Role, project: str) -> PermissionDenied:
    where = "every project (`*`)" if project == EVERY else f"project {project}"
    has = f"yours is {role_name(role)}" if role else "you have none there"
    said = f"this needs the role {role_name(needed)} in {where}; {has}"
    shown = role_name(role) if role else "none"
    return PermissionDenied(said, needed_role=role_name(needed), role=shown)
