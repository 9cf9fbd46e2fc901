"""Memory, threads and open files of processes over time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """One look at one process; a service's children, which train, are not counted."""

    at_s: float
    rss_mib: float
    fds: int
    threads: int


@dataclass
class Watch:
    """Looks at processes now and then, in a thread, until it is closed."""

    pids: Mapping[str, int]
    every_s: float = 2.0
    readings: dict[str, list[Reading]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Take a reading of every process that lives."""
        for name, pid in self.pids.items():
            found = read(pid, time.monotonic() - self._start_s)
            if found is not None:
                self.readings.setdefault(name, []).append(found)

    def close(self) -> None:
        """Take the last readings."""
        self._over.set()
        self._thread.join()
        self.look()

    def _run(self) -> None:
        self.look()
        while not self._over.wait(self.every_s):
            self.look()


def read(pid: int, at_s: float) -> Reading | None:
    """Return a reading of a process; None where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        fds = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmRSS" not in found:
        return None
    return Reading(at_s, int(found["VmRSS"].split()[0]) / 1024, fds, int(found["Threads"]))


def mean_mib(readings: list[Reading], start_s: float, end_s: float) -> float:
    """Return the mean resident memory between two times; where nobody looked then, the nearest."""
    inside = [one.rss_mib for one in readings if start_s <= one.at_s <= end_s]
    if not inside:
        inside = [min(readings, key=lambda one: abs(one.at_s - end_s)).rss_mib]
    return sum(inside) / len(inside)
