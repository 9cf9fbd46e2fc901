"""Threads for preparing items, shared fairly between projects.

A plain pool works first come, first served: a lone image would be decoded after the 500 of the call
before it. Here waiting work is handed to the threads in the order of fair shares.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from services.common.fairness import FairClock, FairQueue, Flow, Weights

R = TypeVar("R")


@dataclass(eq=False)
class _Piece:
    work: Callable[[], Any]
    flow: Flow
    future: asyncio.Future[Any]
    cost: float = 1.0


class FairPool:
    """A pool of threads. Use from one event loop."""

    def __init__(self, threads: int, weights: Weights | None = None, *, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._clock = FairClock(weights)
        self._queue: FairQueue[_Piece] = FairQueue(self._clock)
        # One more than threads, so that none idles while the event loop is busy elsewhere.
        self._free = threads + 1

    async def run(self, work: Callable[[], R], *, flow: Flow) -> R:
        """Run work in a thread and return its result. A caller that leaves before it starts takes
        it out."""
        piece = _Piece(work, flow, asyncio.get_running_loop().create_future())
        self._queue.push(piece)
        self._hand_out()
        try:
            result: R = await piece.future
        finally:
            if piece.future.cancelled():
                self._queue.remove([piece])
        return result

    def close(self) -> None:
        """Stop the threads; what waits in them is cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _hand_out(self) -> None:
        while self._free and (found := self._queue.head()):
            piece = self._queue.take(found[1])
            if not piece.future.done():  # else its caller is just leaving
                self._clock.begin(piece.flow)
                self._start(piece)

    def _start(self, piece: _Piece) -> None:
        loop, started_s = asyncio.get_running_loop(), time.perf_counter()
        self._free -= 1
        running = loop.run_in_executor(self._executor, piece.work)

        def finish(done: asyncio.Future[Any]) -> None:
            self._free += 1
            self._clock.charge({piece.flow: 1.0}, time.perf_counter() - started_s)
            _pass_on(done, piece.future)
            self._hand_out()

        running.add_done_callback(finish)


def _pass_on(done: asyncio.Future[Any], to: asyncio.Future[Any]) -> None:
    error = None if done.cancelled() else done.exception()
    if to.done():
        return
    if done.cancelled():
        to.cancel()
    elif error is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
