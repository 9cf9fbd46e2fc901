"""One round: a job in a new project, its faults, and whether all is as if nothing had happened."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from google.rpc import code_pb2
from stillhouse.gateway.v1 import jobs_pb2
from stillhouse_client.client import AsyncClient
from stillhouse_client.errors import ClientError

from tests.faults.suite import checks, jobs
from tests.faults.suite.faults import CREATE, Fault, Round
from tests.faults.suite.inject import inject
from tests.faults.suite.watch import Database, Watched
from tests.faults.suite.world import GIVE_UP_S, World

_CREATE_S = 0.15
_SHORT_S = 0.02
_ENDS_S = 900.0
"""A job that has not ended by then is lost."""
_FROZEN_S = 15.0
"""A pause of this process that long means that the whole machine stood still: nothing follows."""
_FAULT_S = 400.0
"""A fault that came late may take so long after the job's end."""
_CLEAN = ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION")
"""Codes of a failure that tells a person what to do; no fault should come to any other."""


@dataclass
class Calm:
    """An undisturbed job: what it made, and how long its stages took."""

    digest: str
    stage_s: dict[str, float]
    refs: dict[str, str]


@dataclass
class Told:
    """What came of a round."""

    text: str
    project: str
    state: str = ""
    error: str = ""
    digest: str = ""
    seconds: float = 0.0
    injected: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Faults for which the job was over too soon."""
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    wrong_digest: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Processes, files or locks that stayed, and services that did not come back."""
    ended: list[str] = field(default_factory=list)
    """Services that ended by themselves and were started again, as a supervisor does."""
    broken: bool = False
    """Whether a service did not come back: nothing more can be tried in that world."""
    void: str = ""
    """Why nothing follows from the round, such as a machine that stood still."""

    @property
    def bad(self) -> list[str]:
        """Everything that should not be."""
        return [*self.lost, *self.twice, *self.wrong_digest, *self.left]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def calm(world: World, db: Database, job: str, seed: int, project: str) -> Calm:
    """Run a job that nothing disturbs."""
    await jobs.prepare(world.address, project, job, world.blobs, _texts(world))
    async with jobs.client(world.address, project) as one:
        name = (await one.jobs.create(jobs.spec_of(one, job, seed))).name
        done = await one.jobs.wait(name, give_up_s=GIVE_UP_S)
        digest = await jobs.outcome(one, done, world.blobs)
    stage_s = {stage.stage: round(stage.elapsed_s, 3) for stage in done.stages}
    return Calm(digest, stage_s, await asyncio.to_thread(checks.refs, world.blobs, project))


