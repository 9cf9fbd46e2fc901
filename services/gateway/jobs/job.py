"""A job as its story sees it: what it was asked for, the tools it works with, and its stages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from dbos import DBOS
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.blobs import BlobStore
from services.common.errors import OutOfSpace, is_out_of_space
from services.common.sandbox import Sandbox
from services.gateway.cache import EmbeddingCache
from services.gateway.jobs import observing, records
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.progress import Progress
from services.gateway.outages import outlast
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import JobRow, Store

_FULL = (
    "the disk of the gateway or of the blob store is full; make room and start the job again: what "
    "it has stored is found"
)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Tools:
    """What jobs work with; one of each per gateway."""

    settings: GatewaySettings
    store: Store
    blobs: BlobStore
    peers: Peers
    cache: EmbeddingCache
    feed: Feed
    item_s: dict[str, float] = field(default_factory=dict)
    """Measured seconds per image (of a language model: per token), by model digest."""
    sandbox: Sandbox | None = None
    """Runs the code of unit-test verifiers; None where this gateway runs none."""


class Job:
    """One job: its specification, and stages that are recorded so that none runs twice."""

    def __init__(
        self, tools: Tools, row: JobRow, spec: pb.DistillationJob, *, run: int = 0
    ) -> None:
        self.tools, self.run = tools, run
        self.project, self.job_id, self.pk = row.project, row.job_id, row.pk
        self.name = records.name_of(row)
        self.spec = spec
        self.kind = str(spec.WhichOneof("spec"))
        last = records.last_event(tools.store, row.pk)
        self.progress = Progress(
            tools.store, tools.feed, row.pk, [] if last is None else last.stages, run=run
        )

    async def stage(
        self,
        name: str,
        work: Callable[Concatenate[Job, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run a stage as one durable step: after a restart its recorded result is used.

        Arguments and result are JSON. A step that was interrupted runs again, so `work` looks at
        what exists already before it computes. The same where the database was away meanwhile.
        """

        async def attempt() -> R:
            await self.progress.begin(name)
            try:
                result = await work(self, *args, **kwargs)
            except Exception as error:
                if is_out_of_space(error):
                    raise OutOfSpace(_FULL) from error
                raise
            await self.progress.complete(name)
            return result

        async def step() -> R:
            with observing.stage(self.kind, name):
                return await self.outlast(attempt, what=name)

        return await DBOS.run_step_async({"name": name, "preemptible": True}, step)

    async def outlast(self, attempt: Callable[[], Awaitable[R]], *, what: str) -> R:
        """Run `attempt` again where the database was away."""
        return await outlast(attempt, give_up_s=self.tools.settings.give_up_s, what=what)

    async def note(self, **values: str) -> None:
        """Keep values beside the job, for whoever has to end it."""
        await asyncio.to_thread(
            functools.partial(records.note, self.tools.store, self.pk, run=self.run, **values)
        )


async def together(first: Awaitable[R], second: Awaitable[R]) -> tuple[R, R]:
    """Run two stages side by side; where one fails the other is stopped."""
    tasks = [asyncio.ensure_future(first), asyncio.ensure_future(second)]
    try:
        one, two = await asyncio.gather(*tasks)
        return one, two
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
