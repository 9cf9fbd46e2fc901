"""The queue around a fake model that can be held up: joins, lanes, refusals, memory, deadlines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.common.batching import Batcher
from services.common.device import Device
from services.common.errors import (
    NotInTime,
    OutOfMemory,
    Overloaded,
    PeerUnavailable,
    QuotaReached,
)
from services.common.fairness import Flow

A, B = Flow("a"), Flow("b")
JOB = Flow("a", shard=True)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Doubler:
    """Doubles numbers; records every batch; can be held up by a gate, or have little memory."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun, self.fits = 0, 1000

    def __call__(self, items: list[int], size: int) -> list[int]:
        self.begun += 1
        self.gate.wait(10)
        self.batches.append((items, size))
        if size > self.fits:
            raise OutOfMemoryError(f"tried to allocate {size}")
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items]


Pair = tuple[Doubler, Batcher[int, int]]


@asynccontextmanager
async def made(**more: Any) -> AsyncIterator[Pair]:
    model = Doubler()
    with ThreadPoolExecutor(1) as executor:
        given = {"max_batch": 8, "wait_ms": 20, "max_queue": 64, "shard_batch": 4, **more}
        batcher = Batcher(model, Device(executor), name="test", **given)
        try:
            yield model, batcher
        finally:
            model.gate.set()
            await batcher.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with made() as both:
        yield both


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


def waiting(batcher: Batcher[int, int]) -> int:
    return len(batcher._queue)


async def blocked(batcher: Batcher[int, int], model: Doubler, flow: Flow = A) -> asyncio.Task[Any]:
    """Let one pass start, and hold it up."""
    model.gate.clear()
    before = model.begun
    running = asyncio.create_task(batcher.submit([0], flow=flow))
    await until(lambda: model.begun > before)
    return running


async def test_concurrent_callers_share_a_batch(pair: Pair) -> None:
    model, batcher = pair
    answers = await asyncio.gather(*(batcher.submit([n]) for n in range(6)))
    assert [one.result for (one,) in answers] == [0, 2, 4, 6, 8, 10]
    assert model.batches == [([0, 1, 2, 3, 4, 5], 6)]
    assert all(one.batch_size == 6 for (one,) in answers)


async def test_a_batch_is_never_larger_than_the_limit(pair: Pair) -> None:
    model, batcher = pair
    served = await batcher.submit(list(range(13)))
    assert [one.result for one in served] == [2 * n for n in range(13)]
    assert [len(items) for items, _ in model.batches] == [8, 5]


async def test_shards_run_alone_at_the_fixed_shape(pair: Pair) -> None:
    model, batcher = pair
    model.gate.clear()
    shard = asyncio.create_task(batcher.submit([1, 2, 3, 4, 5, 6], flow=JOB))
    others = [asyncio.create_task(batcher.submit([n])) for n in (7, 8, 9)]
    await until(lambda: model.begun == 1)
    model.gate.set()
    await asyncio.gather(shard, *others)
    shards = [batch for batch in model.batches if set(batch[0]) <= {1, 2, 3, 4, 5, 6}]
    assert shards == [([1, 2, 3, 4], 4), ([5, 6], 4)]
    assert sorted(n for items, _ in model.batches for n in items) == list(range(1, 10))


async def test_a_job_yields_to_online_calls(pair: Pair) -> None:
    model, batcher = pair
    running = await blocked(batcher, model, JOB)
    shard = asyncio.create_task(batcher.submit(list(range(100, 108)), flow=JOB))
    online = [asyncio.create_task(batcher.submit([n], flow=B)) for n in range(1, 5)]
    await until(lambda: waiting(batcher) == 6)
    model.gate.set()
    await asyncio.gather(running, shard, *online)
    assert [items for items, _ in model.batches[1:]] == [
        [1, 2, 3, 4],
        [100, 101, 102, 103],
        [104, 105, 106, 107],
    ]


