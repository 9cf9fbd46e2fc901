"""Removes what jobs have left behind, once a project's rules say that it has been kept long enough,
and the answers of old calls.

A job's record goes with its events, its workflow and the folders of its training runs. Blobs are
not touched: what nothing names any more is garbage, which is collected elsewhere. What a version of
a student was made by stays, and so does a job that has not ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf import json_format
from sqlalchemy import CursorResult, delete, exists, literal, select, tuple_
from stillhouse.gateway.v1 import projects_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import logs, names
from services.gateway.jobs import records as jobs
from services.gateway.jobs import removal
from services.gateway.jobs.engine import Engine
from services.gateway.jobs.job import Tools
from services.gateway.projects.rows import ProjectRow
from services.gateway.store import JobRow, RequestRow, Store, VersionRow

_DAY_S = 86_400.0
_AT_ONCE = 500
_ANSWERS_AT_ONCE = 5_000
_STAGES = "stages"
_log = logs.get(__name__)


@dataclass(frozen=True)
class Removed:
    """What one look has removed of a project."""

    project: str
    jobs: int = 0
    runs: int = 0
    stage_outputs: int = 0


class Keeping:
    """Applies the rules of all projects."""

    def __init__(
        self,
        tools: Tools,
        engine: Engine,
        now: Callable[[], float] = time.time,
        *,
        answer_days: float = 7.0,
    ) -> None:
        self._tools, self._engine, self._now = tools, engine, now
        self._answer_days = answer_days

    async def work(self) -> list[Removed]:
        """Remove what is due, and return and log what that was. A project where that fails is
        logged, and waits for the next look."""
        before = self._now() - self._answer_days * _DAY_S
        if answers := await asyncio.to_thread(forget_answers, self._tools.store, before):
            _log.info("answers of old calls removed", count=answers)
        found = []
        for project, rules in (await asyncio.to_thread(self._rules)).items():
            try:
                removed = await self._apply(project, rules)
            except Exception as error:  # one project must not stop another's
                _log.warning(
                    "retention waits", of=project, reason=f"{type(error).__name__}: {error}"[:300]
                )
                continue
            if removed != Removed(project):
                found.append(removed)
                _log.info(
                    "retention",
                    of=project,
                    jobs=removed.jobs,
                    runs=removed.runs,
                    stage_outputs=removed.stage_outputs,
                )
        return found

    async def _apply(self, project: str, rules: pb.Retention) -> Removed:
        due = await asyncio.to_thread(self._due, project, rules)
        runs = 0
        for row in due:
            # The row last: where this is interrupted the job is found again.
            runs += await self._remove_runs(row)
            await self._engine.forget(row)
            await asyncio.to_thread(self._remove, row.pk)
        outputs = await asyncio.to_thread(self._remove_outputs, project, rules.stage_output_days)
        return Removed(project, len(due), runs, outputs)

    async def _remove_runs(self, row: JobRow) -> int:
        peers = self._tools.peers
        request = student_pb2.RemoveRunsRequest(project=row.project, run_id_prefix=f"{row.job_id}-")
        return int((await peers.ask(peers.student.RemoveRuns, request)).run_count)

    def _rules(self) -> dict[str, pb.Retention]:
        with self._tools.store.read() as session:
            rows = session.scalars(select(ProjectRow).where(ProjectRow.retention_json != "{}"))
            return {
                row.project: json_format.Parse(row.retention_json, pb.Retention()) for row in rows
            }

    def _due(self, project: str, rules: pb.Retention) -> list[JobRow]:
        """Return the jobs whose time has come, oldest first."""
        found: list[JobRow] = []
        name = literal(names.join(project, "distillationJobs", "")) + JobRow.job_id
        is_needed = exists().where(VersionRow.job == name)  # here, so that the limit counts the due
        with self._tools.store.read() as session:
            for days, states in (
                (rules.failed_job_days, ("FAILED", "CANCELLED")),
                (rules.finished_job_days, ("SUCCEEDED",)),
            ):
                if not days:
                    continue
                query = select(JobRow).where(
                    JobRow.project == project,
                    JobRow.state.in_(states),
                    JobRow.ended < self._now() - days * _DAY_S,
                    ~is_needed,
                )
                found += session.scalars(query.order_by(JobRow.pk).limit(_AT_ONCE))
        return found

    def _remove(self, pk: int) -> None:
        with self._tools.store.write() as session:
            removal.remove(session, select(JobRow.pk).where(JobRow.pk == pk))

    def _remove_outputs(self, project: str, days: int) -> int:
        """Remove old names of stages' outputs, while no job of the project runs that may look for
        one; whatever is missing later is computed again."""
        if not days:
            return 0
        with self._tools.store.read() as session:
            running = select(JobRow.pk).where(
                JobRow.project == project, JobRow.state.not_in(jobs.FINAL)
            )
            if session.scalars(running.limit(1)).first() is not None:
                return 0
        blobs = self._tools.blobs
        old = blobs.old_refs(project, _STAGES, self._now() - days * _DAY_S)
        for name in old:
            blobs.remove_ref(project, name)
        return len(old)


def forget_answers(store: Store, before: float) -> int:
    """Delete the answers of calls that were made before a time, some at a time so that other
    writers get their turn; return how many. Blocking."""
    key = tuple_(RequestRow.project, RequestRow.request_id)
    old = select(RequestRow.project, RequestRow.request_id).where(RequestRow.created < before)
    statement = delete(RequestRow).where(key.in_(old.limit(_ANSWERS_AT_ONCE)))
    total = 0
    while True:
        with store.write() as session:
            found = session.execute(statement, execution_options={"synchronize_session": False})
        gone = int(cast("CursorResult[Any]", found).rowcount)
        total += gone
        if gone < _ANSWERS_AT_ONCE:
            return total
