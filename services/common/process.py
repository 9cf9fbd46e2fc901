"""What a process sets up for itself before it imports a numerical library."""

from __future__ import annotations

import ctypes
import os

_KEEP = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
}
"""glibc's settings as a process reads them at its start, with mallopt's number and our value."""


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


def keep_memory() -> None:
    """Let the C library keep up to a gigabyte of freed memory for the next forward pass, unless the
    environment says otherwise.

    By default it gives every large activation back to the kernel, which must find, clear and map
    new pages for the next operator: at batch 16 half of an encoder's time on a virtual machine went
    there. Processes that this one starts read the same from the environment. Does nothing where the
    C library is another one. Call it before threads start.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, (number, value) in _KEEP.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            if mallopt is not None:
                mallopt(number, value)
