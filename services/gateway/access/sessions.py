"""Rows of browsers' sessions: opened, looked up, ended. Blocking."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence

from sqlalchemy import delete, select

from services.gateway.access import key_format
from services.gateway.access.identity import Identity
from services.gateway.access.tables import SessionRow
from services.gateway.store import Store


def open_one(store: Store, identity: Identity, key_id: str, lifetime_s: float) -> tuple[str, float]:
    """Open a session for a caller; return (what his browser sends, when it ends).

    It ends no later than the caller's own credentials. Those that have ended are swept out.
    """
    token, session_id = key_format.make(key_format.SESSION)
    found = key_format.read(token)
    assert found is not None
    now = time.time()
    expires = min(now + lifetime_s, identity.expires or now + lifetime_s)
    row = SessionRow(
        session_id=session_id,
        digest=found.digest,
        key_id=key_id,
        subject=identity.subject,
        display_name=identity.display_name,
        grants_json=json.dumps(dict(identity.grants)),
        expires=expires,
    )
    with store.write() as session:
        session.execute(delete(SessionRow).where(SessionRow.expires < now))
        session.add(row)
    return token, expires


def end(store: Store, session_id: str) -> None:
    """End a session."""
    with store.write() as session:
        session.execute(delete(SessionRow).where(SessionRow.session_id == session_id))


def get_many(store: Store, ids: Sequence[str]) -> Mapping[str, SessionRow]:
    """Return the sessions of these ids that there are."""
    with store.read() as session:
        rows = session.scalars(select(SessionRow).where(SessionRow.session_id.in_(ids)))
        return {row.session_id: row for row in rows}
