"""How long something takes on this machine: the median of several times, the first left out."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

WARMUP, TIMED = 5, 40


def median_ms(work: Callable[[], object], *, warmup: int = WARMUP, timed: int = TIMED) -> float:
    """Median milliseconds of what is done again and again, after `warmup` times that do not count.
    On a GPU `work` itself has to wait for the device."""
    return float(np.median([_timed(work) for _ in range(warmup + timed)][warmup:]))


def _timed(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1000
