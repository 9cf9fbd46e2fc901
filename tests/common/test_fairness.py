"""The scheduler as plain functions: shares, starvation, lone calls beside floods, jobs."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from services.common.fairness import FairClock, FairQueue, Flow, Weights, modest
from services.common.pace import Pace
from services.common.packing import ItemPacking, form

A, B, C = Flow("a"), Flow("b"), Flow("c")
ROOM = 8


@dataclass(eq=False)
class Item:
    flow: Flow
    cost: float = 1.0

    @property
    def costs(self) -> list[float]:
        return [self.cost]


class Model:
    """A device without a clock of its own: passes take `fixed_s + item_s * items`, jobs run in
    passes of 4."""

    def __init__(
        self,
        projects: Mapping[str, float] | None = None,
        *,
        job: float = 0.1,
        fixed_s: float = 0.0,
        item_s: float = 0.01,
    ) -> None:
        self.weights = Weights(projects or {}, job)
        self.clock = FairClock(self.weights)
        self.queue: FairQueue[Item] = FairQueue(self.clock)
        self.fixed_s, self.item_s, self.now_s = fixed_s, item_s, 0.0
        self.spent: Counter[Flow] = Counter()
        self.pace = Pace()
        for size in (1, 2, 4, 8):
            self.pace.observe(size, self.seconds(size), 0.0)

    def seconds(self, items: int) -> float:
        return self.fixed_s + self.item_s * items

    def push(self, flow: Flow, count: int = 1) -> list[Item]:
        items = [Item(flow) for _ in range(count)]
        for one in items:
            self.queue.push(one)
        return items

    def run(self) -> list[Item]:
        """Run the next pass."""
        found = self.queue.head()
        assert found is not None
        flow = found[1]
        self.clock.begin(flow)
        packing = ItemPacking(ROOM, 4)
        if flow.shard:
            batch = list(itertools.islice(self.queue.in_order([flow], cost_s=1.0), 4))
        else:
            batch = form(self.queue, packing, self.pace, ROOM, self.weights)
        assert len(self.queue.remove(batch)) == len(batch)
        seconds, costs = self.seconds(len(batch)), Counter(one.flow for one in batch)
        self.clock.charge(costs, seconds)
        for one, count in costs.items():
            self.spent[one] += seconds * count / len(batch)  # type: ignore[assignment]
        self.now_s += seconds
        return batch


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_time_follow_the_weights_however_large_the_backlogs(seed: int) -> None:
    rng = random.Random(seed)
    flows = [Flow(f"p{n}") for n in range(rng.randint(2, 6))]
    weights = {flow.project: rng.choice([0.5, 1.0, 2.0, 3.0]) for flow in flows}
    model = Model(weights, fixed_s=rng.choice([0.0, 0.05]))
    for flow in flows:
        model.push(flow, rng.randint(500, 4000))
    batches = [model.run() for _ in range(40)]
    assert all(len(batch) == ROOM for batch in batches)  # formed over projects, so they stay full
    total, all_weights = sum(model.spent.values()), sum(weights.values())
    for flow in flows:
        share = weights[flow.project] / all_weights
        assert abs(model.spent[flow] / total - share) < 0.03


@pytest.mark.parametrize("seed", range(5))
def test_nobody_starves(seed: int) -> None:
    """Whatever comes from whom, the work of every flow, jobs too, is done in bounded time."""
    rng = random.Random(seed)
    model = Model(job=0.2)
    flows = [Flow(project, shard) for project in "abcd" for shard in (False, True)]
    waits: dict[int, int] = {}
    longest: Counter[bool] = Counter()
    for turn in range(600):
        model.push(A, 6)  # a flood that never ends
        for flow in flows[1:]:
            if rng.random() < 0.04:
                waits |= {id(one): turn for one in model.push(flow, rng.randint(1, 4))}
        for one in model.run():
            if id(one) in waits:
                waited = turn - waits.pop(id(one))
                longest[one.flow.shard] = max(longest[one.flow.shard], waited)
    assert longest[False] <= 20
    assert longest[True] <= 60


@pytest.mark.parametrize("seed", range(5))
def test_a_lone_call_waits_for_one_batch_of_a_flood_and_computes_alone(seed: int) -> None:
    rng = random.Random(seed)
    model = Model()
    model.push(A, 4000)
    full_s, alone_s = model.seconds(ROOM), model.seconds(1)
    for _ in range(100):
        for _ in range(rng.randint(0, 3)):
            model.run()
        came_s = model.now_s
        model.run()  # the batch that runs when the call comes
        (call,) = model.push(B)
        assert model.run() == [call]
        assert model.now_s - came_s <= full_s + alone_s + 1e-9


def test_a_flood_fills_a_lone_calls_pass_where_that_costs_it_nothing() -> None:
    model = Model(fixed_s=1.0, item_s=0.001)
    model.push(A, 100)
    model.run()
    (call,) = model.push(B)
    batch = model.run()
    assert call in batch
    assert len(batch) == ROOM


def test_callers_of_several_projects_share_batches() -> None:
    model = Model()
    for n in range(ROOM):
        model.push(Flow(f"p{n}"))
    assert len(model.run()) == ROOM
    model.push(A, 3)
    model.push(B, 4)
    assert len(model.run()) == 7


def test_jobs_yield_to_online_calls_and_keep_their_part() -> None:
    job = Flow("a", shard=True)
    model = Model(job=0.1)
    model.push(job, 400)
    model.push(B, 4000)
    for _ in range(100):
        model.run()
    assert 0.05 < model.spent[job] / sum(model.spent.values()) < 0.15
    model = Model(job=0.1)
    model.push(job, 400)
    for _ in range(20):  # a lone call finds at most the one pass that runs before it
        batch = model.run()
        assert batch[0].flow == job
        (call,) = model.push(B)
        assert model.run() == [call]


def test_who_was_away_has_no_credit() -> None:
    model = Model()
    model.push(A, 1000)
    for _ in range(50):
        model.run()
    model.push(B, 1000)
    before = model.spent[A]
    for _ in range(20):
        model.run()
    # B had nothing for 50 passes, and gets half from now on, not all.
    assert model.spent[A] - before == pytest.approx(model.spent[B], rel=0.15)


def test_within_a_flow_the_order_is_that_of_arrival() -> None:
    queue: FairQueue[Item] = FairQueue(FairClock())
    first, second, third = Item(A), Item(B), Item(A)
    for one in (first, second, third):
        queue.push(one)
    assert list(queue.in_order([A, B], cost_s=1.0)) == [first, second, third]
    assert queue.remove([second, Item(B)]) == [second]
    assert queue.take(A) is first
    assert list(queue) == [third]
    assert queue.costs(shard=False) == {A: 1.0}
    assert queue.costs(shard=True) == {}


def test_the_modest_are_those_within_their_share() -> None:
    weights = Weights({"a": 3.0})
    assert modest({A: 6, B: 2}, 8, weights) == set()
    assert modest({A: 7, B: 2}, 8, weights) == {B}
    assert modest({A: 6, B: 3}, 8, weights) == {A}
    assert modest({A: 700, B: 300}, 8, weights) == set()
    assert modest({}, 8, weights) == set()


def test_virtual_times_of_the_past_are_forgotten() -> None:
    clock = FairClock()
    for n in range(5000):
        flow = Flow(f"p{n}")
        clock.begin(flow)
        clock.charge({flow: 1.0}, 0.01)
        clock.begin(flow)
    assert len(clock._at) <= 1025
