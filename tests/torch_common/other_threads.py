"""What other threads do to the number of threads that torch computes with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_elsewhere(threads: int) -> None:
    """Let another thread set its number; a thread that has none yet takes it too."""
    other = threading.Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()


@contextmanager
def one_thread_elsewhere() -> Iterator[list[int]]:
    """Another thread has set one thread for itself. What the caller finds out it may note in the
    list; the number there was is in force again at the end."""
    before = torch.get_num_threads()
    set_elsewhere(1)
    try:
        yield []
    finally:
        torch.set_num_threads(before)
