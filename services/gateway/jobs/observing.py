"""How jobs show in logs, traces and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from services.common import callers, logs, metrics, tracing
from services.common.callers import Caller
from services.common.tracing import Span
from services.gateway.jobs import records
from services.gateway.store import Store

if TYPE_CHECKING:
    from services.gateway.jobs.job import Job

_COUNT_S = 5.0
_log = logs.get(__name__)


def begin(job: Job) -> Span:
    """Work for a job from here on, in this task and those it starts, and begin its span. However
    often a job is taken up again, and wherever, its spans meet in one trace."""
    callers.bind(Caller(request_id=uuid.uuid4().hex, job_id=job.job_id, project=job.project))
    tracing.leave()
    return tracing.begin(f"job {job.kind}", {"stillhouse.job": job.name}, seed=job.name)


@contextlib.contextmanager
def stage(kind: str, name: str) -> Iterator[None]:
    """Time a stage of a job of this kind, in a span of its own."""
    started_s, outcome = time.monotonic(), "stopped"
    caller = callers.current()
    about = {"stillhouse.job_id": caller.job_id, "stillhouse.project": caller.project}
    try:
        with tracing.span(f"stage {name}", about):
            yield
        outcome = "done"
    except Exception:
        outcome = "failed"
        raise
    finally:
        spent_s = time.monotonic() - started_s
        metrics.STAGE_SECONDS.labels(kind, name, outcome).observe(spent_s)


class Census:
    """Keeps the number of unfinished jobs in the metrics."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Count from now on, now and then."""
        self._task = asyncio.create_task(self._run(), name="job census")

    async def stop(self) -> None:
        """Stop counting."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def count(self) -> None:
        """Count now. Raises what the database raises."""
        counts = await asyncio.to_thread(records.count_unfinished, self._store)
        for state, count in counts.items():
            metrics.JOBS.labels(state).set(count)

    async def _run(self) -> None:
        while True:
            try:
                await self.count()
            except Exception as error:  # a database that is away for a moment
                _log.warning("cannot count jobs", reason=str(error)[:200])
            await asyncio.sleep(_COUNT_S)
