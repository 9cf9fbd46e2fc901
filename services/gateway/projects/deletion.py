"""Deletes a project: what it has is counted, removed store by store, and counted again.

Every step finds what is left and removes it, so a gateway that was killed in the middle, or another
one, goes on from the start and comes to the same end. It ends once every count is zero and has been
for a while, because a call or a stage that was under way may still store what it had; while a
service is away it waits, and says for which.
"""

from __future__ import annotations

import asyncio
import json
import time

from sqlalchemy import delete, func, select
from stillhouse.student.v1 import student_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common import logs
from services.common.blobs import BlobStore
from services.common.errors import Precondition, StillhouseError
from services.common.shelf import Shelf
from services.gateway.access.tables import ApiKeyRow, QuotaRow
from services.gateway.instances import Instances
from services.gateway.jobs import records as jobs
from services.gateway.jobs import removal
from services.gateway.jobs.engine import Engine
from services.gateway.jobs.job import Tools
from services.gateway.keeping.lease import lease
from services.gateway.projects.rows import DeletionRow, DeliveryRow, ProjectRow
from services.gateway.store import (
    DatasetRow,
    JobRow,
    RequestRow,
    StudentEventRow,
    StudentRow,
    VersionRow,
)

_STOPPED_S = 60.0
_SETTLING = "calls and stages that were under way, which may still store something"
_log = logs.get(__name__)
_BY_PROJECT = {
    "webhook deliveries": DeliveryRow,
    "datasets": DatasetRow,
    "answered requests": RequestRow,
    "API keys": ApiKeyRow,
    "quotas": QuotaRow,
    "settings": ProjectRow,
}
_OF_JOBS = select(JobRow.pk)
_OF_STUDENTS = select(StudentRow.pk)


