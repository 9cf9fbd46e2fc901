"""Does a fault to a world, and sees to it that what was hit is back afterwards."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from tests.faults.suite import processes
from tests.faults.suite.faults import FLUSH, LONG_STOP, Fault
from tests.faults.suite.world import World

STOP_S, LONG_STOP_S = 15.0, 60.0
_SWALLOW_S, _CUT_S = 8.0, 2.0
_PAUSE_S = 2.0
"""Longest time before a supervisor starts again what has died."""


@dataclass
class Injected:
    """A fault that was done."""

    fault: str
    inside: str
    """Stages that were going on at that moment."""
    back_s: float = 0.0
    """Seconds until what was hit answered again, the fault's own time included."""
    complaint: str = ""

    def told(self) -> dict[str, object]:
        """As the record keeps it."""
        return asdict(self)


async def inject(world: World, fault: Fault, inside: str) -> Injected:
    """Do it, wait until all is well again, and return what happened."""
    done = Injected(str(fault), inside)
    began_s = time.monotonic()
    try:
        deed = _DEEDS.get(fault.kind) or getattr(world, fault.kind)
        await deed(world, fault, random.Random(str(fault)))
        if fault.service in world.services and fault.kind != "lost":
            await world.ready(fault.service)
    except Exception as error:
        done.complaint = f"{type(error).__name__}: {error}"[:2000]
    done.back_s = round(time.monotonic() - began_s, 2)
    return done


async def _kill(world: World, fault: Fault, rng: random.Random) -> None:
    await world.kill(fault.service)
    await asyncio.sleep(rng.uniform(0, _PAUSE_S))
    await world.start(fault.service)


async def _term(world: World, fault: Fault, rng: random.Random) -> None:
    await world.terminate(fault.service)
    await asyncio.sleep(rng.uniform(0, _PAUSE_S))
    await world.start(fault.service)


async def _stop(world: World, fault: Fault, rng: random.Random) -> None:
    await _freeze(world, fault.service, STOP_S)


async def _long_stop(world: World, fault: Fault, rng: random.Random) -> None:
    await _freeze(world, fault.service, LONG_STOP_S)


async def _freeze(world: World, service: str, seconds: float) -> None:
    """SIGSTOP of a service and all below it, and SIGCONT."""
    found = processes.family(world.running[service].pid)
    processes.signal_all(found, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        processes.signal_all(found, signal.SIGCONT)


async def _cut(world: World, fault: Fault, rng: random.Random) -> None:
    """Reset every connection, at once and all that come for two seconds; or swallow all bytes."""
    proxy = world.proxies[fault.service]
    swallowing = rng.random() < 0.5
    (proxy.swallow if swallowing else proxy.cut)()
    try:
        await asyncio.sleep(_SWALLOW_S if swallowing else rng.uniform(0, _CUT_S))
    finally:
        proxy.heal()


async def _flush(world: World, fault: Fault, rng: random.Random) -> None:
    await world.flush()


_DEEDS: dict[str, Callable[[World, Fault, random.Random], Awaitable[None]]] = {
    "kill": _kill,
    "term": _term,
    "stop": _stop,
    LONG_STOP: _long_stop,
    "cut": _cut,
    FLUSH: _flush,
}
