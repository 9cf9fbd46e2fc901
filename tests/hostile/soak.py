"""Minutes of mixed load on a real suite: `python -m tests.hostile.soak`.

Online images, embeddings by digest, predictions of a student, listings, watches and small concept
jobs run side by side. After a warm-up the memory of every process is fitted by a line over means of
half a minute: by how many per cent of its mean it grows in the time measured, with a 95 % interval.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import (
    jobs_pb2,
    jobs_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    students_pb2,
    students_pb2_grpc,
)
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from tests.e2e.suite import PROJECT, Suite, suite
from tests.hostile.watch import Reading, Watch
from tests.support import photo

_BLOCK_S = 30.0
_ENOUGH_BLOCKS = 10
"""With fewer, the interval of a slope says nothing."""
_MOST_PERCENT = 1.0
_MOST_FDS = 4
"""A pool may have opened that many connections late; one file a call or a job is far more."""
_T_95 = 2.1
"""Of Student's distribution with about 18 degrees of freedom."""


@dataclass
class Load:
    """Callers of one suite, until they are stopped; counts what they did and what went wrong."""

    running: Suite
    student: str
    digests: list[str]
    stopping: threading.Event = field(default_factory=threading.Event)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def callers(self) -> list[Callable[[int], None]]:
        """Return one turn of each kind of caller."""
        return [self.classify, self.embed, self.predict, self.listings, self.job]

    def repeat(self, turn: Callable[[int], None]) -> None:
        """Take turns until the load is stopped, each with its number."""
        for number in count():
            if self.stopping.is_set():
                return
            try:
                turn(number)
                self.done[turn.__name__] += 1
            except Exception as error:  # whatever it is, a caller must not end unseen
                self.errors.append(f"{turn.__name__}: {error!r}"[:500])

    def idle(self) -> list[str]:
        """Return the callers that have not done anything."""
        return [one.__name__ for one in self.callers() if not self.done[one.__name__]]

    def classify(self, number: int) -> None:
        """Send one new photo to the teacher."""
        with self.running.channel("teacher") as channel:
            stub = teacher_pb2_grpc.TeacherServiceStub(channel)
            items = [items_pb2.ImageInput(data=photo(number))]
            model = f"{PROJECT}/models/efficientnet-lite0"
            stub.Classify(teacher_pb2.ClassifyRequest(model=model, items=items), timeout=60)

    def embed(self, number: int) -> None:
        """Ask the gateway for embeddings by digest."""
        with self.running.channel() as channel:
            stub = models_pb2_grpc.ModelServiceStub(channel)
            items = [items_pb2.ImageInput(digest=digest) for digest in self.digests]
            encoder = f"{PROJECT}/encoders/effl2-minilm"
            request = models_pb2.EmbedProjectImagesRequest(encoder=encoder, items=items)
            stub.EmbedProjectImages(request, timeout=60)
        self.stopping.wait(0.05)

    def predict(self, number: int) -> None:
        """Ask the student for one photo."""
        with self.running.channel() as channel:
            stub = students_pb2_grpc.StudentsServiceStub(channel)
            items = [items_pb2.ImageInput(data=photo(number))]
            request = students_pb2.PredictImagesRequest(student=self.student, items=items)
            stub.PredictImages(request, timeout=60)

    def listings(self, number: int) -> None:
        """List jobs, and watch the newest one for its first event."""
        with self.running.channel() as channel:
            stub = jobs_pb2_grpc.DistillationServiceStub(channel)
            request = jobs_pb2.ListDistillationJobsRequest(project="default", page_size=20)
            found = stub.ListDistillationJobs(request, timeout=30).jobs
            watch = jobs_pb2.WatchDistillationJobRequest(name=found[0].name)
            events = stub.WatchDistillationJob(watch, timeout=30)
            next(iter(events))
            events.cancel()
        self.stopping.wait(0.05)

    def job(self, number: int) -> None:
        """Run a concept job to its end."""
        made = self.running.concept_job(seed=number + 1)
        self.running.finish(self.running.create(made), timeout_s=600)