class Deletions:
    """Carries deletions out."""

    def __init__(
        self, tools: Tools, engine: Engine, instances: Instances, *, settle_s: float = 0.0
    ) -> None:
        self._tools, self._engine, self._instances = tools, engine, instances
        self._settle_s = settle_s
        self._empty_since: dict[int, float] = {}
        """Since when a deletion has found nothing; in memory, so that a restart waits anew."""

    async def work(self) -> None:
        """Take every deletion that goes on a step further, to its end where nothing is away."""
        for row in await asyncio.to_thread(self._open):
            try:
                await self._delete(row)
            except StillhouseError as error:
                await self._wait(row, error.message)
            except Exception as error:  # one project's deletion must not stop another's
                _log.error("a deletion failed", project=row.project, exc_info=error)
                await self._wait(row, f"an error, see the gateway's log: {type(error).__name__}")

    async def _wait(self, row: DeletionRow, why: str) -> None:
        _log.warning("a deletion waits", project=row.project, why=why)
        await asyncio.to_thread(self._note, row.pk, waiting_for=why[:500])

    async def _delete(self, row: DeletionRow) -> None:
        found = await self.count(row.project)
        if row.before_json == "{}":
            await asyncio.to_thread(self._note, row.pk, before_json=json.dumps(found))
        await self._remove(row.project)
        left = await self.count(row.project)
        is_settled = self._is_settled(row.pk, found)
        why = "" if is_settled else _SETTLING
        await asyncio.to_thread(self._note, row.pk, after_json=json.dumps(left), waiting_for=why)
        if any(left.values()):  # a call that was under way has written since; the next turn gets it
            raise Precondition(f"calls that were under way: {left}")
        if is_settled:
            await asyncio.to_thread(self._note, row.pk, ended=time.time())
            del self._empty_since[row.pk]
            _log.info("project deleted", project=row.project)

    def _is_settled(self, pk: int, found: dict[str, int]) -> bool:
        now = time.monotonic()
        if any(found.values()):
            self._empty_since[pk] = now
        return now - self._empty_since.setdefault(pk, now) >= self._settle_s

    async def count(self, project: str) -> dict[str, int]:
        """Return how much of each kind there is of a project."""
        tools = self._tools
        return {
            **await asyncio.to_thread(self._count_rows, project),
            "workflows": await self._engine.count(project),
            **await asyncio.to_thread(tools.blobs.count, project),
            "cache entries": await tools.cache.forget(project, dry_run=True),
            **await self._ask_services(project, dry_run=True),
        }

    async def _remove(self, project: str) -> None:
        await self._cancel_jobs(project)
        await self._ask_services(project)
        await self._engine.forget(project=project)
        await asyncio.to_thread(self._remove_rows, project)
        await asyncio.to_thread(self._remove_blobs, project)
        await self._tools.cache.forget(project)

    async def _cancel_jobs(self, project: str) -> None:
        """Cancel what runs, here or at another gateway."""
        found = await asyncio.to_thread(jobs.unfinished, self._tools.store)
        for row in found:
            if row.project == project:
                await self._cancel(row)

    async def _cancel(self, row: JobRow) -> None:
        try:
            await asyncio.wait_for(self._engine.cancel(row), _STOPPED_S)
        except TimeoutError:
            raise Precondition(f"{jobs.name_of(row)}, which does not stop") from None

    async def _ask_services(self, project: str, *, dry_run: bool = False) -> dict[str, int]:
        """Let the services forget a project; return what they had of it."""
        peers = self._tools.peers
        runs = student_pb2.RemoveRunsRequest(project=project, dry_run=dry_run)
        student = await peers.ask(peers.student.RemoveRuns, runs)
        request = teacher_pb2.ForgetProjectRequest(project=project, dry_run=dry_run)
        models = student.model_count
        for teacher in await self._instances.teachers():
            models += (await peers.ask(teacher.ForgetProject, request)).count
        return {"training runs": student.run_count, "models in memory and cache": models}

    def _open(self) -> list[DeletionRow]:
        query = select(DeletionRow).where(DeletionRow.ended.is_(None)).order_by(DeletionRow.pk)
        with self._tools.store.read() as session:
            return list(session.scalars(query))

    def _note(self, pk: int, **values: object) -> None:
        with self._tools.store.write() as session:
            row = session.get_one(DeletionRow, pk, with_for_update=True)
            for name, value in values.items():
                setattr(row, name, value)

    def _count_rows(self, project: str) -> dict[str, int]:
        pks, students = _OF_JOBS.where(JobRow.project == project), _OF_STUDENTS
        students = students.where(StudentRow.project == project)
        queries = {
            "students": select(func.count()).where(StudentRow.project == project),
            "student versions": select(func.count()).where(VersionRow.student_pk.in_(students)),
            "student events": select(func.count()).where(StudentEventRow.student_pk.in_(students)),
            **{
                name: select(func.count()).where(kind.project == project)  # type: ignore[attr-defined]
                for name, kind in _BY_PROJECT.items()
            },
        }
        with self._tools.store.read() as session:
            counts = {name: session.scalar(query) or 0 for name, query in queries.items()}
            return removal.count(session, pks) | counts

    def _remove_rows(self, project: str) -> None:
        pks = _OF_JOBS.where(JobRow.project == project)
        students = _OF_STUDENTS.where(StudentRow.project == project)
        with self._tools.store.write() as session:
            removal.remove(session, pks)
            for child in (VersionRow, StudentEventRow):
                session.execute(delete(child).where(child.student_pk.in_(students)))
            session.execute(delete(StudentRow).where(StudentRow.project == project))
            for kind in _BY_PROJECT.values():
                session.execute(delete(kind).where(kind.project == project))  # type: ignore[attr-defined]

    def _remove_blobs(self, project: str) -> None:
        remove_blobs(self._tools.blobs, Shelf(self._tools.settings.blob_url), project)


def remove_blobs(blobs: BlobStore, shelf: Shelf, project: str) -> None:
    """Remove all that a project has in the blob store. Raises Precondition while a backup copies
    it: rows that the backup has name these blobs."""
    if any(blobs.count(project).values()):
        with lease(shelf, "the removal of a deleted project"):
            blobs.remove_project(project)
