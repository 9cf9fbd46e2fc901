"""Where the time of a service under load goes: py-spy on the process, by thread and by what it did.

32 callers of single JPEGs keep the service busy while py-spy samples the stacks of its threads,
with the GIL or without it. A sample counts for the innermost step of ours on its stack; what is
left of the event loop is gRPC, asyncio and the handlers themselves. py-spy counts threads that run,
not those that wait. Ends with one JSON object; `--raw FILE` keeps the stacks for a flame graph.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import grpc.aio
import serving_world as world
from bench_serving import Case, cases
from rich.console import Console
from rich.table import Table

from tests.support import service

STEPS = {
    "decode (images.py)": "services/common/images.py",
    "resize and crop (preprocess.py)": "services/torch_common/preprocess.py",
    "batch and normalise (compute.py)": "services/torch_common/compute.py",
    "forward pass (model.py, models.py)": "services/concepts/model.py",
    "forward pass (backbones.py)": "services/teacher/backbones.py",
    "queue (batching.py)": "services/common/batching.py",
    "metrics (metrics.py)": "prometheus_client",
    "handlers (servicer.py, intake.py, replies.py)": "services/",
    "gRPC and its event loop": "grpc/aio",
    "asyncio": "asyncio/",
}


async def load(
    case: Case, address: str, data: list[bytes], callers: int, until: asyncio.Event
) -> int:
    """Keep the service busy until told to stop; returns the images answered."""
    done = 0
    async with grpc.aio.insecure_channel(address) as channel:
        call = case.call(channel)
        while not until.is_set():
            done += len((await world.ask(callers, data, call)).answers)
    return done


async def sample(
    case: Case, address: str, pid: int, data: list[bytes], args: argparse.Namespace
) -> int:
    """Run py-spy for a while under load; returns images answered in about that time."""
    until = asyncio.Event()
    busy = asyncio.create_task(load(case, address, data, args.callers, until))
    await asyncio.sleep(args.warm_s)
    command = ["py-spy", "record", "--pid", str(pid), "--duration", str(args.seconds)]
    command += ["--rate", "100", "--threads", "--format", "raw", "--output", str(args.raw)]
    spy = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    _, complaint = await spy.communicate()
    until.set()
    answered = await busy
    if spy.returncode:
        raise RuntimeError(f"py-spy: {complaint.decode()[-500:]}")
    return answered


def read(raw: Path) -> tuple[Counter[str], Counter[str]]:
    """Samples by thread and by step, from py-spy's folded stacks."""
    threads: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        first, *frames = stack.split(";")
        threads[_thread(first)] += int(count)
        steps[_step(frames)] += int(count)
    return threads, steps


def _thread(name: str) -> str:
    for known in ("decode", "encoder", "model", "MainThread", "asyncio"):
        if known in name:
            return known
    return "other"


def _step(frames: list[str]) -> str:
    """The step of the innermost frame that is one of ours or of what carries it."""
    for frame in reversed(frames):
        for step, part in STEPS.items():
            if part in frame:
                return step
    return "other"


def main() -> None:
    """Profile one service, print two tables, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = ["effl2-minilm", world.VIT, "efficientnet-lite0"]
    parser.add_argument("--model", choices=every, default=every[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--warm-s", type=float, default=3.0)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--quick", action="store_true", help="5 seconds: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.images = 5, 64
    # Ended from outside, the service is still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = world.photos(args.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args.raw = args.raw or folder / "stacks.txt"
        (case,) = cases(folder, [args.model])
        with service(case.service, folder, **case.environment()) as running:
            pid = running.process.pid
            answered = asyncio.run(sample(case, running.address, pid, data, args))
        threads, steps = read(args.raw)
    report(args.model, threads, steps)
    shares = {step: round(n / steps.total(), 4) for step, n in steps.most_common()}
    found = {"model": args.model, "images": answered, "samples": steps.total()}
    print(json.dumps({**found, "shares": shares, "machine": world.machine()}))


def report(model: str, threads: Counter[str], steps: Counter[str]) -> None:
    """Print samples by thread and by step."""
    for title, counts in (("thread", threads), ("step", steps)):
        table = Table(title, "samples", "share", title=model)
        for name, count in counts.most_common():
            table.add_row(name, str(count), f"{count / counts.total():.1%}")
        Console().print(table)


if __name__ == "__main__":
    main()