def run(running: Suite, minutes: float, console: Console) -> tuple[Load, Watch, float]:
    """Put a suite under load for so long; return what was done and seen, and for how many seconds.
    Ctrl-C ends it early, and what was seen until then counts."""
    first = running.finish(running.create(running.prepare(24)), timeout_s=600)
    blobs = BlobStore(str(running.folder / "blobs"))
    digests = [blobs.put("default", photo(9000 + at)) for at in range(32)]
    load = Load(running, first.student_version.partition("/versions/")[0], digests)
    pids = {name: one.process.pid for name, one in running.running.items()}
    watch, start_s = Watch(pids), time.monotonic()
    threads = [threading.Thread(target=load.repeat, args=(one,)) for one in load.callers()]
    for thread in threads:
        thread.start()
    try:
        while (spent_s := time.monotonic() - start_s) < 60 * minutes:
            console.print(f"{spent_s / 60:4.1f} of {minutes:g} min: {dict(load.done)}")
            time.sleep(min(30.0, 60 * minutes - spent_s))
    except KeyboardInterrupt:
        console.print("interrupted")
    watch.close()
    load.stopping.set()
    for thread in threads:
        thread.join()
    return load, watch, time.monotonic() - start_s


def growth(readings: list[Reading], warm_s: float) -> dict[str, float]:
    """Return what the line says of the readings after the warm-up."""
    late = [one for one in readings if one.at_s >= warm_s]
    blocks: dict[int, list[float]] = {}
    for one in late:
        blocks.setdefault(int(one.at_s // _BLOCK_S), []).append(one.rss_mib)
    x = np.array(sorted(blocks), np.float64)
    y = np.array([np.mean(blocks[int(at)]) for at in x])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    left = y - y.mean() - slope * centred
    error = float(np.sqrt(left @ left / max(len(x) - 2, 1) / (centred @ centred)))
    percent = 100 * (len(x) - 1) / float(y.mean())
    return {
        "rss_mib_start": readings[0].rss_mib,
        "rss_mib_warm": float(y[0]),
        "rss_mib_end": float(y[-1]),
        "growth_percent": slope * percent,
        "plus_minus": _T_95 * error * percent,
        "fds_warm": min(one.fds for one in late if one.at_s // _BLOCK_S == x[0]),
        "fds_end": min(one.fds for one in late if one.at_s // _BLOCK_S == x[-1]),
        "threads_end": late[-1].threads,
        "blocks": len(x),
    }


def grows(found: dict[str, dict[str, float]]) -> list[str]:
    """Return a line for each process that surely grows; none where too little was measured."""
    lines = []
    for name, one in found.items():
        if one["blocks"] < _ENOUGH_BLOCKS:
            continue
        if one["growth_percent"] - one["plus_minus"] > _MOST_PERCENT:
            lines.append(f"{name}: memory by {one['growth_percent']:.1f} %")
        if one["fds_end"] - one["fds_warm"] > _MOST_FDS:
            lines.append(f"{name}: {one['fds_end'] - one['fds_warm']:.0f} more open files")
    return lines


def main() -> int:
    """Measure, print a table, then one JSON object; 1 where calls failed or something grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it is measured")
    parser.add_argument("--warm-minutes", type=float, default=4.0, help="load before that")
    parser.add_argument("--out", type=Path, help="write the JSON there too")
    plan = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, suite(Path(folder)) as running:
        load, watch, seconds = run(running, plan.warm_minutes + plan.minutes, console)
    warm_s = min(60 * plan.warm_minutes, seconds / 2)
    found = {name: growth(one, warm_s) for name, one in watch.readings.items()}
    table = Table("process", *next(iter(found.values())))
    for name, numbers in found.items():
        table.add_row(name, *(f"{one:.1f}" for one in numbers.values()))
    console.print(table)
    result = {
        "minutes": round((seconds - warm_s) / 60, 1),
        "cores": os.cpu_count(),
        "calls": dict(load.done),
        "errors": len(load.errors),
        "said": load.errors[:5],
        "idle": load.idle(),
        "grows": grows(found),
        "processes": {name: {k: round(v, 2) for k, v in n.items()} for name, n in found.items()},
    }
    if plan.out:
        plan.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 1 if load.errors or result["idle"] or result["grows"] else 0


if __name__ == "__main__":
    sys.exit(main())
