"""How work becomes passes: what items cost, what fits into one pass, how a shard is cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Protocol, TypeVar

from services.common.fairness import FairQueue, Weights, Work, modest
from services.common.pace import Pace

_FILL = 1.25
"""How much longer a pass of modest flows may take for what floods add to it."""
T_contra = TypeVar("T_contra", contravariant=True)


class Sized(Work, Protocol):
    """What waits: one online item, or a part of a shard, with the cost of each of its items."""

    @property
    def costs(self) -> Sequence[float]: ...


E = TypeVar("E", bound=Sized)


class Packing(Protocol[T_contra]):
    """Forms the passes of one kind of model. `most` is the largest pass by size, in the unit of
    cost; `unit` names it."""

    most: float
    unit: str
    shard_setting: str
    """Name of the setting that decides the size of a shard's passes."""

    def cost(self, item: T_contra) -> float:
        """Return what an item costs by itself."""
        ...

    def cut(self, costs: Sequence[float]) -> list[list[int]]:
        """Cut a shard into passes, by its own items alone; positions."""
        ...

    def choose(self, waiting: Iterable[E], room: float) -> list[E]:
        """Return the entries of the next online pass, of at most `room`; the first that waits is
        always in it."""
        ...

    def size(self, entries: Sequence[Sized], *, shard: bool) -> float:
        """Return a pass' size, padding included."""
        ...


class ItemPacking:
    """Items of one shape, such as images: each costs 1. A shard runs at one fixed, padded size, so
    that the last bits of its results do not depend on how many items are left for its last pass."""

    unit = "items"
    shard_setting = "shard_batch"

    def __init__(self, max_batch: int, shard_batch: int) -> None:
        self.most, self.shard_batch = float(max_batch), shard_batch

    def cost(self, item: object) -> float:
        """Return 1."""
        return 1.0

    def cut(self, costs: Sequence[float]) -> list[list[int]]:
        """Cut into passes of `shard_batch` items, in order; the last may be shorter."""
        everything = range(len(costs))
        return [
            list(everything[at : at + self.shard_batch])
            for at in range(0, len(costs), self.shard_batch)
        ]

    def choose(self, waiting: Iterable[E], room: float) -> list[E]:
        """Return the first that wait."""
        return list(islice(waiting, max(1, int(room))))

    def size(self, entries: Sequence[Sized], *, shard: bool) -> float:
        """Return the number of items, a shard's with its padding."""
        items = sum(len(entry.costs) for entry in entries)
        return float(max(items, self.shard_batch)) if shard else float(items)


def form(
    queue: FairQueue[E], packing: Packing[T_contra], pace: Pace, room: float, weight: Weights
) -> list[E]:
    """Return the entries of the next online pass, of at most `room`, as fair shares have it.

    Where it is a modest flow's turn, floods fill its pass only as far as this costs it next to
    nothing: on a device whose passes take the same time at every size, wholly; on one that computes
    item by item, not at all. Batches of a flood alone, or of many modest flows, are full.
    """
    waiting = queue.costs(shard=False)
    cost_s = pace.seconds(room) / room or 1.0
    head, few = queue.head(), modest(waiting, room, weight)
    if head is None or head[1] not in few:
        return packing.choose(queue.in_order(waiting, cost_s=cost_s), room)
    own = sum(waiting[flow] for flow in few)
    order = chain(
        queue.in_order(few, cost_s=cost_s),
        queue.in_order(waiting.keys() - few, cost_s=cost_s),
    )
    within = pace.largest(_FILL * pace.seconds(own), room) if pace.seconds(own) else own
    return packing.choose(order, min(room, max(own, within)))
