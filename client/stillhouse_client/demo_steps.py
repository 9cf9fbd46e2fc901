"""What the demos share: steps that are timed, and jobs that an earlier run may have done."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from importlib import metadata
from typing import TypeVar

from stillhouse.gateway.v1 import jobs_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.jobs import Spec, check_outcome

R = TypeVar("R")
Say = Callable[[str], None]
ShowJob = Callable[[jobs_pb2.DistillationJob], None]
_MOST_ATTEMPTS = 20
_FAILED = (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)


def request_id(story: str, *parts: str) -> str:
    """Return the request id of a step of a story: the same in every run of this version."""
    text = "/".join([metadata.version("stillhouse"), *parts])
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, story), text))


async def timed(step_s: dict[str, float], step: str, work: Awaitable[R]) -> R:
    """Await a step's work, and note its seconds in `step_s`."""
    started_s = time.monotonic()
    result = await work
    step_s[step] = round(time.monotonic() - started_s, 3)
    return result


async def run_job(
    client: AsyncClient, spec: Spec, request_id: Callable[[str], str], show: ShowJob
) -> jobs_pb2.DistillationJob:
    """Run a job, or find it done; `show` gets it whenever it has moved. One that failed in an
    earlier run is started anew: `request_id` of the number of the attempt names it.

    Raises what the job failed with.
    """
    for attempt in range(_MOST_ATTEMPTS):
        job = await client.jobs.create(spec, request_id=request_id(str(attempt)))
        if job.state not in _FAILED:
            break
    async for event in client.jobs.watch(job.name):
        show(event.job)
    return check_outcome(await client.jobs.get(job.name))
