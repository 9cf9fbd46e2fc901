"""DistillationService: create, estimate, get, list, cancel, watch and review jobs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.gateway.v1 import jobs_pb2_grpc

from services.common import logs, names
from services.common.errors import Overloaded
from services.common.interceptors import Context
from services.gateway.datasets.records import to_timestamp
from services.gateway.gathering import Crowd, Gathered
from services.gateway.jobs import records
from services.gateway.jobs.engine import Engine
from services.gateway.jobs.job import Tools
from services.gateway.jobs.kinds import check_now, estimate_now
from services.gateway.jobs.samples import Samples
from services.gateway.jobs.specs import check_spec
from services.gateway.paging import page
from services.gateway.store import JobRow

_log = logs.get(__name__)


class DistillationServicer(jobs_pb2_grpc.DistillationServiceServicer):
    """The RPCs of DistillationService."""

    def __init__(
        self,
        tools: Tools,
        engine: Engine,
        *,
        admit: records.Admit = records.admit_all,
        crowd: Crowd | None = None,
    ) -> None:
        """`admit` refuses a job that a project may not have any more; `crowd` reads together."""
        self._tools, self._engine, self._admit = tools, engine, admit
        self._samples = Samples(tools)
        self._jobs = Gathered(functools.partial(records.get_many, tools.store), crowd)

    async def CreateDistillationJob(
        self, request: pb.CreateDistillationJobRequest, context: Context
    ) -> pb.CreateDistillationJobResponse:
        names.check_id(request.project, field="project")
        check_spec(request.project, request.job, sandbox=self._tools.sandbox)
        await self._check(request.job)
        create = functools.partial(records.create, self._tools.store, request, admit=self._admit)
        row, is_new = await asyncio.to_thread(create)
        # Asked for again, it may have lost its gateway before it got into the queue.
        if is_new or row.state == "QUEUED":
            await self._engine.enqueue(row)
        return pb.CreateDistillationJobResponse(job=await self._message(records.name_of(row)))

    async def EstimateDistillationJob(
        self, request: pb.EstimateDistillationJobRequest, context: Context
    ) -> pb.EstimateDistillationJobResponse:
        names.check_id(request.project, field="project")
        check_spec(request.project, request.job, sandbox=self._tools.sandbox)
        return await estimate_now(self._tools, request.project, request.job)

    async def GetDistillationJob(
        self, request: pb.GetDistillationJobRequest, context: Context
    ) -> pb.GetDistillationJobResponse:
        return pb.GetDistillationJobResponse(job=await self._message(request.name))

    async def ListDistillationJobs(
        self, request: pb.ListDistillationJobsRequest, context: Context
    ) -> pb.ListDistillationJobsResponse:
        project = names.check_id(request.project, field="project")
        wanted = page(request.page_size, request.page_token, "jobs", project)
        rows, token = await asyncio.to_thread(records.list_page, self._tools.store, project, wanted)
        events = await asyncio.to_thread(
            records.last_events, self._tools.store, [row.pk for row in rows]
        )
        jobs = [records.to_message(row, events.get(row.pk)) for row in rows]
        return pb.ListDistillationJobsResponse(jobs=jobs, next_page_token=token)

    async def CancelDistillationJob(
        self, request: pb.CancelDistillationJobRequest, context: Context
    ) -> pb.CancelDistillationJobResponse:
        row = await self._row(request.name)
        if row.state not in records.FINAL:
            await self._engine.cancel(row)
        return pb.CancelDistillationJobResponse(job=await self._message(request.name))

    async def WatchDistillationJob(
        self, request: pb.WatchDistillationJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchDistillationJobResponse]:
        row = await self._row(request.name)
        after = records.resume_after(request.resume_token)
        async for event in self._tools.feed.follow(row.pk, after):
            if event.state in records.FINAL:
                row = await self._row(request.name)
            curve = event.curve or records.Curve({}, 0)
            yield pb.WatchDistillationJobResponse(
                resume_token=str(event.seq),
                event_time=to_timestamp(event.time),
                job=records.to_message(row, event),
                message=event.message,
                metrics=curve.metrics,
                metrics_step=curve.step,
                metrics_run=curve.run,
            )

    async def ListJobSamples(
        self, request: pb.ListJobSamplesRequest, context: Context
    ) -> pb.ListJobSamplesResponse:
        return await self._samples.list_page(await self._row(request.job, "job"), request)

    async def ReviewJobSamples(
        self, request: pb.ReviewJobSamplesRequest, context: Context
    ) -> pb.ReviewJobSamplesResponse:
        row = await self._row(request.job, "job")
        counts = await self._samples.review(row, request)
        return pb.ReviewJobSamplesResponse(state_counts=counts)

    async def _check(self, job: pb.DistillationJob) -> None:
        """Refuse at once what can be refused at once; everything that a service which is away
        decides is checked later."""
        try:
            await check_now(self._tools, job)
        except Overloaded as error:
            _log.info("the job's check is left to the job", reason=error.message[:200])

    async def _row(self, name: str, field: str = "name") -> JobRow:
        return (await self._found(name, field))[0]

    async def _message(self, name: str) -> pb.DistillationJob:
        return records.to_message(*await self._found(name, "name"))

    async def _found(self, name: str, field: str) -> tuple[JobRow, records.Event]:
        """Return a job and its newest event. Raises NotFound."""
        project, job_id = names.parse(name, "distillationJobs", field=field)
        found = await self._jobs.get((project, job_id))
        if found is None:
            raise records.missing(project, job_id)
        return found
