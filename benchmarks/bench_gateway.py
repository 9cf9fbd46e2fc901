"""How many small calls one gateway answers on one core, and how it does with 1,000 queued jobs.

The gateway is a real process over SQLite, held to one core; the callers share another process on
the other cores. Its peers are away, so that every job that is created stays queued. Four small
calls are measured in turn, and beside them, in the same run and on the same core, a bare grpc.aio
server that answers the same message from memory: what is left is the gateway's own work. The
headline is an equal mix of the four.

Then jobs are created, listed and watched, one stream each, and all of them are cancelled. A watch's
latency is the time from the moment that an event is written to its arrival at the watcher.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from rich.console import Console
from rich.table import Table
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.gateway.v1 import (
    datasets_pb2,
    datasets_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    students_pb2,
    students_pb2_grpc,
)

from services.gateway import students
from services.gateway.store import Store
from tests.support import Service, free_port, photo, start_service, wait_ready

PROJECT = "projects/default"
CLASSES = ("apple", "banana")
PHOTOS = 12
FINAL = (jobs_pb2.JOB_STATE_CANCELLED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_SUCCEEDED)
Call = Callable[[], Awaitable[Any]]


def hold_to(pid: int, cores: set[int]) -> None:
    """Keep all threads of a process, and those that they start, on some cores."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cores)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def gateway(folder: Path, core: int) -> Iterator[Service]:
    """Run a gateway whose peers are away, on one core, until the block ends."""
    nobody = f"127.0.0.1:{free_port()}"
    environment = {
        "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
        "GATEWAY_TEACHER_ADDRESS": nobody,
        "GATEWAY_CONCEPTS_ADDRESS": nobody,
        "GATEWAY_STUDENT_ADDRESS": nobody,
        "GATEWAY_MAX_JOBS": "1",
        "GATEWAY_LOG_LEVEL": "WARNING",
    }
    service = start_service("gateway", folder, free_port(), **environment)
    try:
        wait_ready(service.address, process=service.process)
        hold_to(service.process.pid, {core})
        yield service
    finally:
        service.process.terminate()
        service.process.wait(60)


@contextmanager
def bare_server(core: int) -> Iterator[tuple[str, int]]:
    """Run a grpc.aio server of one method on one core; yield its address and process id."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve-bare"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        hold_to(process.pid, {core})
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(10)


async def serve_bare() -> None:
    """Answer GetDistillationJob from memory until the process is ended."""

    class Bare(jobs_pb2_grpc.DistillationServiceServicer):
        async def GetDistillationJob(
            self, request: jobs_pb2.GetDistillationJobRequest, context: Any
        ) -> jobs_pb2.GetDistillationJobResponse:
            return jobs_pb2.GetDistillationJobResponse(job=a_job(request.name))

    server = grpc.aio.server()
    jobs_pb2_grpc.add_DistillationServiceServicer_to_server(Bare(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


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
        for at in range(PHOTOS):
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

    async def rates(self, names: Sequence[str]) -> dict[str, Rate]:
        """Measure each method, their mix, and the bare server."""
        calls = self.small_calls(names)
        found = {name: await self.rate(call, self._pid) for name, call in calls.items()}
        turn = itertools.cycle(calls.values())
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


async def queue_up(load: Load, count: int) -> tuple[list[str], dict[str, float]]:
    """Create and list `count` jobs; return (their names, seconds of each)."""
    started_s = time.perf_counter()
    names = await load.create(count)
    created_s = time.perf_counter()
    listed = await load.list_all()
    done_s = time.perf_counter()
    assert {job.name for job in listed} >= set(names)
    waiting = sum(job.state == jobs_pb2.JOB_STATE_QUEUED for job in listed)
    assert waiting >= len(listed) - 1, f"{waiting} of {len(listed)} jobs are queued"
    return names, {"create_s": created_s - started_s, "list_s": done_s - created_s}


async def watch_and_cancel(load: Load, names: Sequence[str]) -> dict[str, float]:
    """Watch all jobs and cancel them all; return how long it took and how late events came."""
    started_s = time.perf_counter()
    watchers = Watchers(load, names)
    await watchers.attached()
    attached_s = time.perf_counter()
    await load.cancel(names)
    states = await watchers.ended()
    ended_s = time.perf_counter()
    assert all(state in FINAL for state in states), set(states)
    late = sorted(watchers.latencies_ms)
    return {
        "attach_s": attached_s - started_s,
        "cancel_s": ended_s - attached_s,
        "events": len(late),
        "watch_p50_ms": late[len(late) // 2],
        "watch_p99_ms": late[math.ceil(len(late) * 0.99) - 1],
        "watch_max_ms": late[-1],
    }


def add_student(folder: Path) -> None:
    """Put a student into the tables, as a job's last stage does."""
    store = Store(f"sqlite:///{folder}/gateway.db")
    made = students.Made(
        job=f"{PROJECT}/distillationJobs/concept-0",
        dataset=f"{PROJECT}/datasets/photos",
        teacher=f"{PROJECT}/models/photos-teacher",
        encoder=f"{PROJECT}/encoders/effl2-minilm",
        classes=CLASSES,
        weights_digest="0" * 64,
        card_digest="1" * 64,
        report_digest="2" * 64,
        description="benchmark",
    )
    students.publish(store, "default", "photos", made)
    store.close()


