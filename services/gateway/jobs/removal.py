"""The end of jobs' rows: everything that hangs on them goes first, for whoever removes jobs."""

from __future__ import annotations

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session

from services.gateway.jobs.reviews import JobReviewRow
from services.gateway.store import JobEventRow, JobRow

_CHILDREN: dict[str, type[JobEventRow] | type[JobReviewRow]] = {
    "job events": JobEventRow,
    "job reviews": JobReviewRow,
}


def count(session: Session, pks: Select[int]) -> dict[str, int]:
    """Return how many rows there are of the jobs that `pks` selects, kind by kind."""
    queries = {"jobs": select(func.count()).where(JobRow.pk.in_(pks))} | {
        name: select(func.count()).where(child.job_pk.in_(pks)) for name, child in _CHILDREN.items()
    }
    return {name: session.scalar(query) or 0 for name, query in queries.items()}


def remove(session: Session, pks: Select[int]) -> None:
    """Delete the rows of the jobs that `pks` selects."""
    for child in _CHILDREN.values():
        session.execute(delete(child).where(child.job_pk.in_(pks)))
    session.execute(delete(JobRow).where(JobRow.pk.in_(pks)))
