"""The workbench over a tuneshift job that waits for its review: the real page and HTTP edge before
a gateway with fixed answers, since a real job would take a language model and minutes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from stillhouse.gateway.v1 import jobs_pb2 as jobs

from tests.browser.faking import workbench
from tests.client import fake_gateway
from tests.client.fake_gateway import World
from tests.client.fake_language import tuneshift_report

EVIL = "<img src=x onerror=window.pwned=1>"
COUNT = 90
_KEPT = (jobs.SAMPLE_STATE_KEPT, jobs.SAMPLE_STATE_RESTORED)


class ReviewedJobs(fake_gateway.Jobs):
    """One tuneshift job; its samples change as a person decides, and it ends with the review."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.samples = {sample.sample_id: sample for sample in map(_sample, range(COUNT))}
        self.finished = asyncio.Event()

    def job(self, done: int = 10) -> jobs.DistillationJob:
        over = self.finished.is_set()
        state = jobs.JOB_STATE_SUCCEEDED if over else jobs.JOB_STATE_RUNNING
        job = jobs.DistillationJob(name=fake_gateway.JOB, state=state)
        job.tuneshift.tuned = f"{fake_gateway.P}/models/tuned"
        job.tuneshift.target = f"{fake_gateway.P}/models/big"
        job.tuneshift.review = True
        job.stages.add(stage="rounds", done=COUNT, total=COUNT, unit="prompts", complete=True)
        job.stages.add(stage="review", complete=over)
        if over:
            job.stages.add(stage="fit", done=10, total=10, unit="steps", complete=True)
            job.model = f"{fake_gateway.P}/models/tiny"
            job.report.CopyFrom(self.world.put(json.dumps(tuneshift_report()).encode()))
        return job

    async def ListJobSamples(self, request: Any, context: Any) -> jobs.ListJobSamplesResponse:
        return jobs.ListJobSamplesResponse(samples=self.samples.values())

    async def ReviewJobSamples(self, request: Any, context: Any) -> jobs.ReviewJobSamplesResponse:
        self.world.calls.append(request)
        for one in request.drop_ids:
            self.samples[one].state = jobs.SAMPLE_STATE_DROPPED
        for one in request.keep_ids:
            self.samples[one].state = jobs.SAMPLE_STATE_RESTORED
        if request.finish:
            self.finished.set()
        return jobs.ReviewJobSamplesResponse()

    async def WatchDistillationJob(
        self, request: Any, context: Any
    ) -> AsyncIterator[jobs.WatchDistillationJobResponse]:
        yield jobs.WatchDistillationJobResponse(resume_token="1", job=self.job())
        await self.finished.wait()
        running = self.job()
        running.state = jobs.JOB_STATE_RUNNING
        for step in range(1, 11):
            points = {"loss": 3 / step, "heldout_cross_entropy": 3 - step / 10}
            yield jobs.WatchDistillationJobResponse(
                resume_token=str(step + 1), job=running, metrics=points, metrics_step=step
            )
        yield jobs.WatchDistillationJobResponse(resume_token="12", job=self.job())


def _sample(at: int) -> jobs.JobSample:
    kept = at % 3 != 0
    return jobs.JobSample(
        sample_id=f"1-{at}",
        prompt=f"{EVIL} What is on stamp {at}?" if at == 1 else f"What is on stamp {at}?",
        answer=f"A heron, number {at}. " + "It stands in the reeds of a lake. " * (at % 5),
        round=1,
        off_domain=at % 7 == 0,
        tuned_perplexity=2 + at / 50,
        base_perplexity=4 + at / 10,
        nll_gap=(at - 30) / 40,
        state=_KEPT[0] if kept else jobs.SAMPLE_STATE_FILTERED,
        reason="" if kept else "gap",
    )


@contextmanager
def reviewed_workbench() -> Iterator[tuple[str, World]]:
    """Yield the workbench's address, and what its gateway was asked."""
    with workbench(ReviewedJobs) as found:
        yield found
