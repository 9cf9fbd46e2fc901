"""Runs the passes of one model: to its device's thread and back to the callers, in halves where
memory is too small."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.common import logs, metrics
from services.common.accounting import Share, Ticket, note_batch
from services.common.admission import Place
from services.common.device import Device
from services.common.errors import OutOfMemory, is_out_of_memory
from services.common.fairness import Flow
from services.common.meter import Meter
from services.common.packing import Packing

T = TypeVar("T")
R = TypeVar("R")
_log = logs.get(__name__)

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


@dataclass(eq=False)
class Entry(Generic[T, R]):
    """One online item, or a part of a shard that runs by itself."""

    items: list[T]
    costs: list[float]
    place: Place
    future: asyncio.Future[list[Served[R]]]
    ticket: Ticket
    flow: Flow = field(init=False)
    queued_s: float = field(init=False)
    """Since when it waits, by `time.perf_counter`."""
    cost: float = field(init=False)
    """What it costs, without padding."""

    def __post_init__(self) -> None:
        self.flow, self.cost = self.place.flow, sum(self.costs)
        self.queued_s = self.ticket.queued_s


class Passes(Generic[T, R]):
    """Runs passes one at a time and measures them; `run` is called in the device's thread."""

    def __init__(
        self, run: Run[T, R], device: Device, meter: Meter, packing: Packing[T], *, name: str
    ) -> None:
        self._run, self._device, self._name = run, device, name
        self._meter, self._packing = meter, packing

    async def serve(self, entries: list[Entry[T, R]], *, shard: bool, again: bool = False) -> None:
        """Run one pass and give every entry its results, or the error. Raises nothing."""
        size = self._packing.size(entries, shard=shard)
        items = [item for entry in entries for item in entry.items]
        started_s, full = time.perf_counter(), ""
        self._meter.begin(size, started_s)
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._device.executor, self._run, items, int(size))
            if len(results) != len(items):
                raise RuntimeError(f"{self._name}: {len(results)} results for {len(items)} items")
        except Exception as error:  # whatever the model raises belongs to its callers
            full = f"{error} " if is_out_of_memory(error) else ""
            if not full:
                fail(entries, error)
            results = []  # and the error is let go, with what its frames hold in memory
        now_s = time.perf_counter()
        self._device.charge(_by_flow(entries), now_s - started_s)
        if full:
            await self._serve_smaller(entries, size, full, shard=shard, again=again)
        elif results:
            self._meter.pace.observe(size, now_s - started_s, now_s)
            self._deliver(entries, results, started_s, now_s - started_s)

    async def _serve_smaller(
        self, entries: list[Entry[T, R]], size: float, said: str, *, shard: bool, again: bool
    ) -> None:
        """Serve what did not fit into memory in halves, and make smaller batches for a while.

        A shard's size decides the last bits of its results, so it is only tried once more.
        """
        metrics.OUT_OF_MEMORY.labels(self._name).inc()
        _log.warning("out of memory", model=self._name, size=size, shard=shard, why=said[:300])
        if shard and not again:
            await self.serve(entries, shard=True, again=True)
        elif shard or len(entries) == 1:
            fail(entries, self._too_large(size, shard=shard))
        else:
            self._meter.memory.shrink(size, time.perf_counter())
            half = (len(entries) + 1) // 2
            for part in (entries[:half], entries[half:]):
                await self.serve(part, shard=False)

    def _too_large(self, size: float, *, shard: bool) -> OutOfMemory:
        said = f"{self._name}: {size:.0f} {self._packing.unit} do not fit into memory at once"
        if shard:
            said += f"; lower {self._packing.shard_setting}, which jobs do not fall below"
        return OutOfMemory(said)

    def _deliver(
        self, entries: list[Entry[T, R]], results: list[R], started_s: float, compute_s: float
    ) -> None:
        shares = [Share(entry.ticket, len(entry.items), entry.cost) for entry in entries]
        note_batch(self._name, shares, started_s=started_s, compute_s=compute_s)
        at = 0
        for entry in entries:
            mine, at = results[at : at + len(entry.items)], at + len(entry.items)
            queue_s = started_s - entry.queued_s
            if not entry.future.done():
                entry.future.set_result(
                    [Served(one, queue_s * 1000, compute_s * 1000, len(results)) for one in mine]
                )


def _by_flow(entries: Collection[Entry[T, R]]) -> dict[Flow, float]:
    costs: dict[Flow, float] = {}
    for entry in entries:
        costs[entry.flow] = costs.get(entry.flow, 0.0) + entry.cost
    return costs


def fail(entries: Collection[Entry[T, R]], error: Exception) -> None:
    """Give entries an error instead of results."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)