async def test_a_lone_call_passes_a_flood(pair: Pair) -> None:
    model, batcher = pair
    await batcher.submit([0])  # so that times are known
    running = await blocked(batcher, model)
    flood = asyncio.create_task(batcher.submit(list(range(100, 130)), flow=A))
    await until(lambda: waiting(batcher) == 30)
    lone = asyncio.create_task(batcher.submit([7], flow=B))
    await until(lambda: waiting(batcher) == 31)
    model.gate.set()
    await asyncio.gather(running, flood, lone)
    assert model.batches[2][0][0] == 7


async def test_a_full_queue_refuses_and_says_when_to_retry(pair: Pair) -> None:
    model, batcher = pair
    running = await blocked(batcher, model)
    flood = asyncio.create_task(batcher.submit(list(range(32)), flow=A))
    await until(lambda: waiting(batcher) == 32)
    with pytest.raises(QuotaReached) as quota:
        await batcher.submit([1], flow=A)
    with pytest.raises(Overloaded) as full:
        await batcher.submit(list(range(33)), flow=B)
    assert min(quota.value.retry_after_s, full.value.retry_after_s) > 0
    other = asyncio.create_task(batcher.submit([1], flow=B))
    canary = asyncio.create_task(batcher.probe(5))
    model.gate.set()
    await asyncio.gather(running, flood, other)
    assert (await canary).result == 10
    assert batcher._door.total.items == 0


async def test_items_of_a_caller_who_left_are_not_computed(pair: Pair) -> None:
    model, batcher = pair
    running = await blocked(batcher, model)
    gone = asyncio.create_task(batcher.submit([2, 3], flow=A))
    stays = asyncio.create_task(batcher.submit([4], flow=A))
    await until(lambda: waiting(batcher) == 3)
    gone.cancel()
    await until(lambda: waiting(batcher) == 1)
    model.gate.set()
    await asyncio.gather(running, stays)
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert [items for items, _ in model.batches] == [[0], [4]]
    assert batcher._door.total.items == 0  # the queue has its room back


async def test_what_passes_its_deadline_in_the_queue_is_not_computed(pair: Pair) -> None:
    model, batcher = pair
    running = await blocked(batcher, model)
    late = asyncio.create_task(batcher.submit([5], flow=B, time_left_s=0.02))
    await until(lambda: waiting(batcher) == 1)
    await asyncio.sleep(0.03)
    model.gate.set()
    await running
    with pytest.raises(NotInTime):
        await late
    assert [items for items, _ in model.batches] == [[0]]


async def test_what_would_be_computed_too_late_is_dropped_from_its_batch(pair: Pair) -> None:
    model, batcher = pair
    batcher._meter.pace.observe(8, 8 * 60.0, time.perf_counter())
    batcher._meter.pace.observe(1, 60.0, time.perf_counter())
    assert len(await batcher.submit([0], time_left_s=30)) == 1  # it is tried where nobody waits
    running = await blocked(batcher, model)
    calls = [
        asyncio.create_task(batcher.submit([n], flow=Flow(f"p{n}"), time_left_s=2000))
        for n in range(1, 6)
    ]
    await until(lambda: waiting(batcher) == 5)
    entry = batcher._queue.first(Flow("p3"))
    entry.place.deadline_s = time.perf_counter() + 50
    model.gate.set()
    with pytest.raises(NotInTime):
        await calls.pop(2)
    await asyncio.gather(running, *calls)
    assert model.batches[2:] == [([1, 2, 4, 5], 4)]


async def test_what_cannot_be_done_in_time_is_refused_at_once(pair: Pair) -> None:
    model, batcher = pair
    for size in (1, 8):
        batcher._meter.pace.observe(size, size * 1.0, time.perf_counter())
    running = await blocked(batcher, model)
    flood = asyncio.create_task(batcher.submit(list(range(20)), flow=A))
    await until(lambda: waiting(batcher) == 20)
    with pytest.raises(NotInTime) as refused:
        await batcher.submit([1], flow=A, time_left_s=20)
    assert 5 < refused.value.retry_after_s < 8
    lone = asyncio.create_task(batcher.submit([1], flow=B, time_left_s=15))  # has its own share
    await until(lambda: waiting(batcher) == 21)
    model.gate.set()
    await asyncio.gather(running, flood, lone)


