"""A bounded queue that joins concurrent callers into batches for one model.

Online items join whatever batch is forming. A shard runs by itself at one fixed, padded shape, so
that the last bits of its results do not depend on the rest of the queue. Who is next is decided by
fair shares of time (`fairness`, `device`), who is let in by room and deadline (`admission`), what
makes a batch by kind of item (`packing`), how large it may be by measured time and memory
(`meter`).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from services.common import metrics
from services.common.accounting import Ticket
from services.common.admission import Door, Load, Place
from services.common.device import Device
from services.common.errors import NotInTime, Overloaded, PeerUnavailable
from services.common.fairness import ONLINE, FairQueue, Flow, Key
from services.common.meter import Meter
from services.common.pace import Arrivals
from services.common.packing import ItemPacking, Packing, form
from services.common.passes import Entry, Passes, Run, Served, fail

T = TypeVar("T")
R = TypeVar("R")
__all__ = ["Batcher", "Run", "Served"]


class Batcher(Generic[T, R]):
    """Joins callers into batches on a device. Use from one event loop; `run` is called in the
    device's thread."""

    def __init__(
        self,
        run: Run[T, R],
        device: Device,
        *,
        name: str,
        max_batch: int = 32,
        shard_batch: int = 16,
        packing: Packing[T] | None = None,
        wait_ms: float = 2.0,
        max_batch_ms: float = 0.0,
        max_queue: int = 1024,
        max_queue_cost: float = math.inf,
    ) -> None:
        """`packing` stands for `max_batch` and `shard_batch` where items differ in cost. Online
        passes larger than one item take `max_batch_ms` at most; 0 sets no limit."""
        self._device, self._name = device, name
        self._packing: Packing[T] = packing or ItemPacking(max_batch, shard_batch)
        self._wait_s = wait_ms / 1000
        self._meter = Meter(self._packing.most, max_batch_s=max_batch_ms / 1000 or math.inf)
        self._passes = Passes(run, device, self._meter, self._packing, name=name)
        self._door = Door(
            name,
            Load(max_queue, max_queue_cost),
            device.clock.weight,
            unit=self._packing.unit,
        )
        self._queue: FairQueue[Entry[T, R]] = FairQueue(device.clock)
        self._arrivals = Arrivals()
        self._wake, self._turn = asyncio.Event(), asyncio.Lock()
        self._waiting, self._closed = 0, False

    @contextmanager
    def admitted(
        self,
        items: int,
        flow: Flow,
        *,
        cost: float | None = None,
        time_left_s: float | None = None,
        hold: bool = False,
    ) -> Iterator[Place]:
        """Count a call in before anything is done for it, until its items run or the block ends.

        `cost` is in the queue's unit, the number of items where None. Raises QuotaReached or
        Overloaded where there is no room, NotInTime where the answer would come after
        `time_left_s`, PeerUnavailable where the batcher is closed. With `hold` the items count
        until the end of the block in any case.
        """
        load = Load(items, items if cost is None else cost)
        now_s = time.perf_counter()
        self._admit(flow, load, time_left_s, now_s)
        deadline_s = math.inf if time_left_s is None else now_s + time_left_s
        place = Place(self._door, flow, load, deadline_s=deadline_s, hold=hold)
        try:
            yield place
        finally:
            place.leave()

    async def submit(
        self,
        items: Sequence[T],
        *,
        flow: Flow = ONLINE,
        place: Place | None = None,
        time_left_s: float | None = None,
    ) -> list[Served[R]]:
        """Run `items` and return their results in order.

        A call that was `admitted` gives its place; another gives its flow, is admitted here, and
        raises what that raises. Also raises OutOfMemory, NotInTime where the deadline passes in the
        queue, and whatever `run` raises. Cancelling the caller takes its items out of the queue.
        """
        if not items:
            return []
        costs = [self._packing.cost(item) for item in items]
        if place is not None:
            return await self._wait_for(items, costs, place)
        asked = self.admitted(len(items), flow, cost=sum(costs), time_left_s=time_left_s)
        with asked as place:
            return await self._wait_for(items, costs, place)

    async def probe(self, item: T) -> Served[R]:
        """Run one item that no limit refuses: a canary asks whether the model computes, not whether
        the queue has room."""
        cost = self._packing.cost(item)
        place = Place(self._door, ONLINE, Load(1, cost))
        try:
            (served,) = await self._wait_for([item], [cost], place)
        finally:
            place.leave()
        return served

    async def close(self) -> None:
        """Refuse new work and what waits, and return once the batch in flight is done."""
        self._closed = True
        waiting = list(self._queue)
        self._remove(waiting)
        fail(waiting, PeerUnavailable("the service is shutting down"))
        self._wake.set()
        async with self._turn:
            pass

    def _admit(self, flow: Flow, load: Load, time_left_s: float | None, now_s: float) -> None:
        if self._closed:
            raise PeerUnavailable("the service is shutting down")
        ahead = self._door.ahead(flow, load.cost)
        try:
            self._door.check_room(flow, load, now_s=now_s, per_s=self._meter.per_s(now_s))
            # An idle queue refuses nobody, so that an estimate that is too long is measured again.
            if self._door.total.items or self._turn.locked():
                wait_s = self._meter.wait_s(ahead, now_s)
                self._door.check_time(wait_s=wait_s, time_left_s=time_left_s)
        except Overloaded as error:
            metrics.refuse(self._name, load.items, reason=error.reason)
            raise

    async def _wait_for(
        self, items: Sequence[T], costs: Sequence[float], place: Place
    ) -> list[Served[R]]:
        if self._closed:
            raise PeerUnavailable("the service is shutting down")
        shard, ticket = place.flow.shard, Ticket(time.perf_counter())
        groups = self._packing.cut(costs) if shard else [[at] for at in range(len(items))]
        loop = asyncio.get_running_loop()
        entries: list[Entry[T, R]] = []
        for group in groups:
            mine, each = [items[at] for at in group], [costs[at] for at in group]
            entries.append(Entry(mine, each, place, loop.create_future(), ticket))
            self._queue.push(entries[-1])
        self._count(len(items))
        self._arrivals.note(ticket.queued_s)
        self._wake.set()
        self._device.wake(self)
        try:
            served = await asyncio.gather(*(entry.future for entry in entries))
        finally:
            self._withdraw(entries)
        found = {
            at: one
            for group, ones in zip(groups, served, strict=True)
            for at, one in zip(group, ones, strict=True)
        }
        return [found[at] for at in range(len(items))]

    def _withdraw(self, entries: Collection[Entry[T, R]]) -> None:
        """Take what a caller that left is still waiting for out of the queue."""
        left = [one for one in entries if one.future.cancelled() or not one.future.done()]
        if not left:
            return
        metrics.DROPPED_ITEMS.labels(self._name).inc(self._remove(left))
        for entry in left:
            entry.future.cancel()

    def _remove(self, entries: Collection[Entry[T, R]]) -> int:
        """Take entries out of the queue, with their places; returns the number of items."""
        removed = self._queue.remove(entries)
        for entry in removed:
            entry.place.release(Load(len(entry.items), entry.cost))
        items = sum(len(entry.items) for entry in removed)
        self._count(-items)
        return items

    def _count(self, change: int) -> None:
        self._waiting += change
        metrics.QUEUE_ITEMS.labels(self._name).set(self._waiting)

    def head(self) -> tuple[Key, Flow] | None:
        """See device.Source."""
        return self._queue.head()

    async def serve(self, *, alone: bool) -> None:
        """See device.Source."""
        async with self._turn:
            if alone:
                await self._fill()
            entries = self._take()
            if not entries:
                return
            await self._passes.serve(entries, shard=entries[0].flow.shard)
            inside, now_s = self._door.total.cost, time.perf_counter()
            self._meter.end(sum(e.cost for e in entries), inside=inside, now_s=now_s)

    async def _fill(self) -> None:
        """Wait for a full batch, as long as calls come fast enough to be waited for."""
        while (found := self._queue.head()) and not found[1].shard and not self._closed:
            now_s = time.perf_counter()
            waiting = self._queue.costs(shard=False)
            oldest_s = min(self._queue.first(flow).queued_s for flow in waiting)
            left_s = self._arrivals.wait_until(oldest_s, self._wait_s) - now_s
            if left_s <= 0 or sum(waiting.values()) >= self._meter.room(now_s):
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                return

    def _take(self) -> list[Entry[T, R]]:
        """Take the entries of the next pass out of the queue; none where nothing is left.

        What nobody waits for, or nobody can have in time, is dropped before anything is computed
        for it.
        """
        while found := self._queue.head():
            taken = self._form(found[1])
            size = self._packing.size(taken, shard=found[1].shard)
            left = [entry for entry in taken if entry.future.done()]
            late = [entry for entry in taken if self._is_late(entry, size)]
            if not left and not late:
                self._remove(taken)
                return taken
            metrics.DROPPED_ITEMS.labels(self._name).inc(self._remove(left))
            metrics.refuse(self._name, self._remove(late), reason="EXPIRED")
            fail(late, NotInTime(f"{self._name} was busy until shortly before the deadline"))
        return []

    def _is_late(self, entry: Entry[T, R], size: float) -> bool:
        """Whether a pass of `size` would answer after the entry's deadline. What has not waited for
        others is not given up for an estimate, which would then never be measured again."""
        now_s = time.perf_counter()
        waited = entry.queued_s < self._meter.ended_s
        ends_s = now_s + self._meter.pace.seconds(size) if waited else now_s
        return entry.place.deadline_s <= ends_s

    def _form(self, flow: Flow) -> list[Entry[T, R]]:
        if flow.shard:
            return [self._queue.first(flow)]
        room = self._meter.room(time.perf_counter())
        metrics.BATCH_LIMIT.labels(self._name).set(room)
        weight = self._device.clock.weight
        return form(self._queue, self._packing, self._meter.pace, room, weight)
