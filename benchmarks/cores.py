"""Which cores a process may use: callers that share a server's cores take from what is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def hold_to(pid: int, cores: set[int]) -> None:
    """Keep all threads of a process, and those that they start, on some cores."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cores)


def halves() -> tuple[set[int], set[int]]:
    """Return the cores of this process in two parts, the same part twice where there is one core
    only: for a server and for its callers."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return set(cores[-half:]), set(cores[:-half]) or set(cores)


@contextmanager
def only_on(cores: set[int]) -> Iterator[None]:
    """Keep this thread on some cores, and processes that it starts in the block for good."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
