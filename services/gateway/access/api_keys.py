"""Rows of API keys: made, listed, revoked, and looked up when a call presents one. Blocking."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session
from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common import names
from services.common.errors import InvalidInput, NotFound
from services.gateway.access import key_format
from services.gateway.access.identity import EVERY, as_role
from services.gateway.access.tables import ApiKeyRow, SessionRow
from services.gateway.datasets.records import to_timestamp
from services.gateway.paging import Page
from services.gateway.store import Store, answered, record

DEFAULT_LIFETIME_S = 90 * 86_400
MAX_LIFETIME_S = 3_650 * 86_400
_MAX_NAME = 100
_METHOD = "CreateApiKey"


def check_project(project: str, *, field: str = "project") -> str:
    """Return a project's id, or EVERY. Raises InvalidInput."""
    return project if project == EVERY else names.check_id(project, field=field)


def create(store: Store, request: pb.CreateApiKeyRequest, creator: str) -> tuple[ApiKeyRow, str]:
    """Insert a key; return it with its secret, which is empty where the call is a repetition.

    Raises InvalidInput.
    """
    project = check_project(request.project)
    _check(request)
    body = request.SerializeToString(deterministic=True)
    key = (project, request.request_id, _METHOD, body)

    def work(session: Session) -> tuple[ApiKeyRow, str]:
        if (old := answered(session, *key)) is not None:
            return session.get_one(ApiKeyRow, int(old)), ""
        secret, row = _made(request, project, creator)
        session.add(row)
        session.flush()
        record(session, *key, response=str(row.pk).encode())
        return row, secret

    return store.change(work)


def list_page(store: Store, project: str, page: Page) -> tuple[list[ApiKeyRow], str]:
    """Return one page of a project's keys, newest first, and the next page's token."""
    query = select(ApiKeyRow).where(ApiKeyRow.project == project)
    if page.position:
        query = query.where(ApiKeyRow.pk < page.position)
    with store.read() as session:
        rows = session.scalars(query.order_by(ApiKeyRow.pk.desc()).limit(page.size + 1)).all()
    return page.cut(rows, [row.pk for row in rows])


def revoke(store: Store, name: str) -> ApiKeyRow:
    """Revoke a key and end its sessions; doing so again changes nothing. Raises NotFound."""
    project, key_id = parse_name(name)
    query = select(ApiKeyRow).where(ApiKeyRow.project == project, ApiKeyRow.key_id == key_id)
    with store.write() as session:
        row = session.scalars(query.with_for_update()).first()
        if row is None:
            raise NotFound(f"there is no API key {name}", resource=name)
        row.revoked = row.revoked or time.time()
        session.execute(delete(SessionRow).where(SessionRow.key_id == key_id))
    return row


def get_many(store: Store, ids: Sequence[str]) -> Mapping[str, ApiKeyRow]:
    """Return the keys of these ids that there are."""
    with store.read() as session:
        rows = session.scalars(select(ApiKeyRow).where(ApiKeyRow.key_id.in_(ids)))
        return {row.key_id: row for row in rows}


def touch(store: Store, key_id: str, used: float) -> None:
    """Note when a key was last used."""
    with store.write() as session:
        query = update(ApiKeyRow).where(ApiKeyRow.key_id == key_id)
        session.execute(query.values(last_used=used))


def parse_name(name: str) -> tuple[str, str]:
    """Return (project, key id) of a key's name. Raises InvalidInput."""
    match name.split("/"):
        case ["projects", project, "apiKeys", key_id]:
            return check_project(project, field="name"), names.check_id(key_id, field="name")
    said = f"name: {name[:120]!r} is not of the form projects/*/apiKeys/*"
    raise InvalidInput(said, field="name")


def to_message(row: ApiKeyRow) -> pb.ApiKey:
    """Return a key as its admins see it."""
    found = pb.ApiKey(
        name=names.join(row.project, "apiKeys", row.key_id),
        display_name=row.display_name,
        role=as_role(row.role),
        create_time=to_timestamp(row.created),
        creator=row.creator,
        expire_time=to_timestamp(row.expires),
    )
    if row.revoked is not None:
        found.revoke_time.CopyFrom(to_timestamp(row.revoked))
    if row.last_used is not None:
        found.last_used_time.CopyFrom(to_timestamp(row.last_used))
    return found


def _check(request: pb.CreateApiKeyRequest) -> None:
    if request.role not in access_pb2.Role.values() or not request.role:
        said = "role: one of viewer, tuner, runner, admin is required"
        raise InvalidInput(said, field="role")
    name = request.display_name
    if len(name) > _MAX_NAME or not name.isprintable():
        said = f"display_name: at most {_MAX_NAME} printable characters"
        raise InvalidInput(said, field="display_name")
    if not 0 <= request.lifetime_s <= MAX_LIFETIME_S:
        said = f"lifetime_s: from 0 to {MAX_LIFETIME_S:,}, which is ten years"
        raise InvalidInput(said, field="lifetime_s")


def _made(request: pb.CreateApiKeyRequest, project: str, creator: str) -> tuple[str, ApiKeyRow]:
    secret, key_id = key_format.make(key_format.KEY)
    found = key_format.read(secret)
    assert found is not None
    row = ApiKeyRow(
        key_id=key_id,
        project=project,
        role=request.role,
        display_name=request.display_name,
        digest=found.digest,
        creator=creator,
        expires=time.time() + (request.lifetime_s or DEFAULT_LIFETIME_S),
    )
    return secret, row
