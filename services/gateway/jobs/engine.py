"""The workflow engine: durable jobs on DBOS Transact, in the gateway's own event loop.

A job is a workflow whose id is the job's name. What is stored is JSON, never pickles. Killed at any
moment, a gateway that starts again under its executor id goes on where the last recorded stage
ended. `application_version` changes whenever the stages of a story change; a job in flight then
begins its story anew, and its stages find what they had made.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from dbos import DBOS, DBOSConfig, SetEnqueueOptions, SetWorkflowID, WorkflowStatus
from dbos._error import DBOSWorkflowConflictIDError
from dbos._serialization import DBOSPortableJSONSerializer, PortableWorkflowError
from google.rpc import status_pb2
from sqlalchemy import make_url
from stillhouse.student.v1 import student_pb2

from services.common import logs
from services.common.errors import Internal, StillhouseError, from_status
from services.gateway.jobs import observing, records
from services.gateway.jobs.fence import Superseded, claim
from services.gateway.jobs.job import Job, Tools
from services.gateway.outages import outlast
from services.gateway.store import JobRow

VERSION = "jobs-3"
"""Change it whenever the stages of a job, their order or their arguments change."""
_QUEUE = "jobs"
_POLL_S = 0.1
"""Between looks into the queue: the latest start of a job. Half of it doubles the idle load."""
_RECOVERIES = 1_000
_STOP_S = 5.0
_STOP_TRAINING_S = 20.0
_BROKEN = ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
_log = logs.get(__name__)

Story = Callable[[Job], Awaitable[dict[str, str]]]
"""Runs a job's stages and returns what it made: names and digests that the job shows."""


