"""What a process sets up for itself before it imports a numerical library."""

from __future__ import annotations

import os


def share_cores() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the environment says otherwise.

    Spinning threads take the cores from the other services of one machine: with two model
    processes on two cores, a forward pass was three times slower. Read by libgomp when torch loads,
    so call it before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
