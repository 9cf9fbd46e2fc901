"""Rows of projects: created, changed, listed, and shown as messages."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence

from google.protobuf import json_format
from sqlalchemy import select, union
from sqlalchemy.orm import Session
from stillhouse.gateway.v1 import projects_pb2 as pb

from services.common.errors import AlreadyExists, InvalidInput, NotFound
from services.common.outbound import Addresses
from services.gateway.datasets.records import to_timestamp
from services.gateway.projects.rows import DeletionRow, ProjectRow, is_going
from services.gateway.store import DatasetRow, JobRow, Store, StudentRow, answered, record

MAX_WEBHOOKS = 8
MAX_DAYS = 36_500
_DAYS = ("failed_job_days", "finished_job_days", "stage_output_days")
_USED = (DatasetRow, JobRow, StudentRow)
_SECRET = "whsec_"
_MASK = ("retention", "webhooks")


def check(project: pb.Project, addresses: Addresses) -> None:
    """Raise InvalidInput for settings out of range, Precondition for an address not allowed."""
    for field in _DAYS:
        if not 0 <= getattr(project.retention, field) <= MAX_DAYS:
            where = f"project.retention.{field}"
            raise InvalidInput(f"{where}: use 0 to {MAX_DAYS:,}", field=where)
    if len(project.webhooks) > MAX_WEBHOOKS:
        raise InvalidInput(f"project.webhooks: at most {MAX_WEBHOOKS}", field="project.webhooks")
    if len({one.uri for one in project.webhooks}) != len(project.webhooks):
        raise InvalidInput("project.webhooks: a URI comes twice", field="project.webhooks")
    for one in project.webhooks:
        if len(one.uri) > 2048:
            raise InvalidInput("project.webhooks.uri: too long", field="project.webhooks.uri")
        addresses.split(one.uri)
        if one.secret:
            key_of(one.secret)


def key_of(secret: str) -> bytes:
    """Return the bytes that a secret signs with. Raises InvalidInput."""
    try:
        if not secret.startswith(_SECRET):
            raise ValueError
        key = base64.b64decode(secret.removeprefix(_SECRET), validate=True)
        if not 24 <= len(key) <= 64:
            raise ValueError
    except ValueError:
        said = "use whsec_ and base64 of 24 to 64 bytes"
        raise InvalidInput(f"webhooks.secret: {said}", field="project.webhooks.secret") from None
    return key


def create(store: Store, request: pb.CreateProjectRequest) -> pb.Project:
    """Create a project. Raises AlreadyExists; the same request again returns the same project."""
    name, body = request.project_id, request.SerializeToString(deterministic=True)

    def work(session: Session) -> pb.Project:
        key = (name, request.request_id, "CreateProject", body)
        if (old := answered(session, *key)) is not None:
            return pb.Project.FromString(old)
        if session.get(ProjectRow, name) or _is_used(session, name):
            full = f"projects/{name}"
            raise AlreadyExists(f"{full} exists already", resource=full)
        row = ProjectRow(project=name)
        session.add(row)
        made = _change(row, request.project, _MASK)
        session.flush()
        shown = _show(session, row, name, made)
        # Not the secrets: the answer that is kept shows them to nobody twice.
        record(session, *key, response=_show(session, row, name).SerializeToString())
        return shown

    return store.change(work)


def update(store: Store, project_id: str, request: pb.UpdateProjectRequest) -> pb.Project:
    """Change a project's settings. Raises NotFound, InvalidInput for an unknown field."""
    body = request.SerializeToString(deterministic=True)
    paths = [one.partition(".")[0] for one in request.update_mask.paths]
    if unknown := [one for one in paths if one not in _MASK]:
        raise InvalidInput(f"update_mask: {unknown[0][:80]} cannot be changed", field="update_mask")
    fields = paths or [one.name for one, _ in request.project.ListFields() if one.name in _MASK]

    def work(session: Session) -> pb.Project:
        key = (project_id, request.request_id, "UpdateProject", body)
        if (old := answered(session, *key)) is not None:
            return pb.Project.FromString(old)
        row = session.get(ProjectRow, project_id, with_for_update=True)
        if row is None:
            if not _is_used(session, project_id):
                raise _missing(project_id)
            row = ProjectRow(project=project_id)
            session.add(row)
            row.retention_json, row.webhooks_json = "{}", "[]"
        made = _change(row, request.project, fields)
        session.flush()
        record(session, *key, response=_show(session, row, project_id).SerializeToString())
        return _show(session, row, project_id, made)

    return store.change(work)


