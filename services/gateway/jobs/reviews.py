"""A person's decisions about the examples of a tuneshift job, and the stage that waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Double, ForeignKey, String, select
from sqlalchemy.orm import Mapped, Session, mapped_column
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import InvalidInput, Precondition
from services.gateway.jobs import records
from services.gateway.jobs.job import Job
from services.gateway.jobs.tuneshift_figures import Sample, is_kept
from services.gateway.store import Base, JobRow, Store, answered, record

MAX_DECISIONS = 10_000
_METHOD = "ReviewJobSamples"
_POLL_S = 0.2
_FINISHED = ""
"""Stands for a sample's id in the row that ends a review."""


class JobReviewRow(Base):
    """A decision about one example: `KEPT` or `DROPPED`, the newest one."""

    __tablename__ = "job_reviews"

    job_pk: Mapped[int] = mapped_column(ForeignKey("jobs.pk"), primary_key=True)
    sample_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    decision: Mapped[str] = mapped_column(String(16))
    created: Mapped[float] = mapped_column(Double, default=time.time)


async def wait_for_review(job: Job) -> None:
    """Wait until a person has ended the review; a restart waits on."""
    await job.progress.say("review: waiting for a person to look at the examples")
    while not await asyncio.to_thread(is_finished, job.tools.store, job.pk):
        await asyncio.sleep(_POLL_S)


def is_finished(store: Store, pk: int) -> bool:
    """Return whether a job's review is over."""
    with store.read() as session:
        return session.get(JobReviewRow, (pk, _FINISHED)) is not None


def decisions(store: Store, pk: int) -> dict[str, str]:
    """Return the decisions about a job's examples by their id."""
    query = select(JobReviewRow).where(JobReviewRow.job_pk == pk)
    with store.read() as session:
        rows = session.scalars(query).all()
    return {row.sample_id: row.decision for row in rows if row.sample_id != _FINISHED}


def state_of(sample: Sample, decided: Mapping[str, str]) -> str:
    """Return what became of an example: `KEPT`, `FILTERED`, `DROPPED` or `RESTORED`."""
    decision = decided.get(sample["sample_id"], "")
    if is_kept(sample):
        return "DROPPED" if decision == "DROPPED" else "KEPT"
    return "RESTORED" if decision == "KEPT" else "FILTERED"


def is_used(sample: Sample, decided: Mapping[str, str]) -> bool:
    """Return whether an example is trained on."""
    return state_of(sample, decided) in ("KEPT", "RESTORED")


def review(
    store: Store, row: JobRow, request: pb.ReviewJobSamplesRequest, samples: Sequence[Sample]
) -> None:
    """Store decisions, and the end of the review where it is asked for. Blocking.

    A repeated `request_id` changes nothing. Raises InvalidInput for an unknown example,
    Precondition where the job does not wait for a review.
    """
    by_id = {one["sample_id"]: one for one in samples}
    _check(request, by_id)
    body = request.SerializeToString(deterministic=True)
    key = (row.project, request.request_id, _METHOD, body)

    def work(session: Session) -> None:
        if answered(session, *key) is not None:
            return
        session.get_one(JobRow, row.pk, with_for_update=True)
        _require_waiting(session, row)
        _decide(session, row.pk, request.drop_ids, "DROPPED")
        _decide(session, row.pk, request.keep_ids, "KEPT")
        if request.finish:
            _decide(session, row.pk, [_FINISHED], "FINISHED")
        record(session, *key, response=b"done")

    store.change(work)


def _check(request: pb.ReviewJobSamplesRequest, by_id: Mapping[str, Sample]) -> None:
    if len(request.drop_ids) + len(request.keep_ids) > MAX_DECISIONS:
        raise InvalidInput(f"drop_ids, keep_ids: at most {MAX_DECISIONS:,}", field="drop_ids")
    for field, ids in (("drop_ids", request.drop_ids), ("keep_ids", request.keep_ids)):
        unknown = next((one for one in ids if one not in by_id), None)
        if unknown is not None:
            raise InvalidInput(f"{field}: the job has no example {unknown[:40]!r}", field=field)
    both = set(request.drop_ids) & set(request.keep_ids)
    if both:
        raise InvalidInput(f"keep_ids: {min(both)} is dropped and kept at once", field="keep_ids")
    blank = next((one for one in request.keep_ids if not by_id[one]["answer"].strip()), None)
    if blank is not None:
        raise InvalidInput(f"keep_ids: example {blank} has no answer", field="keep_ids")


def _require_waiting(session: Session, row: JobRow) -> None:
    current = session.get_one(JobRow, row.pk)
    last = records.last_of(session, row.pk)
    stages = {} if last is None else {one["stage"]: one for one in last.stages}
    waits = "review" in stages and not stages["review"]["complete"]
    over = session.get(JobReviewRow, (row.pk, _FINISHED)) is not None
    if current.state != "RUNNING" or not waits or over:
        raise Precondition(
            f"{records.name_of(row)} is not in its review stage: examples are reviewed while the "
            "job waits there"
        )


def _decide(session: Session, pk: int, ids: Iterable[str], decision: str) -> None:
    for one in ids:
        session.merge(
            JobReviewRow(job_pk=pk, sample_id=one, decision=decision, created=time.time())
        )
