"""The door of a queue: how much may be inside, how much of it each project, and when to come again.

A flow's share of the room is in proportion to its project's weight among the flows that are
present, with place kept for one newcomer: alone it may fill half of the queue, beside another a
third. So however many flood, somebody new finds room. A flow that was refused counts as present
for a while, so that the others make place for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from services.common.errors import NotInTime, Overloaded, QuotaReached
from services.common.fairness import Flow, Weights

_ASKING_S = 3.0
_NEWCOMER = 1.0
_SHORTEST_S, _LONGEST_S, _UNKNOWN_S = 0.05, 60.0, 1.0


@dataclass(frozen=True)
class Load:
    """A number of items and what they cost, in the unit of the queue."""

    items: int = 0
    cost: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.items + other.items, self.cost + other.cost)

    def __sub__(self, other: Load) -> Load:
        return Load(self.items - other.items, self.cost - other.cost)

    def over(self, limit: Load, part: float = 1.0) -> float:
        """Return how far the load is over a part of the limit, as a fraction of the load; 0 where
        it is within."""
        items = 1 - part * limit.items / self.items if self.items else 0.0
        cost = 1 - part * limit.cost / self.cost if self.cost else 0.0
        return max(items, cost, 0.0)


class Door:
    """Counts what is inside, from a call's arrival until its items run, and refuses what is too
    much."""

    def __init__(self, name: str, limit: Load, weight: Weights, *, unit: str = "items") -> None:
        self._name, self._limit, self._weight, self._unit = name, limit, weight, unit
        self._inside: dict[Flow, Load] = defaultdict(Load)
        self._asking: dict[Flow, float] = {}
        self.total = Load()

    def enter(self, flow: Flow, load: Load) -> None:
        """Count a load in."""
        self._asking.pop(flow, None)
        self._inside[flow] += load
        self.total += load

    def leave(self, flow: Flow, load: Load) -> None:
        """Count a load out."""
        self._inside[flow] -= load
        self.total -= load
        if not self._inside[flow].items:
            del self._inside[flow]
        if not self.total.items:
            self.total = Load()

    def check_room(self, flow: Flow, load: Load, *, now_s: float, per_s: float) -> None:
        """Raise Overloaded where the queue has no room, QuotaReached where the flow's share of it
        has none; `per_s` is the cost served a second, 0 where unknown.

        A call that finds the queue empty is let in whatever its size, and so is a flow's first
        that fits: refusing them for ever would help nobody.
        """
        if not self.total.items:
            return
        after = self.total + load
        over = after.over(self._limit)
        if over:
            self._asking[flow] = now_s + _ASKING_S
            raise Overloaded(
                f"{self._name} is full: {self._said()}",
                retry_after_s=_hint(over * after.cost, per_s),
            )
        mine, share = self._inside.get(flow, Load()), self._share(flow, now_s)
        over = (mine + load).over(self._limit, share)
        if mine.items and over:
            rate = per_s * self._weight(flow) / sum(map(self._weight, self._inside))
            raise QuotaReached(
                f"{flow.project or 'this caller'} has {mine.items} items in {self._name}, its "
                f"share is {share:.0%} of {self._limit.items}",
                subject=f"projects/{flow.project}",
                retry_after_s=_hint(over * (mine + load).cost, rate),
            )

    def check_time(self, *, wait_s: float, time_left_s: float | None) -> None:
        """Raise NotInTime where an answer in `wait_s` seconds comes after the caller's deadline."""
        if time_left_s is None or wait_s <= time_left_s:
            return
        raise NotInTime(
            f"{self._name} would answer in about {wait_s:.1f} s, the call has {time_left_s:.1f} s",
            retry_after_s=_clamp(wait_s - time_left_s),
        )

    def ahead(self, flow: Flow, cost: float) -> float:
        """Return the cost that is served until a flow's next `cost` is done: its own before it, and
        of every other flow as much as its weight gives it meanwhile."""
        mine = self._inside.get(flow, Load()).cost + cost
        weight = self._weight(flow)
        return mine + sum(
            min(load.cost, mine * self._weight(other) / weight)
            for other, load in self._inside.items()
            if other != flow
        )

    def _share(self, flow: Flow, now_s: float) -> float:
        """Return a flow's share of the room."""
        self._asking = {other: until for other, until in self._asking.items() if until > now_s}
        present = {flow} | self._inside.keys() | self._asking.keys()
        return self._weight.of_project(flow) / (
            sum(map(self._weight.of_project, present)) + _NEWCOMER
        )

    def _said(self) -> str:
        said, limit = f"{self.total.items} items", self._limit
        if self._unit == "items":
            return f"{said} wait, the limit is {limit.items}"
        said += f" of {self.total.cost:,.0f} {self._unit}"
        return f"{said} wait, the limits are {limit.items} and {limit.cost:,.0f}"


class Place:
    """What an admitted call holds of a queue: its items until they run or, where `hold` says so,
    until the call ends."""

    def __init__(
        self,
        door: Door,
        flow: Flow,
        load: Load,
        *,
        deadline_s: float = math.inf,
        hold: bool = False,
    ) -> None:
        self.flow, self.deadline_s = flow, deadline_s
        self._door, self._left, self._hold = door, load, hold
        door.enter(flow, load)

    def release(self, load: Load) -> None:
        """Give back the part of items that need no place any more."""
        if not self._hold:
            self._give(Load(min(load.items, self._left.items), min(load.cost, self._left.cost)))

    def leave(self) -> None:
        """Give back all that is left."""
        self._give(self._left)

    def _give(self, load: Load) -> None:
        if load.items:
            self._left -= load
            self._door.leave(self.flow, load)


def _hint(cost: float, per_s: float) -> float:
    """Seconds until so much has been served."""
    return _clamp(cost / per_s) if per_s else _UNKNOWN_S


def _clamp(seconds: float) -> float:
    return min(max(seconds, _SHORTEST_S), _LONGEST_S)
