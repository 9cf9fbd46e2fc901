"""DistillationService: create, estimate, get, list, cancel and watch jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.gateway.v1 import jobs_pb2_grpc

from services.common import logs, names
from services.common.errors import Overloaded
from services.common.interceptors import Context
from services.gateway.datasets import records as datasets
from services.gateway.datasets.records import to_timestamp
from services.gateway.jobs import records
from services.gateway.jobs.checks import (
    check_concept_job,
    check_head_job,
    check_spec,
    dataset_plan,
)
from services.gateway.jobs.engine import Engine
from services.gateway.jobs.estimates import estimate_concept_job, estimate_head_job
from services.gateway.jobs.job import Tools
from services.gateway.jobs.words import asked_words, filter_words
from services.gateway.paging import page
from services.gateway.store import JobRow

_log = logs.get(__name__)


class DistillationServicer(jobs_pb2_grpc.DistillationServiceServicer):
    """The RPCs of DistillationService."""

    def __init__(self, tools: Tools, engine: Engine) -> None:
        self._tools, self._engine = tools, engine

    async def CreateDistillationJob(
        self, request: pb.CreateDistillationJobRequest, context: Context
    ) -> pb.CreateDistillationJobResponse:
        names.check_id(request.project, field="project")
        check_spec(request.project, request.job)
        await self._check(request.job)
        row, is_new = await asyncio.to_thread(records.create, self._tools.store, request)
        if is_new:
            await self._engine.enqueue(row)
        return pb.CreateDistillationJobResponse(job=await self._message(row))

    async def EstimateDistillationJob(
        self, request: pb.EstimateDistillationJobRequest, context: Context
    ) -> pb.EstimateDistillationJobResponse:
        names.check_id(request.project, field="project")
        check_spec(request.project, request.job)
        if request.job.WhichOneof("spec") == "concept":
            return await self._estimate_concept(request.project, request.job.concept)
        return await self._estimate_head(request.project, request.job.teacher_head)

    async def GetDistillationJob(
        self, request: pb.GetDistillationJobRequest, context: Context
    ) -> pb.GetDistillationJobResponse:
        row = await self._row(request.name)
        return pb.GetDistillationJobResponse(job=await self._message(row))

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
        return pb.CancelDistillationJobResponse(
            job=await self._message(await self._row(request.name))
        )

    async def WatchDistillationJob(
        self, request: pb.WatchDistillationJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchDistillationJobResponse]:
        row = await self._row(request.name)
        after = records.resume_after(request.resume_token)
        async for event in self._tools.feed.follow(row.pk, after):
            if event.state in records.FINAL:
                row = await self._row(request.name)
            yield pb.WatchDistillationJobResponse(
                resume_token=str(event.seq),
                event_time=to_timestamp(event.time),
                job=records.to_message(row, event),
                message=event.message,
            )

    async def _check(self, job: pb.DistillationJob) -> None:
        """Refuse at once what can be refused at once; a dataset still being read is checked later,
        and so is everything where a service is away."""
        spec = job.concept if job.WhichOneof("spec") == "concept" else job.teacher_head
        project, dataset_id = names.parse(spec.dataset, "datasets", field="dataset")
        row = await asyncio.to_thread(datasets.get, self._tools.store, project, dataset_id)
        if row.state == "CREATING":
            return
        plan = dataset_plan(row)
        try:
            if isinstance(spec, pb.ConceptJobSpec):
                await check_concept_job(self._tools, spec, plan, patient=False)
            else:
                await check_head_job(self._tools, spec, plan, patient=False)
        except Overloaded as error:
            _log.info("the job's check is left to the job", reason=error.message[:200])

    async def _estimate_concept(
        self, project: str, spec: pb.ConceptJobSpec
    ) -> pb.EstimateDistillationJobResponse:
        tools = self._tools
        row = await asyncio.to_thread(
            datasets.get, tools.store, *names.parse(spec.dataset, "datasets", field="dataset")
        )
        plan = await check_concept_job(tools, spec, dataset_plan(row), patient=False)
        kept = await filter_words(tools, plan, await asked_words(tools, project, spec))
        cost = await estimate_concept_job(tools, project, plan, spec.control_draws)
        return pb.EstimateDistillationJobResponse(
            item_count=cost["items"],
            cached_item_count=cost["cached"],
            duration_s=sum(cost["stage_s"].values()),
            stored_bytes=cost["stored_bytes"],
            concept_count=len(kept.kept),
        )

    async def _estimate_head(
        self, project: str, spec: pb.TeacherHeadJobSpec
    ) -> pb.EstimateDistillationJobResponse:
        tools = self._tools
        row = await asyncio.to_thread(
            datasets.get, tools.store, *names.parse(spec.dataset, "datasets", field="dataset")
        )
        dataset = dataset_plan(row)
        backbone = await check_head_job(tools, spec, dataset, patient=False)
        cost = await estimate_head_job(tools, project, dataset, backbone)
        return pb.EstimateDistillationJobResponse(
            item_count=cost["items"],
            cached_item_count=cost["cached"],
            duration_s=sum(cost["stage_s"].values()),
            stored_bytes=cost["stored_bytes"],
        )

    async def _row(self, name: str) -> JobRow:
        project, job_id = names.parse(name, "distillationJobs")
        return await asyncio.to_thread(records.get, self._tools.store, project, job_id)

    async def _message(self, row: JobRow) -> pb.DistillationJob:
        event = await asyncio.to_thread(records.last_event, self._tools.store, row.pk)
        return records.to_message(row, event)
