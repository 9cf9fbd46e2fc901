"""Shapes that run within a time, by a function of the caller's that measures one.

Time is no formula of the sizes, and measuring is dear. So for each kind of cut the search halves
the range of sizes in which its likeliest candidate is just fast enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from services.common.errors import InvalidInput
from services.student.pruning.scores import Importance
from services.student.pruning.search import (
    KINDS,
    Budget,
    Candidate,
    Grid,
    Kind,
    search,
    smallest,
)
from services.student.pruning.shape import Shape

Measure = Callable[[Shape], float]
"""Seconds of whatever the caller cares for: a forward pass, a token, ..."""


def search_latency(
    base: Shape,
    importance: Importance,
    max_seconds: float,
    measure: Measure,
    *,
    grid: Grid | None = None,
    rounds: int = 7,
) -> list[Candidate]:
    """One candidate of each kind of cut that runs within `max_seconds`, by rising prior cost; none
    of a kind that cannot. A shape is measured once, at most `rounds` shapes of each kind.

    Raises InvalidInput where even the smallest shape is too slow, and says how slow, or where the
    whole model is fast enough.
    """
    times: dict[Shape, float] = {}

    def timed(shape: Shape) -> float:
        if shape not in times:
            times[shape] = measure(shape)
        return times[shape]

    least = smallest(base, grid)
    for shape, wrong, why in (
        (least, timed(least) > max_seconds, "the least possible"),
        (base, timed(base) <= max_seconds, "nothing is to be cut: what the whole model takes"),
    ):
        if wrong:
            raise InvalidInput(
                f"budget.max_seconds: {max_seconds:g} s; {why} is {timed(shape):g} s",
                field="budget.max_seconds",
            )
    sizes = (least.parameters, base.parameters - 1)
    found = [
        _fastest(kind, sizes, rounds, max_seconds, timed, _likeliest(base, importance, kind, grid))
        for kind in KINDS
    ]
    return sorted((one for one in found if one is not None), key=lambda one: one.cost)


def _likeliest(
    base: Shape, importance: Importance, kind: Kind, grid: Grid | None
) -> Callable[[int], Candidate | None]:
    """The first candidate of a kind by size in parameters, if there is one."""

    def at(parameters: int) -> Candidate | None:
        budget = Budget(max_parameters=parameters)
        some = search(base, importance, budget, grid=grid, per_kind=1)
        return next((one for one in some if one.kind == kind), None)

    return at


def _fastest(
    kind: Kind,
    sizes: tuple[int, int],
    rounds: int,
    max_seconds: float,
    timed: Measure,
    likeliest: Callable[[int], Candidate | None],
) -> Candidate | None:
    """The largest candidate found within the time, taking larger ones to be slower."""
    (low, high), best = sizes, None
    for _ in range(rounds):
        middle = (low + high) // 2
        one = likeliest(middle)
        if one is None:  # the kind reaches no size so small
            low = middle + 1
        elif timed(one.shape) <= max_seconds:
            best, low = replace(one, seconds=timed(one.shape)), middle + 1
        else:
            high = min(middle, one.shape.parameters) - 1
        if low > high:
            break
    return best
