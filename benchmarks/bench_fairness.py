"""One project's calls beside another's flood, and a service under four times the load it can bear.

The concepts service runs on real weights. First a lone project sends single photos now and then,
with the service to itself; then the same while another project floods it with calls of many photos
each. `batch_ms` is the median time of the flood's batches, as its own answers tell. The lone
project's p99 may grow by one such batch.

Then callers of single photos find the peak: as many at once as `--callers`, each sending its next
when its last is answered. Four times as many calls a second are sent after that, by a clock instead
of by answers, with a deadline each. `goodput_ratio` is what comes back in time, over the peak;
`refused` is the share of calls that were refused, `with_retry_info` the share of those that say
when to come again. Peak and overload take turns, so that a busy machine hurts both.

The service has half of the cores, the callers have the others: on a real network the work of making
calls is not the service's. With `--together` they share all cores.

    python benchmarks/bench_fairness.py [--calls 200] [--rounds 3] [--seconds 20] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pyarrow.parquet
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from stillhouse.common.v1 import info_pb2, info_pb2_grpc, items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc

from benchmarks.cores import halves, only_on
from services.common.catalogue import load_catalogue
from services.common.fetch import ensure
from services.concepts.settings import ConceptsSettings

Call = Callable[[str, Sequence[bytes], float], Awaitable[concepts_pb2.EmbedImagesResponse]]
"""Embeds photos for a project within a number of seconds."""
_PATIENT_S = 300.0


@dataclass
class Load:
    """What a phase of overload saw."""

    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return self.outcomes["OK"] / self.seconds


def photos(count: int) -> list[bytes]:
    """JPEG bytes of the first test photos of the fruit set."""
    path = ensure(load_catalogue().get("fruit"), ConceptsSettings().cache_dir)
    table = pyarrow.parquet.read_table(path, columns=["image_data", "dataset"])
    chosen = table.filter(pyarrow.compute.equal(table["dataset"], "test"))["image_data"]
    return [bytes(one.as_py()) for one in chosen[:count]]


@contextmanager
def service(max_batch_ms: float, cores: set[int]) -> Iterator[str]:
    """A concepts service on a free port and some cores; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"CONCEPTS_PORT": "0", "CONCEPTS_BLOB_URL": f"{folder}/blobs"}
        if max_batch_ms:
            given["CONCEPTS_MAX_BATCH_MS"] = str(max_batch_ms)
        with Path(folder, "log").open("w") as log, only_on(cores):
            process = subprocess.Popen(
                [sys.executable, "-m", "services.concepts"],
                env={**os.environ, **given},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        try:
            line = next((line for line in process.stdout if line.startswith("listening ")), "")
            yield line.removeprefix("listening ").strip()
        finally:
            process.terminate()
            process.wait(30)


def caller(channel: grpc.aio.Channel, encoder: str) -> Call:
    """Return how to embed photos over a channel."""
    stub = concepts_pb2_grpc.ConceptsServiceStub(channel)  # type: ignore[no-untyped-call]

    async def call(
        project: str, data: Sequence[bytes], timeout_s: float
    ) -> concepts_pb2.EmbedImagesResponse:
        request = concepts_pb2.EmbedImagesRequest(
            encoder=f"projects/{project}/encoders/{encoder}",
            items=[items_pb2.ImageInput(data=one) for one in data],
        )
        reply: concepts_pb2.EmbedImagesResponse = await stub.EmbedImages(request, timeout=timeout_s)
        return reply

    return call


@dataclass
class Lone:
    """What single calls took: as their caller sees it, and as the service tells."""

    latencies_ms: list[float] = field(default_factory=list)
    timings: list[items_pb2.Timings] = field(default_factory=list)

    def say(self, label: str) -> None:
        parts = {
            "decode": [one.preprocess_ms for one in self.timings],
            "queue": [one.queue_ms for one in self.timings],
            "compute": [one.compute_ms for one in self.timings],
        }
        told = ", ".join(f"{k} {statistics.median(v):.0f} / {p99(v):.0f}" for k, v in parts.items())
        seen = f"{statistics.median(self.latencies_ms):.0f} / {p99(self.latencies_ms):.0f}"
        print(f"lone calls, {label:8} p50 / p99 {seen} ms ({told})")


async def lone_calls(call: Call, data: Sequence[bytes], count: int, seed: int) -> Lone:
    """Single photos of one project, with random pauses between them."""
    rng, found = random.Random(seed), Lone()
    for n in range(count):
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        started_s = time.perf_counter()
        reply = await call("lone", [data[n % len(data)]], _PATIENT_S)
        found.latencies_ms.append((time.perf_counter() - started_s) * 1000)
        found.timings.append(reply.timings)
    return found


@contextmanager
def flooding(call: Call, data: Sequence[bytes], args: argparse.Namespace) -> Iterator[Counter[str]]:
    """Another project's flood while the block runs; counts photos answered and calls refused, and
    collects batch times in ms under `batch_ms`."""
    seen: Counter[str] = Counter()

    async def many() -> None:
        batch = [data[n % len(data)] for n in range(args.flood_items)]
        while True:
            try:
                await call("flood", batch, _PATIENT_S)
                seen["photos"] += len(batch)
            except grpc.aio.AioRpcError as error:
                seen[error.code().name] += 1
                await asyncio.sleep(retry_after_s(error) or 0.1)

    tasks = [asyncio.create_task(many()) for _ in range(args.flood_calls)]
    try:
        yield seen
    finally:
        for task in tasks:
            task.cancel()


async def batch_times(call: Call, data: Sequence[bytes], found: list[Any]) -> None:
    """Send single photos of the flooding project for ever; every answer tells of a batch."""
    while True:
        try:
            reply = await call("flood", [data[0]], _PATIENT_S)
            found.append(reply.timings)
        except grpc.aio.AioRpcError as error:
            await asyncio.sleep(retry_after_s(error) or 0.1)


async def closed(call: Call, data: Sequence[bytes], callers: int, seconds: float) -> Load:
    """The peak: callers of single photos that send again when answered."""
    load, until_s = Load(seconds), time.perf_counter() + seconds

    async def one(n: int) -> None:
        while time.perf_counter() < until_s:
            started_s = time.perf_counter()
            await call(f"p{n % 8}", [data[n % len(data)]], _PATIENT_S)
            if time.perf_counter() < until_s:
                load.outcomes["OK"] += 1
                load.latencies_ms.append((time.perf_counter() - started_s) * 1000)
            n += callers

    await asyncio.gather(*(one(n) for n in range(callers)))
    return load


async def opened(call: Call, data: Sequence[bytes], per_s: float, args: argparse.Namespace) -> Load:
    """Calls by the clock, each with a deadline. Those of the first seconds, in which the queue only
    fills, are not counted."""
    settle_s = args.deadline_s
    load, tasks = Load(args.seconds), []

    async def one(n: int, *, counts: bool) -> None:
        started_s = time.perf_counter()
        try:
            await call(f"p{n % 8}", [data[n % len(data)]], args.deadline_s)
            outcome = "OK"
        except grpc.aio.AioRpcError as error:
            outcome = error.code().name
            if outcome == "RESOURCE_EXHAUSTED" and retry_after_s(error):
                outcome = "RESOURCE_EXHAUSTED with RetryInfo"
        if counts:
            load.outcomes[outcome] += 1
            if outcome == "OK":
                load.latencies_ms.append((time.perf_counter() - started_s) * 1000)

    begun_s, n = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - begun_s) < settle_s + args.seconds:
        while n < passed_s * per_s:
            tasks.append(asyncio.create_task(one(n, counts=passed_s >= settle_s)))
            n += 1
        await asyncio.sleep(0.004)
    await asyncio.gather(*tasks)
    return load


def retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """Return what a refusal's RetryInfo says, 0 where it has none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return 0.0


def p99(values: Sequence[float]) -> float:
    return round(float(np.percentile(values, 99)), 1)


async def measure_flood(
    call: Call, data: Sequence[bytes], args: argparse.Namespace
) -> dict[str, Any]:
    """A lone project's latencies without and with a flood."""
    quiet = await lone_calls(call, data, args.calls, seed=1)
    timings: list[Any] = []
    with flooding(call, data, args) as seen:
        sampler = asyncio.create_task(batch_times(call, data, timings))
        await asyncio.sleep(3.0)
        started_s = time.perf_counter()
        before = seen["photos"]
        flooded = await lone_calls(call, data, args.calls, seed=1)
        flood_per_s = (seen["photos"] - before) / (time.perf_counter() - started_s)
        while not timings:
            await asyncio.sleep(0.1)
        sampler.cancel()
    batch_ms = statistics.median(one.compute_ms for one in timings)
    quiet.say("quiet")
    flooded.say("flooded")
    sizes = statistics.mean(one.batch_size for one in timings)
    print(f"flood: {flood_per_s:.1f} photos/s in batches of {sizes:.1f}, {batch_ms:.0f} ms each")
    return {
        "quiet_p50_ms": round(statistics.median(quiet.latencies_ms), 1),
        "quiet_p99_ms": p99(quiet.latencies_ms),
        "flooded_p50_ms": round(statistics.median(flooded.latencies_ms), 1),
        "flooded_p99_ms": p99(flooded.latencies_ms),
        "batch_ms": round(batch_ms, 1),
        "batch_size": round(sizes, 1),
        "flood_photos_per_s": round(flood_per_s, 1),
        "within_one_batch": p99(flooded.latencies_ms) <= p99(quiet.latencies_ms) + batch_ms,
    }