def get(store: Store, project_id: str) -> pb.Project:
    """Return a project. Raises NotFound."""
    with store.read() as session:
        row = session.get(ProjectRow, project_id)
        if row is None and not _is_used(session, project_id):
            raise _missing(project_id)
        return _show(session, row, project_id)


def list_after(store: Store, after: str, size: int) -> list[pb.Project]:
    """Return up to `size` projects whose names come after `after`, by name."""
    names = union(*(select(kind.project) for kind in (ProjectRow, *_USED))).subquery()
    query = select(names.c.project).where(names.c.project > after).order_by(names.c.project)
    with store.read() as session:
        found = list(session.scalars(query.limit(size)))
        return [_show(session, session.get(ProjectRow, one), one) for one in found]


def webhooks_of(session: Session, project: str) -> dict[str, str]:
    """Return a project's webhooks: secrets by URI."""
    row = session.get(ProjectRow, project)
    return (
        {} if row is None else {one["uri"]: one["secret"] for one in json.loads(row.webhooks_json)}
    )


def deletion(store: Store, project_id: str) -> DeletionRow:
    """Return the newest deletion of a project. Raises NotFound."""
    query = select(DeletionRow).where(DeletionRow.project == project_id)
    with store.read() as session:
        row = session.scalars(query.order_by(DeletionRow.pk.desc()).limit(1)).first()
    if row is None:
        full = f"projects/{project_id}/deletion"
        raise NotFound(f"there is no {full}", resource=full)
    return row


def begin_deletion(store: Store, project_id: str) -> DeletionRow:
    """Begin to delete a project, or return the deletion that goes on. Raises NotFound."""

    def work(session: Session) -> DeletionRow:
        query = select(DeletionRow).where(
            DeletionRow.project == project_id, DeletionRow.ended.is_(None)
        )
        if (going := session.scalars(query).first()) is not None:
            return going
        if session.get(ProjectRow, project_id) is None and not _is_used(session, project_id):
            raise _missing(project_id)
        row = DeletionRow(project=project_id)
        session.add(row)
        session.flush()
        return row

    return store.change(work)


def deletion_message(row: DeletionRow) -> pb.ProjectDeletion:
    """Return a deletion as callers see it."""
    message = pb.ProjectDeletion(
        name=f"projects/{row.project}/deletion", waiting_for=row.waiting_for
    )
    message.create_time.CopyFrom(to_timestamp(row.created))
    if row.ended is not None:
        message.end_time.CopyFrom(to_timestamp(row.ended))
    before, after = json.loads(row.before_json), json.loads(row.after_json)
    for kind, count in before.items():
        message.data.add(kind=kind, before=count, after=after.get(kind, count))
    return message


def _change(row: ProjectRow, asked: pb.Project, fields: Sequence[str]) -> dict[str, str]:
    """Take settings over; return the secrets that were made, by URI."""
    if "retention" in fields:
        row.retention_json = json_format.MessageToJson(asked.retention, indent=None)
    if "webhooks" not in fields:
        return {}
    known = {one["uri"]: one["secret"] for one in json.loads(row.webhooks_json or "[]")}
    kept, made = [], {}
    for one in asked.webhooks:
        secret = one.secret or known.get(one.uri, "")
        if not secret:
            secret = made[one.uri] = _SECRET + base64.b64encode(secrets.token_bytes(32)).decode()
        kept.append({"uri": one.uri, "secret": secret})
    row.webhooks_json = json.dumps(kept)
    return made


def _show(
    session: Session, row: ProjectRow | None, name: str, made: dict[str, str] | None = None
) -> pb.Project:
    shown = pb.Project(name=f"projects/{name}", deleting=is_going(session, name))
    if row is None:
        return shown
    shown.create_time.CopyFrom(to_timestamp(row.created))
    json_format.Parse(row.retention_json or "{}", shown.retention)
    for one in json.loads(row.webhooks_json or "[]"):
        shown.webhooks.add(uri=one["uri"], secret=(made or {}).get(one["uri"], ""))
    return shown


def _is_used(session: Session, name: str) -> bool:
    found = (select(kind.pk).where(kind.project == name).limit(1) for kind in _USED)
    return name == "default" or any(session.scalars(one).first() is not None for one in found)


def _missing(name: str) -> NotFound:
    full = f"projects/{name}"
    return NotFound(f"there is no project {name}", resource=full)
