"""A bounded queue that joins concurrent callers into batches and runs them in one worker thread.

Two lanes share the thread in turn. Online items join whatever batch is forming. A shard runs by
itself at one
fixed, padded shape, so that the last bits of its results do not depend on the rest of the queue.
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
from services.common.errors import Overloaded, PeerUnavailable

T = TypeVar("T")
R = TypeVar("R")

Run = Callable[[list[T], int], list[R]]
"""Runs a batch padded to the given size (never smaller than the batch) and returns one result per
item."""


@dataclass(frozen=True)
class Served(Generic[R]):
    """A result and what it took."""

    result: R
    queue_ms: float
    compute_ms: float
    batch_size: int


@dataclass
class _Entry(Generic[T, R]):
    items: list[T]
    future: asyncio.Future[list[Served[R]]]
    queued_s: float
    ticket: Ticket = field(default_factory=Ticket)


class Batcher(Generic[T, R]):
    """Joins callers into batches. Use from one event loop; `run` is called in `executor`'s
    thread."""

    def __init__(
        self,
        run: Run[T, R],
        executor: ThreadPoolExecutor,
        *,
        name: str,
        max_batch: int = 32,
        wait_ms: float = 2.0,
        max_queue: int = 1024,
        shard_batch: int = 16,
    ) -> None:
        self._run, self._executor, self._name = run, executor, name
        self.max_batch, self.wait_ms = max_batch, wait_ms
        self.max_queue, self.shard_batch = max_queue, shard_batch
        self._online: deque[_Entry[T, R]] = deque()
        self._shards: deque[_Entry[T, R]] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def submit(self, items: Sequence[T], *, shard: bool = False) -> list[Served[R]]:
        """Run `items` and return their results in order.

        Raises Overloaded where the queue has no room for all of them, PeerUnavailable where the
        batcher is
        closed, and whatever `run` raises. Cancelling the caller takes its items out of the queue.
        """
        if not items:
            return []
        if self._closed:
            raise PeerUnavailable("the service is shutting down")
        if self._waiting + len(items) > self.max_queue and self._waiting:
            metrics.refuse(self._name, len(items), reason=Overloaded.reason)
            raise Overloaded(
                f"{self._waiting} items wait for {self._name}; the limit is {self.max_queue}"
            )
        size = self.shard_batch if shard else 1
        lane = self._shards if shard else self._online
        entries = [
            self._enqueue(lane, list(items[at : at + size])) for at in range(0, len(items), size)
        ]
        if self._task is None:
            self._task = asyncio.create_task(
                self._loop(), name=f"batcher {self._name}", context=callers.detached()
            )
        self._wake.set()
        try:
            served = await asyncio.gather(*(entry.future for entry in entries))
        finally:
            for entry in entries:
                entry.future.cancel()
        return [one for group in served for one in group]

    async def close(self) -> None:
        """Refuse new work and stop once the batch in flight is done."""
        self._closed = True
        for entry in [*self._online, *self._shards]:
            entry.future.cancel()
        if self._task is not None:
            self._wake.set()
            await self._task

    def _enqueue(self, lane: deque[_Entry[T, R]], items: list[T]) -> _Entry[T, R]:
        future: asyncio.Future[list[Served[R]]] = asyncio.get_running_loop().create_future()
        entry = _Entry(items, future, time.perf_counter())
        lane.append(entry)
        self._count(len(items))
        return entry

    def _count(self, change: int) -> None:
        self._waiting += change
        metrics.QUEUE_ITEMS.labels(self._name).set(self._waiting)

    async def _loop(self) -> None:
        shard_turn = False
        while not self._closed:
            if not self._online and not self._shards:
                self._wake.clear()
                await self._wake.wait()
                continue
            shard_turn = bool(self._shards) and (shard_turn or not self._online)
            if shard_turn:
                await self._serve(self._take(self._shards, 1), self.shard_batch)
            else:
                await self._fill()
                batch = self._take(self._online, self.max_batch)
                await self._serve(batch, sum(len(entry.items) for entry in batch))
            shard_turn = not shard_turn

    async def _fill(self) -> None:
        """Wait, at most `wait_ms` from the oldest item's arrival, for a full batch."""
        until_s = self._online[0].queued_s + self.wait_ms / 1000
        while len(self._online) < self.max_batch and not self._closed:
            left_s = until_s - time.perf_counter()
            if left_s <= 0:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _take(self, lane: deque[_Entry[T, R]], limit: int) -> list[_Entry[T, R]]:
        taken: list[_Entry[T, R]] = []
        while lane and len(taken) < limit:
            entry = lane.popleft()
            self._count(-len(entry.items))
            if entry.future.done():
                metrics.DROPPED_ITEMS.labels(self._name).inc(len(entry.items))
            else:
                taken.append(entry)
        return taken

    async def _serve(self, entries: list[_Entry[T, R]], shape: int) -> None:
        items = [item for entry in entries for item in entry.items]
        if not items:
            return
        started_s = time.perf_counter()
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(
                self._executor, self._run, items, max(shape, len(items))
            )
        except Exception as error:  # whatever the model raises belongs to its callers
            for entry in entries:
                if not entry.future.done():
                    entry.future.set_exception(error)
            return
        self._deliver(entries, results, started_s, time.perf_counter() - started_s)

    def _deliver(
        self, entries: list[_Entry[T, R]], results: list[R], started_s: float, compute_s: float
    ) -> None:
        shares = [Share(entry.ticket, len(entry.items), len(entry.items)) for entry in entries]
        note_batch(self._name, shares, started_s=started_s, compute_s=compute_s)
        at = 0
        for entry in entries:
            mine, at = results[at : at + len(entry.items)], at + len(entry.items)
            queue_s = started_s - entry.queued_s
            if not entry.future.done():
                entry.future.set_result(
                    [Served(one, queue_s * 1000, compute_s * 1000, len(results)) for one in mine]
                )
