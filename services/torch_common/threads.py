"""Set how many threads torch computes with."""

from __future__ import annotations

import torch


def set_threads(threads: int) -> int:
    """Let an operator that this thread runs use ``threads`` threads; 0 keeps the number there is.
    Returns the number in force.

    The thread count is part of what makes two runs bit-equal, so a service sets it before its first
    forward pass. torch keeps it by thread, but a thread that never set its own takes at its first
    operator the one that any thread has set last: call this in each thread that loads or computes.
    Raises ValueError when it is negative.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 or more, got {threads}")
    # Now the thread has taken that number, and cannot do so later in place of its own.
    torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