@dataclass
class Game:
    """A round that is being played."""

    world: World
    db: Database
    it: Round
    wanted: Calm
    told: Told
    locks: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    """One fault at a time is done to a service."""

    async def play(self, idle: Mapping[str, int]) -> Told:
        """Run the job, disturb it, and judge what came of it."""
        world, told = self.world, self.told
        began_s = time.monotonic()
        async with _standing_still() as pauses:
            try:
                await self._whole()
            except Exception as error:  # of this program, or of a service that nothing was done to
                told.left.append(f"{type(error).__name__}: {error}"[:2000])
                told.broken = True
            told.left += await checks.left_over(world, self.db, told.project, idle)
        if max(pauses, default=0.0) > _FROZEN_S:
            told.void = f"the machine stood still for {max(pauses):.0f} s"
        told.ended, world.ended = world.ended, []
        told.seconds = round(time.monotonic() - began_s, 1)
        return told

    async def _whole(self) -> None:
        world, told = self.world, self.told
        await jobs.prepare(world.address, told.project, self.it.job, world.blobs, _texts(world))
        async with jobs.client(world.address, told.project) as one:
            name = await self._run(one)
            if name and await self._all_back():
                await self._judge(one, name)

    async def _run(self, one: AsyncClient) -> str:
        """Create the job, disturb it to its end, and return its name; empty where it has none."""
        name: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(self._disturb(fault, name)) for fault in self.it.faults]
        try:
            spec = jobs.spec_of(one, self.it.job, self.it.seed)
            made = await one.jobs.create(spec, request_id="the-job")
            name.set_result(made.name)
            await self._follow(one, made.name, tasks)
            return made.name
        except ClientError as error:
            self.told.lost.append(f"the job was not taken: {error.kind}: {error}"[:500])
            return ""
        finally:
            for task in tasks:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            self.told.left += [repr(e) for e in found if isinstance(e, Exception)]

    async def _follow(
        self, one: AsyncClient, name: str, tasks: Sequence[asyncio.Task[None]]
    ) -> None:
        watched = Watched()
        watching = asyncio.create_task(watched.follow(one, name, GIVE_UP_S))
        try:
            seen = await self.db.until_ended(name, timeout_s=_ENDS_S)
            self.told.state = seen.state
            await asyncio.wait([*tasks, watching], timeout=_FAULT_S)
        finally:
            watching.cancel()
        if not seen.ended:
            self.told.lost.append(f"after {_ENDS_S:.0f} s it is {seen}")
            return
        self.told.twice += watched.complaints()

    async def _disturb(self, fault: Fault, name: asyncio.Future[str]) -> None:
        """Do a fault in its stage, unless the job is over by then."""
        db = Database(self.world.postgres.dsn)
        try:
            await self._do(fault, name, db)
        finally:
            await db.close()

    async def _do(self, fault: Fault, name: asyncio.Future[str], db: Database) -> None:
        inside = await self._moment(fault, name, db)
        # Whoever starts all services anew does so to the gateways as well.
        async with self.locks["gateway" if fault.service == "suite" else fault.service]:
            if fault.stage != CREATE:
                inside = (await db.job(await name)).inside
            if inside == "ended":
                self.told.missed.append(str(fault))
                return
            done = await inject(self.world, fault, inside)
        self.told.injected.append(done.told())
        if done.complaint:
            self.told.left.append(f"{fault}: {done.complaint}")

    async def _moment(self, fault: Fault, name: asyncio.Future[str], db: Database) -> str:
        """Wait until it is time for a fault."""
        if fault.stage == CREATE:
            await asyncio.sleep(fault.share * _CREATE_S)
            return CREATE
        await db.until(await name, fault.stage)
        usual_s = self.wanted.stage_s.get(fault.stage, 0.0)
        await asyncio.sleep(fault.share * max(usual_s, _SHORT_S))
        return ""

    async def _all_back(self) -> bool:
        """Wait until every service answers; note which one does not."""
        try:
            await self.world.revive()
            for service in self.world.services:
                await self.world.ready(service)
        except RuntimeError as error:
            self.told.left.append(str(error)[-2000:])
            self.told.broken = True
            return False
        return True

    async def _judge(self, one: AsyncClient, name: str) -> None:
        told, wanted = self.told, self.wanted
        done = await one.jobs.get(name)
        made = 2 if self.it.job == "tuneshift" else 1
        if done.state == jobs_pb2.JOB_STATE_FAILED and self._said_full(done):
            # What it told the person to do: make room, and start the job again.
            spec = jobs.spec_of(one, self.it.job, self.it.seed)
            name, made = (await one.jobs.create(spec, request_id="again")).name, made + 1
            await self.db.until_ended(name, timeout_s=_ENDS_S)
            done = await one.jobs.get(name)
        told.twice += await checks.twice(self.db, told.project, name, made)
        if done.state == jobs_pb2.JOB_STATE_SUCCEEDED:
            told.digest = await jobs.outcome(one, done, self.world.blobs)
            if told.digest != wanted.digest:
                told.wrong_digest.append(f"{told.digest[:16]} instead of {wanted.digest[:16]}")
            refs = await asyncio.to_thread(checks.refs, self.world.blobs, told.project)
            told.twice += checks.other_bytes(refs, wanted.refs)
        elif done.state == jobs_pb2.JOB_STATE_FAILED:
            told.error = f"{code_pb2.Code.Name(done.error.code)}: {done.error.message}"
            if not told.error.startswith(_CLEAN):
                told.lost.append(f"failed without a reason that helps: {told.error}")

    def _said_full(self, done: jobs_pb2.DistillationJob) -> bool:
        self.told.error = f"{code_pb2.Code.Name(done.error.code)}: {done.error.message}"
        filled = any(fault.service == "disk" for fault in self.it.faults)
        return filled and "full" in done.error.message


async def play(
    world: World, db: Database, it: Round, project: str, wanted: Calm, idle: Mapping[str, int]
) -> Told:
    """Play a round."""
    return await Game(world, db, it, wanted, Told(str(it), project)).play(idle)


def _texts(world: World) -> Any:
    return world.catalogue.parent / "texts.jsonl"


@asynccontextmanager
async def _standing_still() -> AsyncIterator[list[float]]:
    """Note the pauses of this process while a block runs."""
    pauses: list[float] = []

    async def look() -> None:
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(1)
            pauses.append(time.monotonic() - before_s - 1)

    task = asyncio.create_task(look())
    try:
        yield pauses
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
