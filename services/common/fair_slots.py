"""A number of slots that projects take in turn, by their shares."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.common.fairness import FairClock, FairQueue, Flow, Weights


@dataclass(eq=False)
class _Turn:
    flow: Flow
    granted: asyncio.Future[None]
    cost: float = 1.0


class FairSlots:
    """A semaphore that is not first come, first served: whoever has held it least is next. Use from
    one event loop."""

    def __init__(self, count: int, weights: Weights) -> None:
        self._free = count
        self._clock = FairClock(weights)
        self._queue: FairQueue[_Turn] = FairQueue(self._clock)

    @asynccontextmanager
    async def hold(self, flow: Flow) -> AsyncIterator[None]:
        """Wait for a slot, and keep it while the block runs."""
        turn = _Turn(flow, asyncio.get_running_loop().create_future())
        self._queue.push(turn)
        self._grant()
        started_s = time.perf_counter()
        try:
            await turn.granted
            started_s = time.perf_counter()
            yield
        finally:
            if turn.granted.cancelled():
                self._queue.remove([turn])
            else:
                self._free += 1
                self._clock.charge({flow: 1.0}, time.perf_counter() - started_s)
                self._grant()

    def _grant(self) -> None:
        while self._free and (found := self._queue.head()):
            turn = self._queue.take(found[1])
            if not turn.granted.done():  # else its caller is just leaving
                self._clock.begin(turn.flow)
                turn.granted.set_result(None)
                self._free -= 1
