"""What a queue knows of its own speed: how large a pass may be, and when an answer would come."""

from __future__ import annotations

import math

from services.common.pace import MemoryLimit, Pace, ServiceRate

_CAUTION = 1.2
"""Half of all answers come later than expected."""


class Meter:
    """Measures the passes of one queue. Sizes and costs are in the queue's unit; times are given
    in seconds of one clock."""

    def __init__(self, most: float, *, max_batch_s: float = math.inf) -> None:
        self._most, self._max_batch_s = most, max_batch_s
        self.pace, self.memory = Pace(), MemoryLimit()
        self._rate = ServiceRate()
        self._ends_s = self.ended_s = 0.0
        self._backlog = False

    def room(self, now_s: float) -> float:
        """Return the largest size of the next online pass: by the setting, by the time a pass may
        take, and by what memory has held. At least 1, so that every item runs."""
        by_time = self.pace.largest(self._max_batch_s, self._most)
        return max(1.0, min(self._most, by_time, self.memory.at(now_s)))

    def begin(self, size: float, now_s: float) -> None:
        """Note that a pass starts."""
        self._ends_s = now_s + self.pace.seconds(size)

    def end(self, cost: float, *, inside: float, now_s: float) -> None:
        """Note that a turn has ended that served `cost`, and that `inside` is still to be served.

        Only turns after which more than a pass was left tell how much can be served: between
        others the device also waited for callers.
        """
        if self._backlog:
            self._rate.observe(cost, now_s - self.ended_s)
        self._ends_s = self.ended_s = now_s
        self._backlog = inside >= self.room(now_s)

    def per_s(self, now_s: float) -> float:
        """Return the cost served a second under load; 0 where nothing has been measured."""
        full = self.room(now_s)
        full_s = self.pace.seconds(full)
        return self._rate.per_s or (full / full_s if full_s else 0.0)

    def wait_s(self, ahead: float, now_s: float) -> float:
        """Return the seconds until `ahead` is served, from what has been measured: the rest of the
        pass that runs, and then passes until all is done; with some more for caution."""
        running_s = max(0.0, self._ends_s - now_s)
        last = min(ahead, self.room(now_s))
        rate = self.per_s(now_s)
        passes_s = self.pace.seconds(last) + ((ahead - last) / rate if rate else 0.0)
        return running_s + _CAUTION * passes_s