async def measure(
    folder: Path, service: Service, bare: tuple[str, int], args: argparse.Namespace
) -> tuple[dict[str, Rate], dict[str, float]]:
    """Return (rates by method, figures of the jobs)."""
    load = Load(service, bare, args.callers, args.seconds)
    try:
        await load.add_dataset(folder)
        await asyncio.to_thread(add_student, folder)
        names, queued = await queue_up(load, args.jobs)
        rates = await load.rates(names)
        watched = await watch_and_cancel(load, names)
    finally:
        await load.close()
    return rates, queued | watched


def report(rates: dict[str, Rate], jobs: dict[str, float], args: argparse.Namespace) -> None:
    """Print the tables."""
    console = Console(width=100)
    table = Table(title=f"small calls, {args.callers} callers, gateway on one core")
    for column in ("call", "a second", "of the bare server", "processor time of one, us"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for name, rate in rates.items():
        share = rate.per_s / rates["bare"].per_s
        table.add_row(name, f"{rate.per_s:,.0f}", f"{share:.2f}", f"{rate.cpu_us:,.0f}")
    console.print(table)
    table = Table(title=f"{args.jobs:,} queued jobs")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in jobs.items():
        table.add_row(name, f"{value:,.2f}")
    console.print(table)


def summary(
    rates: dict[str, Rate], jobs: dict[str, float], args: argparse.Namespace
) -> dict[str, Any]:
    """Return what the last line says."""
    return {
        "rpc_per_s": round(rates["mix"].per_s, 1),
        "watch_p99_ms": round(jobs["watch_p99_ms"], 1),
        "jobs": args.jobs,
        "rpc_per_s_by_call": {name: round(rate.per_s, 1) for name, rate in rates.items()},
        "cpu_us_by_call": {name: round(rate.cpu_us) for name, rate in rates.items()},
        "jobs_figures": {name: round(value, 2) for name, value in jobs.items()},
        "callers": args.callers,
        "gateway_cores": 1,
    }


def main() -> None:
    """Measure, print tables, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each kind of call")
    parser.add_argument("--quick", action="store_true", help="100 jobs and short measurements")
    parser.add_argument("--serve-bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_bare:
        asyncio.run(serve_bare())
        return
    if args.quick:
        args.jobs, args.seconds = min(args.jobs, 100), min(args.seconds, 2.0)
    cores = sorted(os.sched_getaffinity(0))
    served, others = cores[-1], set(cores[:-1]) or set(cores)
    with (
        tempfile.TemporaryDirectory() as name,
        gateway(Path(name), served) as service,
        bare_server(served) as bare,
    ):
        os.sched_setaffinity(0, others)
        rates, jobs = asyncio.run(measure(Path(name), service, bare, args))
    report(rates, jobs, args)
    print(json.dumps(summary(rates, jobs, args)))


if __name__ == "__main__":
    main()
