"""Set how many threads torch computes with, once, at a service's start."""

from __future__ import annotations

import torch


def set_threads(threads: int) -> int:
    """Let one operator use ``threads`` threads; 0 keeps torch's choice. Returns the number in
    force.

    The thread count is part of what makes two runs bit-equal, so a service sets it before its first
    forward pass. Raises ValueError when it is negative.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 or more, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
