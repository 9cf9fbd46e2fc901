from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.common.batching import Batcher
from services.common.errors import Overloaded, PeerUnavailable


class Doubler:
    """Doubles numbers; records every batch; can be held up by a gate."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: list[int], size: int) -> list[int]:
        self.gate.wait(10)
        self.batches.append((items, size))
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items]


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Doubler, Batcher[int, int]]]:
    model = Doubler()
    executor = ThreadPoolExecutor(1)
    batcher = Batcher(
        model, executor, name="test", max_batch=8, wait_ms=20, max_queue=16, shard_batch=4
    )
    yield model, batcher
    model.gate.set()
    await batcher.close()
    executor.shutdown()


Pair = tuple[Doubler, Batcher[int, int]]


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
    shard = asyncio.create_task(batcher.submit([1, 2, 3, 4, 5, 6], shard=True))
    others = [asyncio.create_task(batcher.submit([n])) for n in (7, 8, 9)]
    await asyncio.sleep(0.05)
    model.gate.set()
    await asyncio.gather(shard, *others)
    shards = [batch for batch in model.batches if set(batch[0]) <= {1, 2, 3, 4, 5, 6}]
    assert shards == [([1, 2, 3, 4], 4), ([5, 6], 4)]
    assert sorted(n for items, _ in model.batches for n in items) == list(range(1, 10))


async def test_neither_lane_starves_the_other(pair: Pair) -> None:
    model, batcher = pair
    model.gate.clear()
    first = asyncio.create_task(batcher.submit([0]))
    await asyncio.sleep(0.05)
    shard = asyncio.create_task(batcher.submit(list(range(100, 108)), shard=True))
    online = [asyncio.create_task(batcher.submit([n])) for n in range(1, 5)]
    await asyncio.sleep(0.01)
    model.gate.set()
    await asyncio.gather(first, shard, *online)
    kinds = ["shard" if items[0] >= 100 else "online" for items, _ in model.batches]
    assert kinds == ["online", "shard", "online", "shard"]


async def test_a_full_queue_refuses_and_says_when_to_retry(pair: Pair) -> None:
    model, batcher = pair
    model.gate.clear()
    running = asyncio.create_task(batcher.submit([1]))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(batcher.submit(list(range(16))))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await batcher.submit([1])
    assert refused.value.retry_after_s > 0
    model.gate.set()
    await asyncio.gather(running, waiting)


async def test_items_of_a_caller_who_left_are_not_computed(pair: Pair) -> None:
    model, batcher = pair
    model.gate.clear()
    running = asyncio.create_task(batcher.submit([1]))
    await asyncio.sleep(0.05)
    gone = asyncio.create_task(batcher.submit([2, 3]))
    stays = asyncio.create_task(batcher.submit([4]))
    await asyncio.sleep(0.01)
    gone.cancel()
    model.gate.set()
    await asyncio.gather(running, stays)
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert [items for items, _ in model.batches] == [[1], [4]]
    assert len(await batcher.submit(list(range(16)))) == 16  # the queue has its room back


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
