"""Turns between queues and single pieces of work on one device."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from services.common.batching import Batcher
from services.common.device import Device
from services.common.fair_pool import FairPool
from services.common.fairness import Flow, Weights

A, B, JOB = Flow("a"), Flow("b"), Flow("a", shard=True)


async def held(device: Device) -> threading.Event:
    """Keep the thread busy until the event is set."""
    gate, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait(10)

    task = asyncio.create_task(device.run(wait, flow=Flow()))
    await asyncio.to_thread(begun.wait, 10)
    gate.task = task  # type: ignore[attr-defined]
    return gate


async def test_jobs_of_one_model_yield_to_calls_of_another() -> None:
    order: list[str] = []

    def recorder(name: str) -> Any:
        return lambda items, size: order.append(name) or items

    with ThreadPoolExecutor(1) as executor:
        device = Device(executor)
        one: Batcher[int, int] = Batcher(recorder("job"), device, name="one", shard_batch=2)
        other: Batcher[int, int] = Batcher(recorder("online"), device, name="other")
        gate = await held(device)
        job = asyncio.create_task(one.submit(list(range(6)), flow=JOB))
        await asyncio.sleep(0)
        calls = [asyncio.create_task(other.submit([n], flow=B)) for n in range(2)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(job, *calls)
    assert order == ["online", "job", "job", "job"]


async def test_single_work_runs_in_turn_and_may_be_left() -> None:
    order: list[str] = []
    with ThreadPoolExecutor(1) as executor:
        device = Device(executor)
        gate = await held(device)
        names = {"job": JOB, "a1": A, "a2": A, "left": A, "b": B}
        tasks = {
            name: asyncio.create_task(device.run(lambda n=name: order.append(n), flow=flow))  # type: ignore[misc]
            for name, flow in names.items()
        }
        await asyncio.sleep(0)
        tasks.pop("left").cancel()
        gate.set()
        await asyncio.gather(*tasks.values())
        assert order[0] == "a1"
        assert sorted(order) == ["a1", "a2", "b", "job"]
        with pytest.raises(ZeroDivisionError):
            await device.run(lambda: 1 // 0, flow=A)
        assert await device.run(lambda: 5, flow=A) == 5


async def test_a_lone_image_is_decoded_before_the_rest_of_a_flood() -> None:
    order: list[str] = []
    pool = FairPool(1, Weights(), name="test")
    gate = threading.Event()
    flood = [
        asyncio.create_task(pool.run(lambda: (gate.wait(10), order.append("a")), flow=A))
        for _ in range(50)
    ]
    await asyncio.sleep(0)
    lone = asyncio.create_task(pool.run(lambda: order.append("b"), flow=B))
    left = asyncio.create_task(pool.run(lambda: order.append("left"), flow=B))
    await asyncio.sleep(0)
    left.cancel()
    gate.set()
    await asyncio.gather(lone, *flood)
    pool.close()
    assert order.index("b") <= 2
    assert "left" not in order
    assert len(order) == 51


async def test_errors_of_a_pool_reach_their_callers() -> None:
    pool = FairPool(2, Weights(), name="test")
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0, flow=A)
    assert await pool.run(lambda: 3, flow=A) == 3
    pool.close()
