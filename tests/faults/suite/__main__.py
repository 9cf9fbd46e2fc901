"""Injects faults into a whole suite at work, and looks that nothing is lost: `make faults`.

Real processes: PostgreSQL, Redis, teacher, concepts, student and gateway, each behind a proxy. Jobs
run one after another, each in a new project; while one runs, several of kill -9, SIGTERM, SIGSTOP,
cut connections and FLUSHALL come at random times that the seed decides. Afterwards the job must
have succeeded with the student of an undisturbed job, or have failed with a reason that tells a
person what to do; no step may have had its effect twice, and no process, file or lock may be left.

An interrupted campaign goes on from its record. Its last line is one JSON object: `injected` counts
faults, `lost`, `twice`, `wrong_digest` and `left` count jobs.

    python -m tests.faults.suite [--seed N] [--count N] [--minutes N] [--job KIND] [--out FILE]
    python -m tests.faults.suite --replay 'concept:1:gateway.kill@fit+0.310'
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.faults.suite import table
from tests.faults.suite.campaign import Campaign, Plan
from tests.faults.suite.faults import STAGES
from tests.faults.suite.jobs import make_catalogue
from tests.faults.suite.record import Record

FOLDER = Path(".deps/faults")


def main() -> int:
    """Run a campaign; the exit status is 0 where nothing was wrong."""
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it tells of every server that is away
    given = _parse()
    plan = Plan(
        folder=given.folder.absolute(),
        seed=given.seed,
        count=given.count,
        minutes=given.minutes,
        only=given.job,
        special=given.special,
        replay=given.replay,
    )
    console = Console()
    name = "replay" if plan.replay else f"record-{plan.seed}"
    record = Record(plan.folder / f"{name}.jsonl")
    if plan.replay:
        record.forget("round")
    interrupted = False
    try:
        asyncio.run(_run(plan, record, console))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
        console.print("interrupted; the same command goes on from here")
    return report(plan, record, console, given.out) or int(interrupted)


async def _run(plan: Plan, record: Record, console: Console) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    console.print("starting PostgreSQL, Redis and four services", soft_wrap=True)
    catalogue = await make_catalogue(plan.folder / "data")
    await Campaign(plan, record, console, catalogue).run()


def report(plan: Plan, record: Record, console: Console, out: Path | None) -> int:
    """Print the tables and the figures; return the exit status."""
    rounds = list(record.valid())
    for job in STAGES:
        shown = table.outcomes(rounds, job)
        if shown.row_count:
            console.print(shown)
    found = {"seed": plan.seed, "machine": machine(), **table.summary(rounds)}
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    for line in (one["text"] for one in rounds if any(one[kind] for kind in table.BAD)):
        console.print(f"again: make faults REPLAY='{line}'", soft_wrap=True)
    print(json.dumps({name: one for name, one in found.items() if name != "matrix"}), flush=True)
    return int(any(found[kind] for kind in table.BAD))


def machine() -> dict[str, Any]:
    """What the campaign ran on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(one for one in lines if one.startswith("model name")).split(": ")[1]
    return {"cores": len(os.sched_getaffinity(0)), "processor": processor}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="decides every fault and its time")
    parser.add_argument("--count", type=int, default=200, help="faults to inject")
    parser.add_argument("--minutes", type=float, default=90, help="longest time")
    parser.add_argument("--job", default="", choices=["", *STAGES], help="this kind of job alone")
    parser.add_argument("--special", action="store_true", help="only two gateways, full disk, ...")
    parser.add_argument("--replay", default="", help="run one round again, as it was printed")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="record and worlds")
    parser.add_argument("--out", type=Path, help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
