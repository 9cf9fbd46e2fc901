"""Processes that a campaign starts, stops and looks for; none outlives it, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

MARK = "STILLHOUSE_FAULTS"
"""Variable in the environment of all processes of a world, by which they are found."""
_DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL")
# Done by a program of its own: with a user or a function to be called between fork and exec, the
# process would be copied with its threads' locks, and gRPC's would crash the copy.
# The kernel ends a child with the thread that made it, so one thread that stays makes them all.
_MAKER = ThreadPoolExecutor(1, "maker")


def _as(user: str | None) -> list[str]:
    if user is None:
        return []
    return ["--reuid", user, "--regid", user, "--clear-groups"]


async def spawn(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    *,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that a terminal's Ctrl-C does not reach it."""

    def start() -> subprocess.Popen[bytes]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            return subprocess.Popen(
                [*_DIE_WITH_US, *_as(user), "--", *command],
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    return await asyncio.get_running_loop().run_in_executor(_MAKER, start)


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_all(processes: Sequence[psutil.Process], number: int) -> None:
    """Send a signal to each that is still there."""
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)


def marked(mark: str) -> list[psutil.Process]:
    """All processes of this machine that belong to a world."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get(MARK) == mark and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def gone(process: subprocess.Popen[bytes], *, timeout_s: float) -> bool:
    """Wait for a process' end; return whether it came."""
    try:
        await asyncio.to_thread(process.wait, timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True
