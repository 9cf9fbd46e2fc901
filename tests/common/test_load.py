"""The queue under load, as a whole and in virtual time: what callers get while others flood, and
what a service is worth when far more is asked than it can do."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest

from services.common.batching import Batcher
from services.common.device import Device
from services.common.errors import Overloaded, StillhouseError
from services.common.fairness import Flow
from tests.common import virtual_time

DECODE_S = 0.005


def cpu(size: int) -> float:
    """A device that computes item by item."""
    return 0.01 + 0.03 * size


def gpu(size: int) -> float:
    """A device whose passes take about the same time at every size."""
    return 0.06 + 0.003 * size


@dataclass
class World:
    """A queue before a virtual device, and what its callers saw."""

    seconds: Callable[[int], float]
    seed: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.executor = virtual_time.VirtualDevice(
            lambda size: self.seconds(size) * self.random.uniform(0.9, 1.1)
        )
        self.batcher: Batcher[int, int] = Batcher(
            lambda items, size: items, Device(self.executor), name="test", max_batch_ms=500
        )

    async def call(self, flow: Flow, items: int = 1, left_s: float | None = None) -> float:
        """One call; seconds until its answer."""
        clock = asyncio.get_running_loop()
        started_s = clock.time()
        with self.batcher.admitted(items, flow, time_left_s=left_s) as place:
            await asyncio.sleep(DECODE_S)
            await self.batcher.submit(list(range(items)), place=place)
        return clock.time() - started_s

    async def flood(self, flow: Flow, items: int, calls: int) -> list[asyncio.Task[None]]:
        """Calls of a project that never stops, and heeds what refusals say."""

        async def again() -> None:
            while True:
                try:
                    await self.call(flow, items)
                    self.seen[flow.project] += items
                except Overloaded as error:
                    await asyncio.sleep(error.retry_after_s)

        return [asyncio.create_task(again()) for _ in range(calls)]

    async def lone(self, count: int) -> list[float]:
        """Single calls of a project, now and then."""
        found = []
        for _ in range(count):
            await asyncio.sleep(self.random.uniform(0, 1.0))
            found.append(await self.call(Flow("lone")))
        return found

    async def closed(self, seconds: float, callers: int = 32) -> float:
        """Calls a second of callers that send again when answered."""
        clock = asyncio.get_running_loop()
        until_s, done = clock.time() + seconds, 0

        async def again(n: int) -> None:
            nonlocal done
            while clock.time() < until_s:
                await self.call(Flow(f"p{n % 4}"))
                done += clock.time() < until_s

        await asyncio.gather(*(again(n) for n in range(callers)))
        return done / seconds

    async def opened(self, per_s: float, seconds: float, deadline_s: float) -> Counter[str]:
        """Outcomes of calls by the clock, after a while in which the queue fills."""
        outcomes: Counter[str] = Counter()

        async def one(n: int, *, counts: bool) -> None:
            try:
                async with asyncio.timeout(deadline_s):
                    await self.call(Flow(f"p{n % 4}"), left_s=deadline_s)
                outcome = "OK"
            except TimeoutError:
                outcome = "LATE"
            except StillhouseError as error:
                outcome = error.reason
            outcomes[outcome] += counts

        tasks = []
        for n in range(int((seconds + deadline_s) * per_s)):
            await asyncio.sleep(1 / per_s)
            tasks.append(asyncio.create_task(one(n, counts=n >= deadline_s * per_s)))
        await asyncio.gather(*tasks)
        return outcomes


async def end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("seconds", [cpu, gpu])
@pytest.mark.parametrize("flow", [Flow("flood"), Flow("flood", shard=True)])
def test_a_flood_costs_others_one_batch_at_most(
    seconds: Callable[[int], float], flow: Flow
) -> None:
    async def main() -> None:
        world = World(seconds)
        await world.lone(5)
        quiet = await world.lone(120)
        flood = await world.flood(flow, items=128, calls=6)
        await asyncio.sleep(2)
        world.executor.passes.clear()
        flooded = await world.lone(120)
        batch = int(np.median([size for size in world.executor.passes if size > 1]))
        await end(flood)
        allowed_s = np.percentile(quiet, 99) + 1.1 * seconds(batch)
        assert np.percentile(flooded, 99) <= allowed_s
        assert np.median(flooded) < np.median(quiet) + 0.6 * seconds(batch)

    virtual_time.run(main())


@pytest.mark.parametrize("seconds", [cpu, gpu])
def test_a_flood_is_served_at_full_speed_beside_lone_calls(
    seconds: Callable[[int], float],
) -> None:
    async def main() -> None:
        world = World(seconds)
        clock = asyncio.get_running_loop()
        flood = await world.flood(Flow("flood"), items=128, calls=6)
        rates = []
        for lone in (0, 30):
            await asyncio.sleep(10)
            before, begun_s = world.seen["flood"], clock.time()
            await (world.lone(lone) if lone else asyncio.sleep(30))
            rates.append((world.seen["flood"] - before) / (clock.time() - begun_s))
        await end(flood)
        alone, beside = rates
        assert beside > 0.85 * alone

    virtual_time.run(main())


@pytest.mark.parametrize("deadline_s", [1.0, 3.0])
@pytest.mark.parametrize("seconds", [cpu, gpu])
def test_goodput_holds_under_four_times_the_load(
    seconds: Callable[[int], float], deadline_s: float
) -> None:
    async def main() -> None:
        world = World(seconds)
        await world.closed(3)
        peak = await world.closed(10)
        outcomes = await world.opened(4 * peak, 10, deadline_s)
        assert outcomes["OK"] / 10 >= 0.95 * peak
        assert outcomes["LATE"] <= 0.01 * outcomes.total()
        assert set(outcomes) <= {"OK", "LATE", "OVERLOADED", "QUOTA_REACHED", "NOT_IN_TIME"}

    virtual_time.run(main())