class Engine:
    """Runs jobs. One per process: DBOS keeps its state in the process."""

    def __init__(self, tools: Tools, stories: Mapping[str, Story]) -> None:
        self._tools, self._stories = tools, stories
        self._running: dict[str, asyncio.Task[None]] = {}

        async def workflow(project: str, job_id: str) -> None:
            try:
                await self._run(project, job_id)
            except Superseded as error:
                _log.warning("another gateway has taken the job over", job=job_id)
                raise DBOSWorkflowConflictIDError(f"{project}.{job_id}") from error

        self._workflow = DBOS.workflow(name="job", max_recovery_attempts=_RECOVERIES)(workflow)

    async def start(self) -> None:
        """Open the engine's tables, take up this gateway's unfinished jobs and listen for more."""
        settings = self._tools.settings
        config = DBOSConfig(
            name="stillhouse",
            system_database_url=system_database_url(settings.database_url),
            application_version=VERSION,
            executor_id=settings.executor_id,
            serializer=DBOSPortableJSONSerializer(),
            log_level="WARNING",
        )
        DBOS(config=config)
        DBOS.launch()
        await DBOS.register_queue_async(
            _QUEUE,
            worker_concurrency=settings.max_jobs,
            partition_worker_concurrency=min(settings.max_project_jobs, settings.max_jobs),
            polling_interval_sec=_POLL_S,
            on_conflict="always_update",
        )
        await self._settle([settings.executor_id])

    async def stop(self) -> None:
        """Interrupt the jobs that run here; they go on at the next start."""
        for task in list(self._running.values()):
            task.cancel()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=_STOP_S)
        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)

    async def enqueue(self, row: JobRow) -> None:
        """Queue a job; a job that is queued already stays as it is."""
        with SetWorkflowID(workflow_id(row)), SetEnqueueOptions(queue_partition_key=row.project):
            await DBOS.enqueue_workflow_async(_QUEUE, self._workflow, row.project, row.job_id)

    async def cancel(self, row: JobRow) -> None:
        """Stop a job: its workflow, then the training run it waits for. Safe to repeat."""
        await self._append(row, "cancelling", state="CANCELLING")
        name = workflow_id(row)
        await DBOS.cancel_workflow_async(name)
        task = self._running.get(name)
        if task is not None:
            await asyncio.wait([task], timeout=_STOP_S)
        await self._stop_training(row)
        await self._append(row, "cancelled; what was computed stays", state="CANCELLED")

    async def count(self, project: str) -> int:
        """Return how many workflows of a project are recorded."""
        return len(await self._workflows(f"{project}."))

    async def forget(self, row: JobRow | None = None, *, project: str = "") -> None:
        """Delete what is recorded of the workflow of a job that has ended, or of all of a project.
        Safe to repeat."""
        ids = [workflow_id(row)] if row else await self._workflows(f"{project}.")
        for at in range(0, len(ids), 100):
            await DBOS.delete_workflows_async(ids[at : at + 100], delete_children=True)

    async def _workflows(self, prefix: str) -> list[str]:
        found = await DBOS.list_workflows_async(
            workflow_id_prefix=prefix, load_input=False, load_output=False
        )
        return [one.workflow_id for one in found]

    async def recover(self, executor_ids: list[str]) -> None:
        """Take over the workflows of gateways that are dead; asking twice does no harm."""
        await asyncio.to_thread(DBOS._recover_pending_workflows, executor_ids)
        await self._settle(executor_ids)

    async def _settle(self, executor_ids: Sequence[str]) -> None:
        """Bring jobs to where they were going when one of these gateways, which run nothing now,
        was killed between two writes."""
        for row in await asyncio.to_thread(records.unfinished, self._tools.store):
            workflow = await DBOS.get_workflow_status_async(workflow_id(row))
            if row.state == "CANCELLING":
                await self.cancel(row)
            elif workflow is None:
                await self.enqueue(row)
            elif workflow.status in _BROKEN:
                error = Internal("the job could not be taken up again; start it anew").to_status()
                await self._append(row, f"failed: {error.message}", state="FAILED", error=error)
            elif _is_of_another_version(workflow, executor_ids):
                await self._begin_anew(row)

    async def _begin_anew(self, row: JobRow) -> None:
        """Run a job's story from its beginning: what another version has recorded of it does not
        fit this one's stages. What they have stored does, and is found."""
        _log.info("a job of another version begins anew", job=row.job_id)
        await DBOS.delete_workflow_async(workflow_id(row))
        await asyncio.to_thread(records.release, self._tools.store, row.pk)
        await self.enqueue(row)

    async def _stop_training(self, row: JobRow) -> None:
        fresh = await asyncio.to_thread(records.get, self._tools.store, row.project, row.job_id)
        run_id = json.loads(fresh.result_json).get("run_id")
        if not run_id:
            return
        peers = self._tools.peers
        request = student_pb2.StopTrainingRequest(project=row.project, run_id=run_id)
        try:
            await peers.ask(peers.student.StopTraining, request, timeout_s=_STOP_TRAINING_S)
        except StillhouseError as error:
            _log.warning("training run not stopped", run=run_id, reason=error.message)

    async def _append(self, row: JobRow, message: str, **more: Any) -> None:
        append = functools.partial(records.append, self._tools.store, row.pk, message, **more)
        event = await asyncio.to_thread(append)
        if event is not None:
            self._tools.feed.tell(row.pk, event)

    async def _run(self, project: str, job_id: str) -> None:
        """The workflow: one story from its first stage to an end that the job's row shows."""
        row, job = await self._open(project, job_id)
        task = asyncio.current_task()
        assert task is not None
        name = workflow_id(row)
        self._running[name] = task
        span = observing.begin(job)
        try:
            started = "started" if row.state == "QUEUED" else "taken up again after a restart"
            await self._say(job, started, state="RUNNING")
            made = await self._stories[job.kind](job)
        except Exception as error:
            status = _status_of(error)
            span.fail(status.message)
            is_bug = not isinstance(error, StillhouseError | PortableWorkflowError)
            _log.error("job failed", job=job.name, why=str(error), exc_info=is_bug)
            await self._say(job, f"failed: {status.message}", state="FAILED", error=status)
        else:
            await self._say(job, "finished", state="SUCCEEDED", result=made)
        finally:
            span.end()
            if self._running.get(name) is task:  # else a later run of the job is here too
                del self._running[name]

    async def _open(self, project: str, job_id: str) -> tuple[JobRow, Job]:
        def read() -> tuple[JobRow, Job]:
            row = records.get(self._tools.store, project, job_id)
            run = claim(workflow_id(row))
            records.take(self._tools.store, row.pk, run)
            return row, Job(self._tools, row, records.spec_of(row), run=run)

        return await outlast(
            lambda: asyncio.to_thread(read), give_up_s=self._tools.settings.give_up_s, what=job_id
        )

    async def _say(self, job: Job, message: str, **more: Any) -> None:
        """Add an event that must not be lost, whether or not the database is there just now."""
        await job.outlast(lambda: job.progress.say(message, **more), what=job.job_id)


def _is_of_another_version(workflow: WorkflowStatus, executor_ids: Sequence[str]) -> bool:
    """Whether a workflow waits for a version that none of us runs: nobody has begun it, or one of
    these gateways, which run nothing now, has."""
    if workflow.app_version in (None, VERSION):
        return False
    waits = workflow.status == "ENQUEUED"
    return waits or (workflow.status == "PENDING" and workflow.executor_id in executor_ids)


def workflow_id(row: JobRow) -> str:
    """Return the workflow id of a job."""
    return f"{row.project}.{row.job_id}"


def system_database_url(database_url: str) -> str:
    """Return where the engine keeps its state: the same PostgreSQL, or a file beside SQLite's.

    Two writers of one SQLite file would wait for each other.
    """
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return database_url
    path = url.database or ""
    stem = path[: -len(".db")] if path.endswith(".db") else path
    return url.set(database=f"{stem}-workflows.db").render_as_string(hide_password=False)


def _status_of(error: Exception) -> status_pb2.Status:
    """Return what the job shows; of a bug no more than that there was one."""
    if isinstance(error, PortableWorkflowError):  # a stage's recorded failure, after a restart
        status = status_pb2.Status(code=int(error.code or 13), message=error.message)
        error = from_status(status)
    if isinstance(error, StillhouseError) and not isinstance(error, Internal):
        return error.to_status()
    if isinstance(error, Internal):
        return Internal(f"a service failed: {error.message}").to_status()
    return Internal("internal error; see the gateway's log").to_status()
