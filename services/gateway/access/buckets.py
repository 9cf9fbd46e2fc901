"""Token buckets: how many calls a second, and how many at once."""

from __future__ import annotations

import time
from collections import OrderedDict

_MOST = 10_000


class Bucket:
    """Lets `rate` things a second through, and `burst` at once after a pause."""

    __slots__ = ("_burst", "_left", "_rate", "_seen_s")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, max(burst, 1.0)
        self._left, self._seen_s = self._burst, time.monotonic()

    def take(self) -> float:
        """Take one; return 0, or the seconds until there will be one, and take none."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._seen_s) * self._rate)
        self._seen_s = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Buckets:
    """A bucket by name, the least recently used dropped first: a full one is like a new one."""

    def __init__(self) -> None:
        self._by_name: OrderedDict[str, tuple[float, Bucket]] = OrderedDict()

    def take(self, name: str, rate: float) -> float:
        """Take one of a name whose rate is `rate` now; 0 is no limit."""
        if not rate:
            return 0.0
        found = self._by_name.get(name)
        if found is None or found[0] != rate:
            found = self._by_name[name] = rate, Bucket(rate, 2 * rate)
            while len(self._by_name) > _MOST:
                self._by_name.popitem(last=False)
        self._by_name.move_to_end(name)
        return found[1].take()
