"""Rows of jobs and of their events: made, moved from QUEUED to an end, and shown as messages."""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from google.protobuf import json_format
from google.rpc import (
    error_details_pb2,  # noqa: F401  registers the details a status may carry
    status_pb2,
)
from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common import metrics, names
from services.common.errors import InvalidInput, NotFound
from services.gateway.datasets.records import to_timestamp
from services.gateway.jobs.fence import Superseded
from services.gateway.paging import Page
from services.gateway.projects import webhooks
from services.gateway.store import JobEventRow, JobRow, Store, answered, by_name, record

Admit = Callable[[Session, str], None]
"""Refuses a further job of a project, in the transaction that would add it."""
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED")
_METHOD = "CreateDistillationJob"
_NEWEST = (
    select(func.max(JobEventRow.seq))
    .where(JobEventRow.job_pk == JobRow.pk)
    .correlate(JobRow)
    .scalar_subquery()
)
"""Sequence number of a job's newest event: one step into the index, however many there are."""
_BY_NAME = by_name(
    JobRow, JobRow.job_id, JobEventRow.seq, JobEventRow.time, JobEventRow.payload_json
).join(JobEventRow, and_(JobEventRow.job_pk == JobRow.pk, JobEventRow.seq == _NEWEST))
_KEPT_SPECS = 4096
_KEPT_CHARACTERS = 4096
"""Longest specification that is kept parsed; a job can bring thousands of words or examples."""


@dataclass(frozen=True)
class Curve:
    """New points of a training run's learning curves: values by name at one step."""

    metrics: dict[str, float]
    step: int
    run: str = ""
    """Arm and seed of an ablation, or empty."""


@dataclass(frozen=True)
class Event:
    """One event: the job's state and stages at that moment, and a sentence for people."""

    seq: int
    time: float
    state: str
    message: str
    stages: list[dict[str, Any]] = field(default_factory=list)
    eta_s: float = 0.0
    curve: Curve | None = None


def name_of(row: JobRow) -> str:
    """Return the resource name."""
    return names.join(row.project, "distillationJobs", row.job_id)


def admit_all(session: Session, project: str) -> None:
    """Let every project have as many jobs as it likes."""


def create(
    store: Store, request: pb.CreateDistillationJobRequest, *, admit: Admit = admit_all
) -> tuple[JobRow, bool]:
    """Insert a QUEUED job; return (row, whether it is new).

    The same `request_id` with the same body returns the row already there. Raises InvalidInput,
    and what `admit` raises.
    """
    kind = str(request.job.WhichOneof("spec"))
    spec = pb.DistillationJob()
    getattr(spec, kind).CopyFrom(getattr(request.job, kind))
    body = request.SerializeToString(deterministic=True)
    with store.write() as session:
        key = (request.project, request.request_id, _METHOD, body)
        if (old := answered(session, *key)) is not None:
            return session.get_one(JobRow, int(old)), False
        admit(session, request.project)
        row = JobRow(
            project=request.project,
            job_id=f"{kind.replace('_', '-')}-{uuid.uuid4().hex[:12]}",
            state="QUEUED",
            spec_json=json_format.MessageToJson(spec, indent=None),
            request_id=request.request_id,
        )
        session.add(row)
        session.flush()
        record(session, *key, response=str(row.pk).encode())
        _append(session, row, "waiting for a free worker", None, 0.0)
    return row, True


def get(store: Store, project: str, job_id: str) -> JobRow:
    """Return a job's row. Raises NotFound."""
    with store.read() as session:
        row = session.scalars(_select(project, job_id)).first()
    if row is None:
        raise missing(project, job_id)
    return row


def missing(project: str, job_id: str) -> NotFound:
    """Return the error of a job that does not exist."""
    name = names.join(project, "distillationJobs", job_id)
    return NotFound(f"there is no job {name}", resource=name)


def get_many(
    store: Store, keys: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[JobRow, Event]]:
    """Return the jobs of these (project, job id) with their newest events, as one moment had
    them."""
    found = store.fetch_many(_BY_NAME, keys)
    return {
        key: (cast("JobRow", row), _event(cast("JobEventRow", row))) for key, row in found.items()
    }


