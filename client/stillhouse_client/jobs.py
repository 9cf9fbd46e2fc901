"""Distillation jobs: create, estimate, watch across reconnects, review samples, cancel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.gateway.v1 import jobs_pb2_grpc

from stillhouse_client import names
from stillhouse_client.errors import (
    ClientError,
    DeadlinePassed,
    Overloaded,
    ServerAway,
    ServerFault,
    Stopped,
    from_status,
)
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

Spec = (
    pb.ConceptJobSpec
    | pb.TeacherHeadJobSpec
    | pb.LanguageJobSpec
    | pb.TuneShiftJobSpec
    | pb.PruneJobSpec
    | pb.ClassifierJobSpec
)
"""What a job is to do, one message per kind."""
FINAL = (pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED)
_WATCH_S = 600.0
_CONNECT_S = 30.0
"""A stream that breaks later than that was there before."""
_PASSING = (ServerAway, DeadlinePassed, Overloaded, Stopped, ServerFault)


class AsyncJobs:
    """What a client can do with jobs."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = jobs_pb2_grpc.DistillationServiceStub(transport.channel)

    async def create(self, spec: Spec, *, request_id: str = "") -> pb.DistillationJob:
        """Start a job; the same request id returns the job that is already there."""
        request = pb.CreateDistillationJobRequest(
            project=self._project, job=_job(spec), request_id=request_id or new_request_id()
        )
        return (await self._transport.call(self._stub.CreateDistillationJob, request)).job

    async def estimate(self, spec: Spec) -> pb.EstimateDistillationJobResponse:
        """Check a job and return what it would cost, without running it."""
        request = pb.EstimateDistillationJobRequest(project=self._project, job=_job(spec))
        return await self._transport.call(
            self._stub.EstimateDistillationJob, request, timeout_s=120.0
        )

    async def get(self, name: str) -> pb.DistillationJob:
        """Return a job. Raises NotFound."""
        request = pb.GetDistillationJobRequest(name=self.full(name))
        return (await self._transport.call(self._stub.GetDistillationJob, request)).job

    async def list(self, *, limit: int = 0) -> Sequence[pb.DistillationJob]:
        """Return the project's jobs, newest first."""

        async def fetch(token: str) -> tuple[Sequence[pb.DistillationJob], str]:
            request = pb.ListDistillationJobsRequest(
                project=self._project, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListDistillationJobs, request)
            return [*page.jobs], page.next_page_token

        return await collect(fetch, limit=limit)

    async def cancel(self, name: str) -> pb.DistillationJob:
        """Cancel a job; what it has computed stays."""
        request = pb.CancelDistillationJobRequest(name=self.full(name), request_id=new_request_id())
        return (await self._transport.call(self._stub.CancelDistillationJob, request)).job

    async def samples(
        self,
        name: str,
        *,
        state: pb.SampleState.ValueType = pb.SAMPLE_STATE_UNSPECIFIED,
        limit: int = 0,
    ) -> pb.ListJobSamplesResponse:
        """Return the samples of a tuneshift job, or the first `limit` of them, and how many are in
        each state."""
        found = pb.ListJobSamplesResponse()

        async def fetch(token: str) -> tuple[Sequence[pb.JobSample], str]:
            request = pb.ListJobSamplesRequest(
                job=self.full(name), state=state, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListJobSamples, request)
            found.state_counts.update(page.state_counts)
            return [*page.samples], page.next_page_token

        found.samples.extend(await collect(fetch, limit=limit))
        return found

    async def review(
        self,
        name: str,
        *,
        drop: Iterable[str] = (),
        keep: Iterable[str] = (),
        finish: bool = False,
        request_id: str = "",
    ) -> pb.ReviewJobSamplesResponse:
        """Drop and keep samples of a job that waits for its review, and let it go on with `finish`.

        Raises Mismatch where the job does not wait.
        """
        request = pb.ReviewJobSamplesRequest(
            job=self.full(name),
            drop_ids=drop,
            keep_ids=keep,
            finish=finish,
            request_id=request_id or new_request_id(),
        )
        return await self._transport.call(self._stub.ReviewJobSamples, request)

    async def watch(
        self, name: str, *, resume_token: str = "", give_up_s: float = 120.0
    ) -> AsyncIterator[pb.WatchDistillationJobResponse]:
        """Yield a job's events until it ends.

        A broken stream is taken up again after the last event seen; the last error is raised where
        that fails for `give_up_s`. However long a job has nothing to tell is no failure.
        """
        token, pause_s, broken_s = resume_token, 0.1, 0.0
        while True:
            began_s = time.monotonic()
            try:
                async for event in self._events(name, token):
                    token, pause_s, broken_s = event.resume_token, 0.1, 0.0
                    yield event
                    if event.job.state in FINAL:
                        return
                broken_s = 0.0
                if (await self.get(name)).state in FINAL:
                    return
            except ClientError as error:
                now_s = time.monotonic()
                if not broken_s or now_s - began_s > _CONNECT_S:
                    broken_s = now_s
                if not isinstance(error, _PASSING) or now_s - broken_s > give_up_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)

    async def _events(
        self, name: str, token: str
    ) -> AsyncIterator[pb.WatchDistillationJobResponse]:
        request = pb.WatchDistillationJobRequest(name=self.full(name), resume_token=token)
        async for event in self._transport.stream(
            self._stub.WatchDistillationJob, request, timeout_s=_WATCH_S
        ):
            yield event

    async def wait(self, name: str, *, give_up_s: float = 120.0) -> pb.DistillationJob:
        """Return the job once it SUCCEEDED. Raises the error that ended it otherwise."""
        async for _ in self.watch(name, give_up_s=give_up_s):
            pass
        return check_outcome(await self.get(name))

    def full(self, name: str) -> str:
        """Return the full name of `name`."""
        return names.full("distillationJobs", name, project=self._project)


def check_outcome(job: pb.DistillationJob) -> pb.DistillationJob:
    """Return a job that SUCCEEDED. Raises the error of a job that failed or was cancelled."""
    if job.state == pb.JOB_STATE_CANCELLED:
        raise Stopped(f"{job.name} was cancelled")
    if job.state == pb.JOB_STATE_FAILED:
        raise from_status(job.error)
    return job


def waits_for_review(job: pb.DistillationJob) -> bool:
    """Return whether a job has come to its review and waits for a person to end it."""
    if job.state != pb.JOB_STATE_RUNNING:
        return False
    unfinished = [stage.stage for stage in job.stages if not stage.complete]
    return unfinished[:1] == ["review"]


def _job(spec: Spec) -> pb.DistillationJob:
    if isinstance(spec, pb.ConceptJobSpec):
        return pb.DistillationJob(concept=spec)
    if isinstance(spec, pb.LanguageJobSpec):
        return pb.DistillationJob(language=spec)
    if isinstance(spec, pb.TuneShiftJobSpec):
        return pb.DistillationJob(tuneshift=spec)
    if isinstance(spec, pb.PruneJobSpec):
        return pb.DistillationJob(prune=spec)
    if isinstance(spec, pb.ClassifierJobSpec):
        return pb.DistillationJob(classifier=spec)
    return pb.DistillationJob(teacher_head=spec)
