"""What a device has shown it can do: how long passes take by size, how much it serves, how fast
calls come.

All numbers are measured while serving; times are given in, so that everything here can be tested
without waiting.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

_KEPT = 7
_STALE_S = 60.0


@dataclass
class _Bucket:
    """The last passes of about one size."""

    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    seen_s: float = 0.0

    def point(self) -> tuple[float, float]:
        """Mean size, and the lower median of the times: a first pass that also warmed up, or one
        that was held up, says nothing of the next."""
        return sum(self.sizes) / len(self.sizes), sorted(self.seconds)[(len(self.seconds) - 1) // 2]


class Pace:
    """Time of a pass by its size, in lines between measured sizes; sizes are in the unit of cost.

    Beyond the largest measured size time grows in proportion, which for passes with a fixed part is
    an upper bound; the size is then tried, and measured.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._points: list[tuple[float, float]] = []

    def observe(self, size: float, seconds: float, now_s: float) -> None:
        """Note a pass."""
        bucket = self._buckets.setdefault(math.ceil(math.log2(max(size, 1.0))), _Bucket())
        bucket.sizes.append(size)
        bucket.seconds.append(seconds)
        bucket.seen_s = now_s
        # A size that was slow once, and has been avoided since, gets another chance.
        self._buckets = {n: b for n, b in self._buckets.items() if b.seen_s > now_s - _STALE_S}
        self._points = _rising(sorted(b.point() for b in self._buckets.values()))

    def seconds(self, size: float) -> float:
        """Return the expected time of a pass; 0 where nothing has been measured."""
        below = (0.0, 0.0)
        for point in self._points:
            if size <= point[0]:
                part = (size - below[0]) / max(point[0] - below[0], 1e-9)
                return below[1] + part * (point[1] - below[1])
            below = point
        return below[1] * size / below[0] if below[0] else 0.0

    def largest(self, limit_s: float, most: float) -> float:
        """Return the largest size, at most `most`, whose pass is expected to take `limit_s` or
        less."""
        below = (0.0, 0.0)
        for point in self._points:
            if point[1] > limit_s:
                part = (limit_s - below[1]) / (point[1] - below[1])
                return min(most, below[0] + part * (point[0] - below[0]))
            below = point
        return min(most, below[0] * limit_s / below[1]) if below[1] else most


def _rising(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Times that never fall with the size, so that each time stands for one size."""
    slowest, found = 0.0, []
    for size, seconds in points:
        slowest = max(slowest, seconds)
        found.append((size, slowest))
    return found


class ServiceRate:
    """Cost served a second while more waited than one pass takes, exponentially weighted by
    time."""

    def __init__(self, memory_s: float = 5.0) -> None:
        self._memory_s = memory_s
        self._cost = self._seconds = 0.0

    def observe(self, cost: float, interval_s: float) -> None:
        """Note what was served in the time since the pass before."""
        kept = math.exp(-interval_s / self._memory_s)
        self._cost = kept * self._cost + cost
        self._seconds = kept * self._seconds + interval_s

    @property
    def per_s(self) -> float:
        """Cost a second; 0 where the queue has never been long."""
        return self._cost / self._seconds if self._seconds else 0.0


class Arrivals:
    """How far apart calls usually come: the geometric mean, so that long pauses between bursts
    count for little."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self._last_s = self._log_gap = math.inf

    def note(self, now_s: float) -> None:
        """Note a call."""
        if self._last_s < math.inf:
            log_gap = math.log(min(max(now_s - self._last_s, 1e-4), 10.0))
            known = self._log_gap if self._log_gap < math.inf else log_gap
            self._log_gap = known + self._weight * (log_gap - known)
        self._last_s = now_s

    def wait_until(self, oldest_s: float, wait_s: float) -> float:
        """Return until when waiting for more calls may fill the batch: at most `wait_s` from the
        oldest item's arrival, and not at all where calls usually come further apart."""
        gap_s = math.exp(self._log_gap)
        if gap_s > wait_s:
            return oldest_s
        # After a few gaps without a call, those who were to come have come.
        return min(oldest_s + wait_s, self._last_s + 4 * gap_s)


class MemoryLimit:
    """The largest pass that fits into memory, as far as has been seen.

    A pass that did not fit halves it. After `memory_s` seconds it is doubled, and so on: what
    filled the memory may be gone.
    """

    def __init__(self, memory_s: float = 300.0) -> None:
        self._memory_s = memory_s
        self._limit = math.inf
        self._since_s = 0.0

    def shrink(self, size: float, now_s: float) -> None:
        """Note that a pass of `size` did not fit."""
        self._limit = min(self.at(now_s), max(size / 2, 1.0))
        self._since_s = now_s

    def at(self, now_s: float) -> float:
        """Return the limit; infinite where memory has held everything."""
        doublings = min(30, int((now_s - self._since_s) // self._memory_s))
        return float(self._limit * 2**doublings)
