"""Threads for preparing items, shared fairly between projects.

A plain pool works first come, first served: a lone image would be decoded after the 500 of the call
before it. Here waiting work is handed to the threads in the order of fair shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.common.fair_slots import FairSlots
from services.common.fairness import Flow, Weights

R = TypeVar("R")


class FairPool:
    """A pool of threads. Use from one event loop."""

    def __init__(self, threads: int, weights: Weights, *, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        # One more than threads, so that none idles while the event loop is busy elsewhere.
        self._slots = FairSlots(threads + 1, weights)

    async def run(self, work: Callable[[], R], *, flow: Flow) -> R:
        """Run work in a thread and return its result. A caller that leaves before it starts takes
        it out."""
        async with self._slots.hold(flow):
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Stop the threads; what waits in them is cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)
