"""Batches of so many tokens, for items of different lengths.

A batch is filled by its padded size, and an item joins one only where the padding that this adds
costs less than a forward pass of its own would. Online items join the one whose turn it is, the
nearest in length first. A shard is cut into batches by its own items' lengths alone and each runs
by itself, so that the last bits of its results do not depend on the rest of the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from services.common.batching import Batcher
from services.common.device import Device
from services.common.packing import E, Sized

T = TypeVar("T")
R = TypeVar("R")


def plan(
    sizes: Sequence[float], budget: int, *, limit: int = 1 << 30, pass_tokens: int = 1 << 30
) -> list[list[int]]:
    """Cut items into batches by length: positions, longest first, such that rows times the longest
    stay within `budget` tokens and rows within `limit`. A longer item is alone.

    `pass_tokens` is what a forward pass costs besides its tokens, as a number of tokens; no row
    gets more padding.
    """
    order = sorted(range(len(sizes)), key=lambda at: (-sizes[at], at))
    batches: list[list[int]] = []
    for at in order:
        batch = batches[-1] if batches else []
        fits = batch and len(batch) < limit and (len(batch) + 1) * sizes[batch[0]] <= budget
        if fits and sizes[batch[0]] - sizes[at] <= pass_tokens:
            batch.append(at)
        else:
            batches.append([at])
    return batches


class TokenPacking(Generic[T]):
    """Items that cost their tokens; a pass costs rows times its longest item."""

    unit = "tokens"
    shard_setting = "max_batch_tokens"

    def __init__(self, tokens: Callable[[T], int], budget: int, pass_tokens: int) -> None:
        self._tokens, self.most, self._pass_tokens = tokens, float(budget), pass_tokens

    def cost(self, item: T) -> float:
        """Return the item's tokens."""
        return float(self._tokens(item))

    def cut(self, costs: Sequence[float]) -> list[list[int]]:
        """Cut a shard into passes by length."""
        return plan(costs, int(self.most), pass_tokens=self._pass_tokens)

    def choose(self, waiting: Iterable[E], room: float) -> list[E]:
        """Return the first that waits, and of the others the nearest in length that fit beside
        it; longest first."""
        first, *others = waiting
        longest, taken = first.costs[0], [first]
        for entry in sorted(others, key=lambda entry: abs(entry.costs[0] - first.costs[0])):
            tokens = entry.costs[0]
            more = max(0.0, tokens - longest) * len(taken) + max(0.0, longest - tokens)
            if max(longest, tokens) * (len(taken) + 1) > room or more > self._pass_tokens:
                break
            longest = max(longest, tokens)
            taken.append(entry)
        return sorted(taken, key=lambda entry: -entry.costs[0])

    def size(self, entries: Sequence[Sized], *, shard: bool) -> float:
        """Return rows times the longest item."""
        costs = [cost for entry in entries for cost in entry.costs]
        return len(costs) * max(costs, default=0.0)


class TokenBatcher(Batcher[T, R]):
    """Joins callers into batches by length; `run` is called in the device's thread with the items
    of a batch, longest first, and returns one result per item."""

    def __init__(
        self,
        run: Callable[[list[T]], list[R]],
        device: Device,
        *,
        name: str,
        size: Callable[[T], int],
        budget: int = 4096,
        pass_tokens: int = 64,
        wait_ms: float = 2.0,
        max_batch_ms: float = 0.0,
        max_items: int = 1024,
        max_tokens: int = 1 << 20,
    ) -> None:
        super().__init__(
            lambda items, _: run(items),
            device,
            name=name,
            packing=TokenPacking(size, budget, pass_tokens),
            wait_ms=wait_ms,
            max_batch_ms=max_batch_ms,
            max_queue=max_items,
            max_queue_cost=max_tokens,
        )
