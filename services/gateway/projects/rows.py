"""Tables of projects, of deletions and of webhook deliveries, and the guard of what is going."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Double, String, Text, event, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.common.errors import Precondition
from services.gateway.store import _PK, Base, DatasetRow, JobRow, StudentRow


class ProjectRow(Base):
    """A project with settings. One that is only used has none."""

    __tablename__ = "projects"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    created: Mapped[float] = mapped_column(Double, default=time.time)
    retention_json: Mapped[str] = mapped_column(Text, default="{}")
    webhooks_json: Mapped[str] = mapped_column(Text, default="[]")
    """`[{"uri": ..., "secret": ...}]`."""


class DeletionRow(Base):
    """A deletion of a project; without `ended` it goes on."""

    __tablename__ = "project_deletions"

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    project: Mapped[str] = mapped_column(String(63), index=True)
    created: Mapped[float] = mapped_column(Double, default=time.time)
    ended: Mapped[float | None] = mapped_column(Double, default=None, index=True)
    before_json: Mapped[str] = mapped_column(Text, default="{}")
    after_json: Mapped[str] = mapped_column(Text, default="{}")
    waiting_for: Mapped[str] = mapped_column(Text, default="")


class DeliveryRow(Base):
    """A message that a webhook is to get, written with what it tells of; gone once delivered."""

    __tablename__ = "webhook_deliveries"

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    project: Mapped[str] = mapped_column(String(63), index=True)
    message_id: Mapped[str] = mapped_column(String(64))
    uri: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Double, default=time.time)
    due: Mapped[float] = mapped_column(Double, default=time.time, index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(Text, default="")


def is_going(session: Session, project: str) -> bool:
    """Return whether a project is being deleted."""
    query = select(DeletionRow.pk).where(
        DeletionRow.project == project, DeletionRow.ended.is_(None)
    )
    return session.scalars(query.limit(1)).first() is not None


def check_stays(session: Session, project: str) -> None:
    """Raise Precondition where a project is being deleted: nothing new is stored then."""
    if is_going(session, project):
        raise Precondition(f"project {project} is being deleted; wait for its end, or use another")


@event.listens_for(Session, "before_flush")
def _refuse(session: Session, *_: Any) -> None:
    """Let nothing new into a project that is being deleted."""
    made = {one.project for one in session.new if isinstance(one, DatasetRow | JobRow | StudentRow)}
    for project in made:
        with session.no_autoflush:
            check_stays(session, project)
