"""An event loop whose clock jumps to the next thing that happens, and a device that computes in its
time: minutes of load are simulated in a moment, the same every time."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, TypeVar
from unittest import mock

R = TypeVar("R")


class _Selector(selectors.DefaultSelector):
    """Does not wait: moves the clock by what would have been waited."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now_s += timeout
        return ready


class VirtualDevice(Executor):
    """One thread of a device, whose work takes the time that `seconds` says."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self._seconds = seconds
        self.passes: list[int] = []

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        done: Future[R] = Future()
        result = fn(*args, **kwargs)
        size = int(args[-1]) if args else 1
        self.passes.append(size)
        asyncio.get_running_loop().call_later(self._seconds(size), done.set_result, result)
        return done


def run(work: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine in virtual time."""
    selector = _Selector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    with mock.patch.object(time, "perf_counter", loop.time):
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()
