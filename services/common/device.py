"""The one thread in which a device's models compute, and whose turn it is in it.

Every queue of a device asks for turns here, so that shares hold over all models: a flood of one
model does not hold up a lone call of another, and jobs yield to online calls whichever model they
use. A pass is formed only when its turn has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from services.common import callers, logs
from services.common.fairness import FairClock, FairQueue, Flow, Key, Weights

R = TypeVar("R")
_log = logs.get(__name__)


class Source(Protocol):
    """A queue whose work runs on a device."""

    def head(self) -> tuple[Key, Flow] | None:
        """Return the flow whose turn it would be; None where nothing waits."""
        ...

    async def serve(self, *, alone: bool) -> None:
        """Run one pass; `alone` says that no other queue has work. Raises nothing."""
        ...


class Device:
    """Gives turns to queues and to single pieces of work. Use from one event loop."""

    def __init__(self, executor: Executor, weights: Weights | None = None) -> None:
        self.executor = executor
        self.clock = FairClock(weights)
        self._active: list[Source] = []
        self._single = _SingleWork(self)
        self._task: asyncio.Task[None] | None = None

    def wake(self, source: Source) -> None:
        """Note that a queue has work."""
        if source not in self._active:
            self._active.append(source)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._loop(), name="device", context=callers.detached()
            )

    async def run(self, work: Callable[[], R], *, flow: Flow) -> R:
        """Run work of its own in the thread when its flow's turn comes, and return its result. A
        caller that leaves before takes its work out."""
        return await self._single.run(work, flow)

    def charge(self, costs: Mapping[Flow, float], seconds: float) -> None:
        """Charge a pass to the flows that were in it, by their costs."""
        self.clock.charge(costs, seconds)

    async def _loop(self) -> None:
        """Give turns until nothing waits; the next caller starts it again."""
        while True:
            heads = [(found, source) for source in self._active if (found := source.head())]
            self._active = [source for _, source in heads]
            if not heads:
                return
            (_, flow), source = min(heads, key=lambda pair: pair[0])
            self.clock.begin(flow)
            try:
                await source.serve(alone=len(heads) == 1)
            except Exception as error:  # a bug: the others shall go on
                _log.error("a pass went wrong", exc_info=error)
                await asyncio.sleep(0.1)


@dataclass(eq=False)
class _Piece:
    work: Callable[[], Any]
    flow: Flow
    future: asyncio.Future[Any]
    cost: float = 1.0


class _SingleWork:
    """The queue of work that no batcher forms."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._queue: FairQueue[_Piece] = FairQueue(device.clock)

    def head(self) -> tuple[Key, Flow] | None:
        return self._queue.head()

    async def run(self, work: Callable[[], R], flow: Flow) -> R:
        loop = asyncio.get_running_loop()
        piece = _Piece(work, flow, loop.create_future())
        self._queue.push(piece)
        self._device.wake(self)
        try:
            result: R = await piece.future
        finally:
            self._queue.remove([piece])
        return result

    async def serve(self, *, alone: bool) -> None:
        found = self._queue.head()
        if found is None:
            return
        piece = self._queue.take(found[1])
        if piece.future.done():  # its caller is just leaving
            return
        started_s = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            result = await loop.run_in_executor(self._device.executor, piece.work)
        except Exception as error:
            if not piece.future.done():
                piece.future.set_exception(error)
        else:
            if not piece.future.done():
                piece.future.set_result(result)
        self._device.charge({piece.flow: 1.0}, time.perf_counter() - started_s)
