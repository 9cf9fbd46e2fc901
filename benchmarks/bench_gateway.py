"""How many small calls one gateway answers on one core, and how it does with 1,000 queued jobs.

The gateway is a real process over SQLite, held to one core; the callers share another process on
the other cores. Its peers are away, so that every job that is created stays queued. Small calls
are measured in turn, and beside them, in the same run and on the same core, a bare grpc.aio server
that answers the same message from memory: what is left is the gateway's own work. The headline is
an equal mix of those that read the tables.

Then jobs are created, listed and watched, one stream each, and all of them are cancelled. A watch's
latency is the time from the moment that an event is written to its arrival at the watcher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from rich.console import Console
from rich.table import Table
from stillhouse.gateway.v1 import jobs_pb2, jobs_pb2_grpc

from benchmarks.cores import hold_to
from benchmarks.gateway_load import CLASSES, PROJECT, Load, Rate, Watchers, a_job
from services.gateway import students
from services.gateway.store import Store
from tests.support import Service, free_port, start_service, wait_ready

FINAL = (jobs_pb2.JOB_STATE_CANCELLED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_SUCCEEDED)


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
        queued["idle_share_of_a_core"] = await load.idle_share()
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