async def test_a_call_is_counted_from_its_admission(pair: Pair) -> None:
    model, batcher = pair
    with batcher.admitted(40, A) as place:
        with pytest.raises(Overloaded), batcher.admitted(25, B):
            pass
        served = await batcher.submit([1, 2, 3], place=place)  # the others could not be read
        assert [one.result for one in served] == [2, 4, 6]
        assert batcher._door.total.items == 37
    assert batcher._door.total.items == 0
    with batcher.admitted(4, JOB, hold=True) as place:
        for _ in range(3):
            await batcher.submit([1, 2, 3, 4], place=place)
            assert batcher._door.total.items == 4
    assert batcher._door.total.items == 0


async def test_a_pass_takes_no_longer_than_it_may() -> None:
    async with made(max_batch_ms=50) as (model, batcher):
        batcher._meter.pace.observe(8, 0.1, time.perf_counter())
        await batcher.submit(list(range(8)))
        assert len(model.batches[0][0]) == 4


async def test_a_lone_caller_does_not_wait_for_others_to_fill_its_batch() -> None:
    async with made(wait_ms=1e9) as (_, batcher):
        assert (await batcher.submit([1]))[0].result == 2


async def test_a_batch_waits_where_calls_come_fast() -> None:
    async with made(wait_ms=1e9) as (model, batcher):
        for n in range(3):
            batcher._arrivals.note(n * 10.0)  # faster than it would wait
        first = asyncio.create_task(batcher.submit([0]))
        await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.submit([n])) for n in range(1, 8)]
        await asyncio.gather(first, *rest)
        assert len(model.batches) == 1


async def test_a_batch_that_does_not_fit_into_memory_runs_in_halves(pair: Pair) -> None:
    model, batcher = pair
    model.fits = 2
    before = REGISTRY.get_sample_value("stillhouse_out_of_memory_total", {"model": "test"}) or 0
    served = await batcher.submit(list(range(8)))
    assert [one.result for one in served] == [2 * n for n in range(8)]
    assert [size for _, size in model.batches] == [8, 4, 2, 2, 4, 2, 2]
    after = REGISTRY.get_sample_value("stillhouse_out_of_memory_total", {"model": "test"})
    assert after == before + 3
    model.batches.clear()
    await batcher.submit(list(range(8)))  # the smaller batch is remembered
    assert [size for _, size in model.batches] == [2, 2, 2, 2]


async def test_an_item_that_does_not_fit_alone_fails_alone(pair: Pair) -> None:
    model, batcher = pair

    def run(items: list[int], size: int) -> list[int]:
        if 3 in items:
            raise OutOfMemoryError("three is too large")
        return model(items, size)

    batcher._passes._run = run
    calls = [batcher.submit([n]) for n in range(6)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in answers].count(list) == 5
    assert isinstance(answers[3], OutOfMemory)


async def test_a_shard_that_does_not_fit_is_not_cut(pair: Pair) -> None:
    model, batcher = pair
    model.fits = 3
    with pytest.raises(OutOfMemory, match="lower shard_batch"):
        await batcher.submit([1, 2], flow=JOB)
    assert model.batches == [([1, 2], 4), ([1, 2], 4)]
    assert len(await batcher.submit([1, 2, 3])) == 3


async def test_an_error_reaches_its_callers_and_the_queue_goes_on(pair: Pair) -> None:
    _, batcher = pair
    with pytest.raises(ValueError, match="minus one"):
        await batcher.submit([-1])
    assert (await batcher.submit([5]))[0].result == 10


async def test_a_closed_batcher_refuses(pair: Pair) -> None:
    _, batcher = pair
    await batcher.submit([1])
    await batcher.close()
    with pytest.raises(PeerUnavailable):
        await batcher.submit([1])


async def test_closing_refuses_what_waits_and_lets_the_pass_in_flight_end(pair: Pair) -> None:
    model, batcher = pair
    running = await blocked(batcher, model)
    late = asyncio.create_task(batcher.submit([1], flow=B))
    await until(lambda: waiting(batcher) == 1)
    closing = asyncio.create_task(batcher.close())
    with pytest.raises(PeerUnavailable):
        await late
    assert not closing.done()
    model.gate.set()
    await closing
    assert (await running)[0].result == 0