def list_page(store: Store, project: str, page: Page) -> tuple[list[JobRow], str]:
    """Return one page of a project's jobs, newest first, and the next page's token."""
    query = select(JobRow).where(JobRow.project == project)
    if page.position:
        query = query.where(JobRow.pk < page.position)
    with store.read() as session:
        rows = session.scalars(query.order_by(JobRow.pk.desc()).limit(page.size + 1)).all()
    return page.cut(rows, [row.pk for row in rows])


def unfinished(store: Store) -> list[JobRow]:
    """Return the jobs that have not ended, oldest first."""
    query = select(JobRow).where(JobRow.state.not_in(FINAL)).order_by(JobRow.pk)
    with store.read() as session:
        return list(session.scalars(query))


def count_unfinished(store: Store) -> dict[str, int]:
    """Return how many jobs there are in each state that is not an end."""
    query = select(JobRow.state, func.count()).where(JobRow.state.not_in(FINAL))
    with store.read() as session:
        found = {state: count for state, count in session.execute(query.group_by(JobRow.state))}
    return {state: found.get(state, 0) for state in ("QUEUED", "RUNNING", "CANCELLING")}


def take(store: Store, pk: int, run: int) -> None:
    """Let a run of the job's story write, and none before it. Raises Superseded where a later one
    may already."""
    with store.write() as session:
        row = session.get_one(JobRow, pk, with_for_update=True)
        if run < row.run:
            raise Superseded(row.job_id)
        row.run = run


def release(store: Store, pk: int) -> None:
    """Let nobody write until the next run takes the job, whose workflow counts its runs anew."""
    with store.write() as session:
        session.get_one(JobRow, pk, with_for_update=True).run = 0


def note(store: Store, pk: int, *, run: int = 0, **values: str) -> None:
    """Add values to what a job has made, such as the training run it waits for. `run` as in
    `append`."""
    with store.write() as session:
        row = _writable(session, pk, run)
        row.result_json = json.dumps(json.loads(row.result_json) | values)


def append(
    store: Store,
    pk: int,
    message: str,
    *,
    state: str = "",
    stages: Sequence[dict[str, Any]] | None = None,
    eta_s: float = 0.0,
    error: status_pb2.Status | None = None,
    result: dict[str, str] | None = None,
    curve: Curve | None = None,
    run: int = 0,
) -> Event | None:
    """Add an event, and move the job to `state` where one is given; stages default to the last.

    Returns the event. Returns None, and does nothing, where the job has ended, or is being
    cancelled and `state` is not the end of that. `run` is the run of the story that writes, 0 for
    others. Raises Superseded where that run is an old one.
    """
    with store.write() as session:
        row = _writable(session, pk, run)
        if row.state in FINAL or (row.state == "CANCELLING" and state != "CANCELLED"):
            return None
        if error is not None:
            row.error = json_format.MessageToJson(error, indent=None)
        if result is not None:
            row.result_json = json.dumps(json.loads(row.result_json) | result)
        if state:
            row.state = state
            row.ended = time.time() if state in FINAL else None
        event = _append(session, row, message, stages, eta_s, curve)
        if state in FINAL:
            webhooks.tell(session, row)
    if state in FINAL:
        metrics.JOBS_ENDED.labels(row.job_id.rpartition("-")[0].replace("-", "_"), state).inc()
    return event


def events(store: Store, pk: int, after: int) -> list[Event]:
    """Return a job's events after sequence number `after`, in order."""
    return events_of(store, [(pk, after)])[pk, after]


def events_of(
    store: Store, starts: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[Event]]:
    """Return the events of each (job, sequence number) after that number, in order."""
    found: dict[tuple[int, int], list[Event]] = {}
    with store.read() as session:
        for pk, after in starts:
            query = select(JobEventRow).where(JobEventRow.job_pk == pk, JobEventRow.seq > after)
            rows = session.scalars(query.order_by(JobEventRow.seq))
            found[pk, after] = [_event(row) for row in rows]
    return found


def last_event(store: Store, pk: int) -> Event | None:
    """Return a job's newest event."""
    with store.read() as session:
        return last_of(session, pk)


def last_of(session: Session, pk: int) -> Event | None:
    """Return a job's newest event, as a transaction sees it."""
    row = _last(session, pk)
    return None if row is None else _event(row)


