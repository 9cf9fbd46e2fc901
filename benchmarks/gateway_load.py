"""Callers of one gateway: small calls, jobs that are created, listed, watched and cancelled."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.gateway.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    students_pb2,
    students_pb2_grpc,
)

from tests.support import Service, photo

PROJECT = "projects/default"
CLASSES = ("apple", "banana")
_PHOTOS = 12
_READING = ("GetDistillationJob", "GetDataset", "GetStudent")
Call = Callable[[], Awaitable[Any]]


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def a_job(name: str = "") -> jobs_pb2.DistillationJob:
    """Return the job that is created, or one of a name."""
    spec = jobs_pb2.TeacherHeadJobSpec(
        dataset=f"{PROJECT}/datasets/photos", backbone=f"{PROJECT}/models/efficientnet-lite0"
    )
    return jobs_pb2.DistillationJob(name=name, teacher_head=spec)


@dataclass(frozen=True)
class Rate:
    """Calls a second, and the server's processor time for one, which other work hardly changes."""

    per_s: float
    cpu_us: float


class Load:
    """Calls to one gateway, from many callers at once."""

    def __init__(
        self, service: Service, bare: tuple[str, int], callers: int, seconds: float
    ) -> None:
        self.channel = grpc.aio.insecure_channel(service.address)
        self._pid, self._bare_pid = service.process.pid, bare[1]
        self.jobs = jobs_pb2_grpc.DistillationServiceStub(self.channel)
        self._datasets = datasets_pb2_grpc.DatasetServiceStub(self.channel)
        self._students = students_pb2_grpc.StudentsServiceStub(self.channel)
        self._info = info_pb2_grpc.InfoServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self._bare = grpc.aio.insecure_channel(bare[0])
        self._callers, self._seconds = callers, seconds

    async def close(self) -> None:
        await self.channel.close()
        await self._bare.close()

    async def add_dataset(self, folder: Path) -> None:
        """Make a dataset of a few photos in two classes."""
        for at in range(_PHOTOS):
            place = folder / "photos" / CLASSES[at % 2]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{at}.jpg").write_bytes(photo(at))
        create = datasets_pb2.CreateDatasetRequest(
            project="default", dataset_id="photos", uri=f"file://{folder}/photos"
        )
        await self._datasets.CreateDataset(create, timeout=30)
        asked = datasets_pb2.GetDatasetRequest(name=f"{PROJECT}/datasets/photos")
        for _ in range(600):
            found = (await self._datasets.GetDataset(asked, timeout=30)).dataset
            if found.state == datasets_pb2.DATASET_STATE_READY:
                return
            assert found.state == datasets_pb2.DATASET_STATE_CREATING, found
            await asyncio.sleep(0.1)
        raise RuntimeError("the dataset was not ready in 60 s")

    def small_calls(self, names: Sequence[str]) -> dict[str, Call]:
        """Return the small calls by method; jobs are asked for in turn."""
        turn = itertools.cycle(names)
        dataset = datasets_pb2.GetDatasetRequest(name=f"{PROJECT}/datasets/photos")
        student = students_pb2.GetStudentRequest(name=f"{PROJECT}/students/photos")
        ask = jobs_pb2.GetDistillationJobRequest
        return {
            "GetDistillationJob": lambda: self.jobs.GetDistillationJob(
                ask(name=next(turn)), timeout=30
            ),
            "GetDataset": lambda: self._datasets.GetDataset(dataset, timeout=30),
            "GetStudent": lambda: self._students.GetStudent(student, timeout=30),
            "GetInfo": lambda: self._info.GetInfo(info_pb2.GetInfoRequest(), timeout=30),
        }

    async def rate(self, call: Call, pid: int) -> Rate:
        """Measure a call, after a moment in which caches and connections warm up."""
        await self._together(call, min(1.0, self._seconds / 4))
        before_s = cpu_s(pid)
        count, spent_s = await self._together(call, self._seconds)
        return Rate(count / spent_s, (cpu_s(pid) - before_s) / count * 1e6)

    async def idle_share(self) -> float:
        """Return the share of a core that the gateway takes while nobody calls."""
        before_s = cpu_s(self._pid)
        await asyncio.sleep(self._seconds)
        return (cpu_s(self._pid) - before_s) / self._seconds

    async def rates(self, names: Sequence[str]) -> dict[str, Rate]:
        """Measure each method, their mix, and the bare server."""
        calls = self.small_calls(names)
        found = {name: await self.rate(call, self._pid) for name, call in calls.items()}
        turn = itertools.cycle(calls[name] for name in _READING)
        found["mix"] = await self.rate(lambda: next(turn)(), self._pid)
        bare = jobs_pb2_grpc.DistillationServiceStub(self._bare)
        ask = jobs_pb2.GetDistillationJobRequest(name=names[0])
        found["bare"] = await self.rate(
            lambda: bare.GetDistillationJob(ask, timeout=30), self._bare_pid
        )
        return found

    async def _together(self, call: Call, seconds: float) -> tuple[int, float]:
        """Let all callers call until the time is up; return (calls, seconds)."""
        started_s = time.perf_counter()
        until_s = started_s + seconds

        async def caller() -> int:
            count = 0
            while time.perf_counter() < until_s:
                await call()
                count += 1
            return count

        counts = await asyncio.gather(*(caller() for _ in range(self._callers)))
        return sum(counts), time.perf_counter() - started_s

    async def create(self, count: int) -> list[str]:
        """Create jobs, as many at a time as there are callers; return their names."""
        left = iter(range(count))
        names: list[str] = []

        async def caller() -> None:
            for at in left:
                job = a_job()
                job.teacher_head.seed = at
                request = jobs_pb2.CreateDistillationJobRequest(project="default", job=job)
                reply = await self.jobs.CreateDistillationJob(request, timeout=120)
                names.append(reply.job.name)

        await asyncio.gather(*(caller() for _ in range(self._callers)))
        return names

    async def list_all(self, page_size: int = 100) -> list[jobs_pb2.DistillationJob]:
        """Return all jobs, page by page."""
        found: list[jobs_pb2.DistillationJob] = []
        request = jobs_pb2.ListDistillationJobsRequest(project="default", page_size=page_size)
        while True:
            reply = await self.jobs.ListDistillationJobs(request, timeout=60)
            found += reply.jobs
            request.page_token = reply.next_page_token
            if not reply.next_page_token:
                return found

    async def cancel(self, names: Sequence[str]) -> None:
        """Cancel jobs, as many at a time as there are callers."""
        left = iter(names)

        async def caller() -> None:
            for name in left:
                request = jobs_pb2.CancelDistillationJobRequest(name=name)
                await self.jobs.CancelDistillationJob(request, timeout=120)

        await asyncio.gather(*(caller() for _ in range(self._callers)))


class Watchers:
    """One stream for each job, and how late its events came."""

    def __init__(self, load: Load, names: Sequence[str]) -> None:
        self.latencies_ms: list[float] = []
        self._live = False
        self._waiting = len(names)
        self._all_there = asyncio.Event()
        self._tasks = [asyncio.create_task(self._watch(load, name)) for name in names]

    async def attached(self) -> None:
        """Wait until every stream has given its first event; what comes from now on is timed."""
        await asyncio.wait_for(self._all_there.wait(), 300)
        self._live = True

    async def ended(self) -> list[int]:
        """Wait until every job has ended; return their states."""
        return list(await asyncio.wait_for(asyncio.gather(*self._tasks), 300))

    async def _watch(self, load: Load, name: str) -> int:
        first, state = True, 0
        request = jobs_pb2.WatchDistillationJobRequest(name=name)
        async for event in load.jobs.WatchDistillationJob(request):
            now_s, state = time.time(), event.job.state
            if self._live:
                sent_s = event.event_time.seconds + event.event_time.nanos / 1e9
                self.latencies_ms.append((now_s - sent_s) * 1000)
            if first:
                first, self._waiting = False, self._waiting - 1
                if not self._waiting:
                    self._all_there.set()
        return state
