"""Who is served next: weighted fair shares of time between projects, jobs behind online calls.

Start-time fair queueing. Every flow (a project's online calls, a project's job shards) has a
virtual time: the seconds it has been served, divided by its weight. The flow that is furthest
behind is next. A flow that comes back from a pause starts at the present: it has no credit for the
time it did not ask, and is not behind those that wait already. Nothing here knows of asyncio or of
the wall clock.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

_FORGET_AT = 1024


class Flow(NamedTuple):
    """Whose work it is: a project's online calls, or the shards of its jobs."""

    project: str = ""
    shard: bool = False


ONLINE = Flow()
"""The service's own work, such as a canary's."""


class Work(Protocol):
    """What waits: `cost` is in the unit of its queue (items, tokens)."""

    @property
    def flow(self) -> Flow: ...
    @property
    def cost(self) -> float: ...


W = TypeVar("W", bound=Work)
Key = tuple[float, bool, int]
"""Place in the order of service, least first: virtual time, online before shards, order of
arrival."""


@dataclass(frozen=True)
class Weights:
    """How the time is shared where several flows want more than their part; a project that is not
    named weighs 1."""

    projects: Mapping[str, float] = field(default_factory=dict)
    job: float = 0.1
    """Weight of a project's shards against its online calls."""

    def __call__(self, flow: Flow) -> float:
        """Return a flow's weight in sharing time."""
        weight = self.of_project(flow)
        return weight * self.job if flow.shard else weight

    def of_project(self, flow: Flow) -> float:
        """Return the weight of a flow's project."""
        return self.projects.get(flow.project, 1.0)


class FairClock:
    """Virtual times of flows. All queues of one device share one, so that shares hold over models
    too."""

    def __init__(self, weights: Weights | None = None) -> None:
        self.weight = weights or Weights()
        self.arrivals = itertools.count()
        self._at: dict[Flow, float] = {}
        self._now = 0.0

    def at(self, flow: Flow) -> float:
        """Return a flow's virtual time in seconds; at least the present."""
        return max(self._at.get(flow, 0.0), self._now)

    def begin(self, flow: Flow) -> None:
        """Note whose turn it is: the present moves up to that flow's time."""
        self._now = self.at(flow)

    def charge(self, costs: Mapping[Flow, float], seconds: float) -> None:
        """Charge a pass of `seconds` to the flows that were in it, by their costs."""
        total = sum(costs.values()) or 1.0
        for flow, cost in costs.items():
            self._at[flow] = self.at(flow) + seconds * cost / total / self.weight(flow)
        if len(self._at) > _FORGET_AT:
            self._at = {flow: at for flow, at in self._at.items() if at > self._now}


class FairQueue(Generic[W]):
    """Work waiting in order of arrival within each flow, served in the order of fair shares."""

    def __init__(self, clock: FairClock) -> None:
        self._clock = clock
        self._waiting: dict[Flow, deque[tuple[int, W]]] = {}
        self._costs: dict[Flow, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[W]:
        return (work for line in self._waiting.values() for _, work in line)

    def push(self, work: W) -> None:
        """Put work at the end of its flow's line."""
        line = self._waiting.setdefault(work.flow, deque())
        line.append((next(self._clock.arrivals), work))
        self._costs[work.flow] = self._costs.get(work.flow, 0.0) + work.cost

    def remove(self, gone: Collection[W]) -> list[W]:
        """Take work out, wherever it stands, and return what was in the queue of it."""
        wanted: dict[Flow, set[int]] = {}
        for work in gone:
            wanted.setdefault(work.flow, set()).add(id(work))
        return [
            work
            for flow, ids in wanted.items()
            if flow in self._waiting
            for work in self._remove(flow, ids)
        ]

    def take(self, flow: Flow) -> W:
        """Take out a flow's oldest work and return it."""
        return self._left(flow, [self._waiting[flow].popleft()[1]])[0]

    def head(self) -> tuple[Key, Flow] | None:
        """Return the flow whose turn it is, and its key to compare with other queues'."""
        keys = [(self._key(flow, line), flow) for flow, line in self._waiting.items()]
        return min(keys, default=None)

    def first(self, flow: Flow) -> W:
        """Return a flow's oldest work."""
        return self._waiting[flow][0][1]

    def costs(self, *, shard: bool) -> dict[Flow, float]:
        """Return what waits by flow: that of shards, or of online calls."""
        return {flow: cost for flow, cost in self._costs.items() if flow.shard == shard}

    def in_order(self, flows: Iterable[Flow], *, cost_s: float) -> Iterator[W]:
        """Yield the work of some flows as their shares would have it served, one after the other;
        a unit of cost takes `cost_s` seconds. Nothing is taken out."""
        lines = {flow: iter(self._waiting[flow]) for flow in flows if flow in self._waiting}
        order = []
        for flow, line in lines.items():
            arrival, work = next(line)
            order.append((self._clock.at(flow), flow.shard, arrival, flow, work))
        heapq.heapify(order)
        while order:
            at, shard, _, flow, work = heapq.heappop(order)  # arrivals are never the same
            yield work
            following = next(lines[flow], None)
            if following is not None:
                at += work.cost * cost_s / self._clock.weight(flow)
                heapq.heappush(order, (at, shard, following[0], flow, following[1]))

    def _remove(self, flow: Flow, ids: set[int]) -> list[W]:
        line, found = self._waiting[flow], []
        while line and id(line[0][1]) in ids:  # what is served stands in front
            found.append(line.popleft()[1])
        if len(found) < len(ids):
            found += [work for _, work in line if id(work) in ids]
            self._waiting[flow] = deque(pair for pair in line if id(pair[1]) not in ids)
        return self._left(flow, found)

    def _left(self, flow: Flow, gone: list[W]) -> list[W]:
        """Count out what has been taken from a flow's line."""
        self._costs[flow] -= sum(work.cost for work in gone)
        if not self._waiting[flow]:
            del self._waiting[flow], self._costs[flow]
        return gone

    def _key(self, flow: Flow, line: deque[tuple[int, W]]) -> Key:
        return self._clock.at(flow), flow.shard, line[0][0]


def modest(costs: Mapping[Flow, float], room: float, weight: Weights) -> set[Flow]:
    """Return the flows whose whole queue is within their share of a pass of `room`, where there are
    others that want more; empty where all want the same.

    The modest are served by themselves: a lone call that had to share its pass with a flood would
    wait for one full pass and then compute for another.
    """
    total = sum(weight(flow) for flow in costs)
    within = {flow for flow, cost in costs.items() if cost <= room * weight(flow) / total}
    return within if len(within) < len(costs) else set()
