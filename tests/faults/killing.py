"""kill -9 of a service in a certain stage of a job."""

from __future__ import annotations

import time

from stillhouse.gateway.v1 import jobs_pb2

from tests.e2e.suite import Suite


def restart(running: Suite, service: str) -> None:
    """kill -9, start again, wait until it is ready."""
    running.kill(service)
    running.start(service)
    running.wait(service)


def in_stage(
    running: Suite, name: str, stage: str, *, steps: int = 0, timeout_s: float = 300
) -> bool:
    """Wait until a job has begun a stage, and done some of its steps; return whether it is still in
    it, and not past it."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        job = running.job(name)
        for one in job.stages:
            if one.stage == stage and (one.complete or one.done >= steps):
                return not one.complete
        assert job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING), job
        time.sleep(0.01)
    raise RuntimeError(f"{name} did not reach {stage}: {running.job(name)}")
