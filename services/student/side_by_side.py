"""Small independent fits side by side, each in a thread of its own and on one core.

The matrices of a concept student are too small for several threads an operator: waking them takes
as long as what they do, and where a core is busy with something else the others wait for it at
every operator. Whole fits share nothing, and their bits do not depend on how many run at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

R = TypeVar("R")


Tell = Callable[[str, int, int], None]


class SideBySide:
    """Starts fits, and calls `tell(what, done, started)` when one begins, from its thread."""

    def __init__(self, pool: ThreadPoolExecutor, tell: Tell) -> None:
        self._pool, self._tell = pool, tell
        self._lock = threading.Lock()
        self._done = self._started = 0

    def start(self, what: str, fit: Callable[[], R]) -> Future[R]:
        """Run a fit as soon as a thread is free; those that were started first come first."""
        with self._lock:
            self._started += 1

        def run() -> R:
            with self._lock:
                self._tell(what, self._done, self._started)
            found = fit()
            with self._lock:
                self._done += 1
            return found

        return self._pool.submit(run)


@contextlib.contextmanager
def side_by_side(threads: int, tell: Tell) -> Iterator[SideBySide]:
    """Run fits in so many threads until the block ends; where it raises, those that have not begun
    are dropped. Whoever waits for a result gets what its fit raised."""
    pool = ThreadPoolExecutor(
        threads, thread_name_prefix="fit", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield SideBySide(pool, tell)
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


@contextlib.contextmanager
def one_core() -> Iterator[int]:
    """Let operators of this thread use one core until the block ends; yield how many they had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