async def measure_overload(
    call: Call, data: Sequence[bytes], args: argparse.Namespace
) -> dict[str, Any]:
    """Goodput under four times the load of the peak, over the peak."""
    ratios, peaks, outcomes = [], [], Counter[str]()
    for _ in range(args.rounds):
        peak = await closed(call, data, args.callers, args.seconds)
        over = await opened(call, data, args.times * peak.per_s, args)
        ratios.append(over.per_s / peak.per_s)
        peaks.append(peak.per_s)
        outcomes += over.outcomes
        print(
            f"peak {peak.per_s:6.1f}/s (p99 {p99(peak.latencies_ms):6.0f} ms); at {args.times} "
            f"times that, in time {over.per_s:6.1f}/s (p99 {p99(over.latencies_ms):6.0f} ms); "
            f"{dict(over.outcomes)}"
        )
        await asyncio.sleep(args.deadline_s)
    told = outcomes["RESOURCE_EXHAUSTED with RetryInfo"]
    refused = told + outcomes["RESOURCE_EXHAUSTED"]
    return {
        "peak_per_s": round(statistics.median(peaks), 1),
        "goodput_ratio": round(statistics.median(ratios), 3),
        "refused": round(refused / outcomes.total(), 3),
        "with_retry_info": round(told / refused, 3) if refused else None,
        "too_late": round(outcomes["DEADLINE_EXCEEDED"] / outcomes.total(), 3),
    }


async def measure(address: str, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one service."""
    data = photos(64)
    options = [("grpc.max_send_message_length", 64 << 20)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        info = await info_pb2_grpc.InfoServiceStub(channel).GetInfo(  # type: ignore[no-untyped-call]
            info_pb2.GetInfoRequest(), timeout=60, wait_for_ready=True
        )
        args.flood_items = min(args.flood_items, info.limits.max_batch_items)
        call = caller(channel, args.encoder)
        await call("lone", data[:2], _PATIENT_S)  # loads the model
        await closed(call, data, args.callers, 3.0)
        return await measure_flood(call, data, args) | await measure_overload(call, data, args)


def main() -> None:
    """Measure, print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="effl2-minilm")
    parser.add_argument("--calls", type=int, default=200, help="lone calls, quiet and flooded each")
    parser.add_argument("--flood-calls", type=int, default=6, help="calls of the flood at a time")
    parser.add_argument("--flood-items", type=int, default=128, help="photos in each of them")
    parser.add_argument("--callers", type=int, default=32, help="callers that find the peak")
    parser.add_argument("--times", type=float, default=4.0, help="overload, over the peak")
    parser.add_argument("--deadline-s", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each peak and overload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--max-batch-ms", type=float, default=0.0, help="cap of a batch's time (the service's own)"
    )
    parser.add_argument("--together", action="store_true", help="service and callers share cores")
    parser.add_argument("--quick", action="store_true", help="a small run, to see it work")
    args = parser.parse_args()
    if args.quick:
        args.calls, args.rounds, args.seconds = 30, 1, 6.0
    # Ended from outside, the service is still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    whole = os.sched_getaffinity(0)
    served, calling = (whole, whole) if args.together else halves()
    with service(args.max_batch_ms, served) as address, only_on(calling):
        figures = asyncio.run(measure(address, args))
    figures["machine"] = {
        "cores": len(whole),
        "service_cores": len(served),
        "torch": torch.__version__,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
