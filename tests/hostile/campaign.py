"""Send hostile inputs to all entry points of a real suite: `python -m tests.hostile.campaign`.

Every input follows from the seed and its number alone. What finds something is kept as a file, and
the command that sends it again is printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.hostile.inputs import Input, Source
from tests.hostile.janitor import Janitor
from tests.hostile.known_good import unanswered
from tests.hostile.sending import Outcome, Sender
from tests.hostile.tally import ENOUGH_MINUTES, Tally, logged, memory, not_flat
from tests.hostile.watch import Watch
from tests.hostile.world import World, world

_AT_ONCE = 12


@dataclass(frozen=True)
class Plan:
    """How much is sent: at least `inputs`, for at least `minutes`."""

    seed: int = 0
    inputs: int = 10_000
    minutes: float = 10.0
    deadline_s: float = 60.0
    first: int = 0


class Campaign:
    """One run over a world."""

    def __init__(self, running: World, plan: Plan, finds: Path, console: Console) -> None:
        self.world, self.plan, self.tally, self._console = running, plan, Tally(finds), console
        self.source = Source(running, plan.seed)
        self.watch = Watch(running.pids)
        self.seconds = 0.0

    def run(self) -> None:
        """Send everything; Ctrl-C ends it early, and what was seen until then counts."""
        sender, janitor = Sender(self.world, self.plan.deadline_s), Janitor(self.world)
        start_s = time.monotonic()
        try:
            with self._progress() as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
                try:
                    self._feed(pool, sender, progress)
                except KeyboardInterrupt:
                    pool.shutdown(wait=False, cancel_futures=True)
                    self._console.print("interrupted")
            janitor.close()
            self.seconds = time.monotonic() - start_s
            if not self.tally.crashes and not self._ended():
                self._look_behind(janitor)
                self._ended()
        finally:
            janitor.close()
            self.watch.close()
            sender.close()

    def _feed(self, pool: ThreadPoolExecutor, sender: Sender, progress: Progress) -> None:
        task = progress.add_task("hostile inputs", total=self.plan.inputs)
        waiting: dict[Future[Outcome], tuple[int, Input]] = {}
        for number in self._numbers():
            one = self.source.make(number)
            waiting[pool.submit(sender.send, one)] = number, one
            while len(waiting) >= _AT_ONCE:
                done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    self._judge(sender, *waiting.pop(future), future.result())
                progress.update(task, completed=min(self.tally.inputs, self.plan.inputs))
            if self._ended():
                return
        for future, (number, one) in waiting.items():
            self._judge(sender, number, one, future.result())
        progress.update(task, completed=min(self.tally.inputs, self.plan.inputs))

    def _numbers(self) -> Iterator[int]:
        until_s, number = time.monotonic() + 60 * self.plan.minutes, self.plan.first
        while number < self.plan.first + self.plan.inputs or time.monotonic() < until_s:
            yield number
            number += 1

    def _judge(self, sender: Sender, number: int, one: Input, outcome: Outcome) -> None:
        """Count an outcome. One that is late is asked for again, by itself: where the machine was
        merely busy, the second answer comes in time."""
        self.tally.add(one, outcome)
        if outcome.is_late:
            outcome = sender.send(one)
        if outcome.is_late or outcome.is_internal:
            what = "hangs" if outcome.is_late else "internal"
            self._console.print(
                self.tally.find(what, number, one, outcome.said), markup=False, soft_wrap=True
            )

    def _ended(self) -> bool:
        """Return whether a process has ended; where one has, tell which."""
        gone = [
            name for name, one in self.world.suite.running.items() if one.process.poll() is not None
        ]
        for name in gone:
            self.tally.crashes += 1
            self._console.print(
                f"crash: {name} ended with {self.world.suite.running[name].process.returncode}"
            )
        return bool(gone)

    def _look_behind(self, janitor: Janitor) -> None:
        """Count what no caller was told: services that do nothing any more, errors in logs, jobs
        and data sets that broke."""
        suite = self.world.suite
        for line in [*unanswered(suite), *janitor.broken(), *logged(suite.folder)]:
            self.tally.internal += 1
            self._console.print(f"internal: {line}", markup=False, soft_wrap=True)

    def _progress(self) -> Progress:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self._console)

    def report(self) -> dict[str, object]:
        """Return everything that was measured."""
        return {
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "seed": self.plan.seed,
            "minutes": round(self.seconds / 60, 1),
            "deadline_s": self.plan.deadline_s,
            "entry_points": self.source.points,
            **json.loads(self.tally.line()),
            "codes": dict(self.tally.codes.most_common()),
            "slowest": self.tally.slowest,
            "memory": memory(self.watch, self.seconds),
            "by_entry_point": {
                name: dict(codes) for name, codes in sorted(self.tally.by_point.items())
            },
        }


def machine() -> str:
    """Return the processor's name and how many of its cores there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def main() -> int:
    """Run a campaign; 1 where it found anything."""
    plan, out, images = _arguments()
    console = Console(stderr=True)
    with (
        tempfile.TemporaryDirectory(prefix="hostile-") as folder,
        world(Path(folder), images=images) as running,
    ):
        campaign = Campaign(running, plan, Path("hostile-finds"), console)
        campaign.run()
        found = campaign.report()
    parts = campaign_memory(found)
    for name, numbers in parts.items():
        console.print(f"{name:9}", "  ".join(f"{key} {number}" for key, number in numbers.items()))
    grown = not_flat(parts) if campaign.seconds >= 60 * ENOUGH_MINUTES else []
    for line in grown:
        console.print(f"grows: {line}")
    if out:
        out.write_text(json.dumps(found, indent=1) + "\n")
    print(campaign.tally.line())
    tally = campaign.tally
    return 1 if tally.crashes or tally.hangs or tally.internal or grown else 0


def campaign_memory(found: dict[str, object]) -> dict[str, dict[str, Any]]:
    """Return the memory part of a report."""
    part = found["memory"]
    assert isinstance(part, dict)
    return part


def _arguments() -> tuple[Plan, Path | None, int]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--inputs", type=int, default=Plan.inputs, help="at least so many")
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="at least so long")
    parser.add_argument("--deadline-s", type=float, default=Plan.deadline_s)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument(
        "--images",
        type=int,
        default=24,
        help="photos of the job that makes a student; 0 makes none",
    )
    parser.add_argument("--out", type=Path, help="file for all that was measured")
    given = parser.parse_args()
    plan = Plan(given.seed, given.inputs, given.minutes, given.deadline_s, given.first)
    return plan, given.out, given.images


if __name__ == "__main__":
    sys.exit(main())
