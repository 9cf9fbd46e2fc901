"""A bounded queue that joins concurrent callers into batches of so many tokens.

The sibling of `services.common.batching` for items of different lengths: a batch is filled by its
padded size, and an item joins one only where the padding that this adds costs less than a forward
pass of its own would. Online items join the oldest one that waits, the nearest in length first. A
shard is cut into batches by its own items' lengths alone and each runs by
itself, so that the last bits of its results do not depend on the rest of the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common import callers, metrics
from services.common.accounting import Share, Ticket, note_batch
from services.common.batching import Served
from services.common.errors import Overloaded

T = TypeVar("T")
R = TypeVar("R")
_MEMORY = 0.8


def plan(
    sizes: Sequence[int], budget: int, *, limit: int = 1 << 30, pass_tokens: int = 1 << 30
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


@dataclass(eq=False)
class _Entry(Generic[T, R]):
    items: list[T]
    tokens: int
    """The longest item's."""
    future: asyncio.Future[list[Served[R]]]
    queued_s: float
    ticket: Ticket = field(default_factory=Ticket)

    @property
    def padded(self) -> int:
        return self.tokens * len(self.items)


class TokenBatcher(Generic[T, R]):
    """Joins callers into batches; `run` is called in `executor`'s thread with the items of a batch,
    longest first, and returns one result per item. Use from one event loop."""

    def __init__(
        self,
        run: Callable[[list[T]], list[R]],
        executor: ThreadPoolExecutor,
        *,
        name: str,
        size: Callable[[T], int],
        budget: int = 4096,
        pass_tokens: int = 64,
        wait_ms: float = 2.0,
        max_items: int = 1024,
        max_tokens: int = 1 << 20,
    ) -> None:
        self._run, self._executor, self._name, self._size = run, executor, name, size
        self.budget, self.pass_tokens, self.wait_ms = budget, pass_tokens, wait_ms
        self.max_items, self.max_tokens = max_items, max_tokens
        self._online: deque[_Entry[T, R]] = deque()
        self._shards: deque[_Entry[T, R]] = deque()
        self._items = self._tokens = 0
        self._tokens_per_s = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def submit(
        self, items: Sequence[T], *, shard: bool = False, time_left_s: float | None = None
    ) -> list[Served[R]]:
        """Run `items` and return their results in order.

        Raises Overloaded where the queue has no room for all of them or could not answer in
        `time_left_s`, and whatever `run` raises. Cancelling the caller takes its items out.
        """
        if not items:
            return []
        sizes = [self._size(item) for item in items]
        self._admit(len(items), sum(sizes), time_left_s)
        groups = self._cut(sizes) if shard else [[at] for at in range(len(items))]
        lane = self._shards if shard else self._online
        entries = [
            self._enqueue(lane, [items[at] for at in group], max(sizes[at] for at in group))
            for group in groups
        ]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._loop(), name=f"batcher {self._name}", context=callers.detached()
            )
        self._wake.set()
        try:
            served = await asyncio.gather(*(entry.future for entry in entries))
        finally:
            self._withdraw(entries, shard=shard)
        found = {
            at: one
            for g, s in zip(groups, served, strict=True)
            for at, one in zip(g, s, strict=True)
        }
        return [found[at] for at in range(len(items))]

    def _cut(self, sizes: Sequence[int]) -> list[list[int]]:
        return plan(sizes, self.budget, pass_tokens=self.pass_tokens)

    def _admit(self, items: int, tokens: int, time_left_s: float | None) -> None:
        wait_s = self._tokens / self._tokens_per_s if self._tokens_per_s else 0.0
        full = self._items + items > self.max_items or self._tokens + tokens > self.max_tokens
        if self._items and full:
            said = f"{self._items} items of {self._tokens:,} tokens wait for {self._name}"
            limits = f"the limits are {self.max_items} and {self.max_tokens:,}"
            metrics.refuse(self._name, items, reason=Overloaded.reason)
            raise Overloaded(f"{said}; {limits}", retry_after_s=max(1.0, wait_s / 2))
        if time_left_s is not None and wait_s > time_left_s:
            metrics.refuse(self._name, items, reason="NOT_IN_TIME")
            raise Overloaded(
                f"{self._name} is busy for about {wait_s:.0f} s, the call has {time_left_s:.0f} s",
                retry_after_s=wait_s,
            )

    def _enqueue(self, lane: deque[_Entry[T, R]], items: list[T], tokens: int) -> _Entry[T, R]:
        future: asyncio.Future[list[Served[R]]] = asyncio.get_running_loop().create_future()
        entry = _Entry(items, tokens, future, time.perf_counter())
        lane.append(entry)
        self._count(entry, 1)
        return entry

    def _withdraw(self, entries: list[_Entry[T, R]], *, shard: bool) -> None:
        """Take what a caller that left is still waiting for out of the queue."""
        lane = self._shards if shard else self._online  # as it is now: taking makes it anew
        for entry in entries:
            entry.future.cancel()
            if entry in lane:
                lane.remove(entry)
                self._count(entry, -1)
                metrics.DROPPED_ITEMS.labels(self._name).inc(len(entry.items))

    def _count(self, entry: _Entry[T, R], sign: int) -> None:
        self._items += sign * len(entry.items)
        self._tokens += sign * entry.padded
        metrics.QUEUE_ITEMS.labels(self._name).set(self._items)

    async def _loop(self) -> None:
        """Serve until nothing waits; the next caller starts it again."""
        shard_turn = False
        while self._online or self._shards:
            shard_turn = bool(self._shards) and (shard_turn or not self._online)
            if not shard_turn:
                await self._fill()
                if not self._online:  # all of them left meanwhile
                    continue
            batch = self._take_shard() if shard_turn else self._take_online()
            await self._serve(batch)
            shard_turn = not shard_turn

    async def _fill(self) -> None:
        """Wait, at most `wait_ms` from the oldest item's arrival, for a full batch."""
        until_s = self._online[0].queued_s + self.wait_ms / 1000
        while self._online and sum(entry.padded for entry in self._online) < self.budget:
            left_s = until_s - time.perf_counter()
            if left_s <= 0:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _take_shard(self) -> list[_Entry[T, R]]:
        entry = self._shards.popleft()
        self._count(entry, -1)
        return [] if self._dropped(entry) else [entry]

    def _take_online(self) -> list[_Entry[T, R]]:
        """Take the oldest entry, and of the others the nearest in length that fit beside it."""
        live = []
        for entry in self._online:
            if self._dropped(entry):
                self._count(entry, -1)
            else:
                live.append(entry)
        taken = self._nearest(live)
        chosen = {id(entry) for entry in taken}
        self._online = deque(entry for entry in live if id(entry) not in chosen)
        for entry in taken:
            self._count(entry, -1)
        return sorted(taken, key=lambda entry: -entry.tokens)

    def _nearest(self, live: list[_Entry[T, R]]) -> list[_Entry[T, R]]:
        if not live:
            return []
        oldest, longest, taken = live[0], live[0].tokens, [live[0]]
        for entry in sorted(live[1:], key=lambda entry: abs(entry.tokens - oldest.tokens)):
            more = max(0, entry.tokens - longest) * len(taken) + max(0, longest - entry.tokens)
            over = max(longest, entry.tokens) * (len(taken) + 1) > self.budget
            if over or more > self.pass_tokens:
                break
            longest = max(longest, entry.tokens)
            taken.append(entry)
        return taken

    def _dropped(self, entry: _Entry[T, R]) -> bool:
        if entry.future.done():
            metrics.DROPPED_ITEMS.labels(self._name).inc(len(entry.items))
        return entry.future.done()

    async def _serve(self, entries: list[_Entry[T, R]]) -> None:
        items = [item for entry in entries for item in entry.items]
        if not items:
            return
        started_s = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._run, items)
        except Exception as error:  # whatever the model raises belongs to its callers
            for entry in entries:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        self._deliver(entries, results, started_s, time.perf_counter() - started_s)

    def _deliver(
        self, entries: list[_Entry[T, R]], results: list[R], started_s: float, compute_s: float
    ) -> None:
        rate = sum(entry.padded for entry in entries) / max(compute_s, 1e-6)
        self._tokens_per_s = _MEMORY * self._tokens_per_s + (1 - _MEMORY) * rate or rate
        shares = [Share(entry.ticket, len(entry.items), entry.padded) for entry in entries]
        note_batch(self._name, shares, started_s=started_s, compute_s=compute_s)
        at = 0
        for entry in entries:
            mine, at = results[at : at + len(entry.items)], at + len(entry.items)
            queue_s = started_s - entry.queued_s
            if not entry.future.done():
                entry.future.set_result(
                    [Served(one, queue_s * 1000, compute_s * 1000, len(results)) for one in mine]
                )
