"""What a process sets up for itself before it imports a numerical library."""

from __future__ import annotations

import os


def see_one_gpu(number: int) -> None:
    """Let this process see one GPU of those that it could, as `cuda:0`: libraries that take the
    first one then take the right one. Call it before CUDA is used."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else []
    os.environ["CUDA_VISIBLE_DEVICES"] = names[number] if names else str(number)


def share_cores() -> None:
    """Let idle OpenMP threads sleep soon, unless the environment says otherwise.

    Threads that spin take the cores from the other services of one machine: with two model
    processes on two cores, a forward pass was three times slower. Threads that sleep at once must
    be woken for every small operator: a training step took 2.0 s instead of 1.5 s. So they spin
    for a moment. Read by libgomp when torch loads, so call it before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