def last_events(store: Store, pks: Sequence[int]) -> dict[int, Event]:
    """Return the newest event of each job, in one query."""
    query = (
        select(JobEventRow)
        .join(JobRow, JobRow.pk == JobEventRow.job_pk)
        .where(JobRow.pk.in_(pks), JobEventRow.seq == _NEWEST)
    )
    with store.read() as session:
        return {row.job_pk: _event(row) for row in session.scalars(query)}


def heads(store: Store, pks: Sequence[int]) -> dict[int, int]:
    """Return the newest sequence number of each job."""
    query = select(JobRow.pk, _NEWEST).where(JobRow.pk.in_(pks))
    with store.read() as session:
        return {pk: seq for pk, seq in session.execute(query) if seq is not None}


def spec_of(row: JobRow) -> pb.DistillationJob:
    """Return the message with the job's `spec` alone."""
    text = row.spec_json
    parse = _kept_spec if len(text) <= _KEPT_CHARACTERS else _spec
    return pb.DistillationJob.FromString(parse(text))


def to_message(row: JobRow, event: Event | None) -> pb.DistillationJob:
    """Return a job as it was at `event`; the outcome is shown only where that is the end."""
    job = spec_of(row)
    job.name = name_of(row)
    job.create_time.CopyFrom(to_timestamp(row.created))
    state = row.state if event is None else event.state
    job.state = pb.JobState.Value(f"JOB_STATE_{state}")
    if event is not None:
        job.stages.extend(pb.JobStage(**one) for one in event.stages)
        job.eta_s = event.eta_s
    if state in FINAL and row.state == state:
        _add_outcome(job, row)
    return job


def resume_after(token: str) -> int:
    """Return the sequence number that a resume token stands for. Raises InvalidInput."""
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) < 16):
        raise InvalidInput("resume_token: is not one of ours", field="resume_token")
    return int(token)


def _add_outcome(job: pb.DistillationJob, row: JobRow) -> None:
    if row.error:
        json_format.Parse(row.error, job.error)
    if row.ended is not None:
        job.end_time.CopyFrom(to_timestamp(row.ended))
    result = json.loads(row.result_json)
    job.student_version = result.get("student_version", "")
    job.model = result.get("model", "")
    if result.get("report"):
        job.report.CopyFrom(items_pb2.BlobRef(digest=result["report"]))


def _writable(session: Session, pk: int, run: int) -> JobRow:
    """Return a job's row, locked, where this run of its story may write. Raises Superseded."""
    row = session.get_one(JobRow, pk, with_for_update=True)
    if run and run != row.run:
        raise Superseded(row.job_id)
    return row


def _append(
    session: Session,
    row: JobRow,
    message: str,
    stages: Sequence[dict[str, Any]] | None,
    eta_s: float,
    curve: Curve | None = None,
) -> Event:
    """Add an event; the caller holds the job's row lock, so sequences have no gaps."""
    last = _last(session, row.pk)
    if stages is None:
        stages = [] if last is None else _event(last).stages
    payload: dict[str, Any] = {
        "state": row.state,
        "message": message,
        "stages": stages,
        "eta_s": round(eta_s, 1),
    }
    if curve is not None:
        payload["curve"] = asdict(curve)
    added = JobEventRow(
        job_pk=row.pk,
        seq=1 if last is None else last.seq + 1,
        payload_json=json.dumps(payload),
    )
    session.add(added)
    session.flush()
    return _event(added)


def _last(session: Session, pk: int) -> JobEventRow | None:
    query = select(JobEventRow).where(JobEventRow.job_pk == pk)
    return session.scalars(query.order_by(JobEventRow.seq.desc()).limit(1)).first()


def _spec(text: str) -> bytes:
    """Return a stored specification as the message's bytes, which are read ten times faster."""
    return json_format.Parse(text, pb.DistillationJob()).SerializeToString()


_kept_spec = functools.lru_cache(maxsize=_KEPT_SPECS)(_spec)


def _event(row: JobEventRow) -> Event:
    raw = json.loads(row.payload_json)
    curve = Curve(**raw["curve"]) if "curve" in raw else None
    told = (raw["state"], raw["message"], raw["stages"], raw["eta_s"], curve)
    return Event(row.seq, row.time, *told)


def _select(project: str, job_id: str) -> Select[JobRow]:
    return select(JobRow).where(JobRow.project == project, JobRow.job_id == job_id)
