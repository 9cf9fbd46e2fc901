"""What a campaign has seen so far: codes, times, finds, and memory."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.inputs import Input
from tests.hostile.sending import Outcome
from tests.hostile.watch import Watch, mean_mib

_WARM = 0.3
"""Share of the time after which caches, pools and allocators have what they keep."""
ENOUGH_MINUTES = 5
"""From this length on the warm-up is long enough to judge what follows."""
_FLAT_MIB = 64
"""What a process may hold more at the end than after the warm-up: one message of the largest size,
which the allocator may keep, or a model that a late input was the first to load. A leak of 20 KB an
input, less than the photos in them, goes past it in the 4,000 inputs or so that follow."""
_FLAT_FDS = 16
"""As many callers as there are at once, with a little to spare, may just be connected."""
_LOGGED = (
    "unexpected error",
    "Traceback",
    "Task exception was never retrieved",
    "exception calling callback",
)


@dataclass
class Tally:
    """Counts outcomes and keeps the inputs that found something in a folder."""

    finds: Path
    inputs: int = 0
    crashes: int = 0
    hangs: int = 0
    internal: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    by_point: dict[str, Counter[str]] = field(default_factory=dict)
    slowest: list[tuple[float, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, one: Input, outcome: Outcome) -> None:
        """Count an input."""
        with self._lock:
            self.inputs += 1
            self.codes[f"{one.kind} {outcome.code}"] += 1
            self.by_point.setdefault(one.label, Counter())[outcome.code] += 1
            self.slowest = sorted(
                [*self.slowest, (round(outcome.seconds, 2), one.label)], reverse=True
            )[:12]

    def find(self, what: str, number: int, one: Input, said: str) -> str:
        """Count a find, keep its input; return the line that tells of it."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)
            self.finds.mkdir(parents=True, exist_ok=True)
            path = self.finds / f"{what}-{number}.json"
            one.save(path)
        return f"{what}: {one.label}: {said}\n  python -m tests.hostile.replay {path}"

    def line(self) -> str:
        """Return what a program reads: the last line of a campaign."""
        found = {
            "inputs": self.inputs,
            "crashes": self.crashes,
            "hangs": self.hangs,
            "internal": self.internal,
        }
        return json.dumps(found)


def memory(watch: Watch, end_s: float) -> dict[str, dict[str, Any]]:
    """Return MiB of each process at the start, after warm-up (a tenth of the time around it) and at
    the end, with files and threads at warm-up and end."""
    found: dict[str, dict[str, Any]] = {}
    for name, readings in watch.readings.items():
        warm_s, slice_s = _WARM * end_s, 0.1 * end_s
        warm = min(readings, key=lambda one: abs(one.at_s - warm_s))
        last = readings[-1]
        found[name] = {
            "start_mib": round(readings[0].rss_mib, 1),
            "warm_mib": round(mean_mib(readings, warm_s, warm_s + slice_s), 1),
            "end_mib": round(mean_mib(readings, end_s - slice_s, end_s), 1),
            "peak_mib": round(max(one.rss_mib for one in readings), 1),
            "tenths_mib": [
                round(mean_mib(readings, at * slice_s, (at + 1) * slice_s)) for at in range(10)
            ],
            "warm_fds": warm.fds, "end_fds": last.fds, "warm_threads": warm.threads,
            "end_threads": last.threads,
        }  # fmt: skip
    return found


def not_flat(memory: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each process whose memory or open files grow after the warm-up."""
    found = []
    for name, one in memory.items():
        for what, most in (("mib", _FLAT_MIB), ("fds", _FLAT_FDS)):
            grown = one[f"end_{what}"] - one[f"warm_{what}"]
            if grown > most:
                found.append(f"{name}: {grown:.0f} {what} more than after the warm-up")
    return found


def logged(folder: Path) -> list[str]:
    """Return the lines of the services' logs that speak of a bug."""
    found = []
    for log in sorted(folder.glob("*.log")):
        for line in log.read_text(errors="replace").splitlines():
            if any(said in line for said in _LOGGED):
                found.append(f"{log.stem}: {_short(line)}")
    return found


def _short(line: str) -> str:
    try:
        about: dict[str, Any] = json.loads(line)
    except ValueError:
        return line[:400]
    trace = str(about.get("exception", "")).strip().splitlines()
    return f"{about.get('event')} {about.get('method', '')} {' | '.join(trace[-7:])}"[:1200]
