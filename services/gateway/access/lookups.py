"""Rows that calls need again and again, kept in memory for some seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from services.gateway.gathering import Gathered

V = TypeVar("V")
_MOST = 10_000


class Lookups(Generic[V]):
    """Values by id: one look into a dict while fresh, else a read that others join.

    That there is nothing under an id is kept as well. Use from one event loop; `load` blocks.
    """

    def __init__(self, load: Callable[[Sequence[str]], Mapping[str, V]], *, keep_s: float) -> None:
        self._reads = Gathered(load)
        self._keep_s = keep_s
        self._known: OrderedDict[str, tuple[float, V | None]] = OrderedDict()
        self._forgotten = 0
        """How often anything was forgotten: a read that began before may not be kept."""

    async def get(self, one: str) -> V | None:
        """Return the value of an id, as it was `keep_s` ago at most. Raises what `load` raises."""
        found = self._known.get(one)
        if found is not None and found[0] > time.monotonic():
            return found[1]
        until_s, forgotten = time.monotonic() + self._keep_s, self._forgotten
        value = await self._reads.get(one)
        if forgotten != self._forgotten:
            return value
        self._known[one] = until_s, value
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return value

    def forget(self, one: str) -> None:
        """Read an id anew when it is asked for next."""
        self._forgotten += 1
        self._known.pop(one, None)

    def clear(self) -> None:
        """Read everything anew."""
        self._forgotten += 1
        self._known.clear()
