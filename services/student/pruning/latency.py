"""Shapes that run within a time, by a function of the caller's that measures one.

Time is no formula of the sizes, and measuring is dear. So for each kind of cut the search halves
the range of sizes in which its likeliest candidate is just fast enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from services.common.errors import InvalidInput
from services.student.pruning.prior import Prior
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
"""Milliseconds of whatever the caller cares for: a forward pass, a token, ..."""
_FIELD = "budget.max_latency_ms"


def search_latency(
    base: Shape,
    importance: Importance,
    max_latency_ms: float,
    measure: Measure,
    *,
    grid: Grid | None = None,
    rounds: int = 7,
) -> list[Candidate]:
    """One candidate of each kind of cut that runs within `max_latency_ms`, by rising prior cost;
    none of a kind that cannot; the smallest shape where none of any kind was found. A shape is
    measured once, at most `rounds` shapes of each kind.

    Raises InvalidInput where even the smallest shape is too slow, and says how slow, or where the
    whole model is fast enough.
    """
    times: dict[Shape, float] = {}

    def timed(shape: Shape) -> float:
        if shape not in times:
            times[shape] = measure(shape)
        return times[shape]

    check_latency(base, max_latency_ms, timed, grid=grid)
    least = smallest(base, grid)
    sizes, most = (least.parameters, base.parameters - 1), max_latency_ms
    tried = [
        _fastest(kind, sizes, rounds, most, timed, _likeliest(base, importance, kind, grid))
        for kind in KINDS
    ]
    found = [one for one in tried if one is not None]
    if not found:
        kind: Kind = "width" if least.layers == base.layers else "mixed"
        cost = Prior.of(importance, base).cost(least)
        found = [Candidate(least, kind, cost, timed(least))]
    return sorted(found, key=lambda one: one.cost)


def check_latency(
    base: Shape, max_latency_ms: float, measure: Measure, *, grid: Grid | None = None
) -> None:
    """Measure the smallest shape and the whole model; raise InvalidInput where nothing runs within
    `max_latency_ms`, or everything."""
    least, why = smallest(base, grid), ""
    if (least_ms := measure(least)) > max_latency_ms:
        why = f"the least possible ({least.said}) takes {least_ms:.3g} ms"
    elif (whole_ms := measure(base)) <= max_latency_ms:
        why = f"nothing is to be cut: the whole model takes {whole_ms:.3g} ms"
    if why:
        raise InvalidInput(f"{_FIELD}: {max_latency_ms:g} ms is asked for; {why}", field=_FIELD)


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
    max_latency_ms: float,
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
        elif timed(one.shape) <= max_latency_ms:
            best, low = replace(one, latency_ms=timed(one.shape)), middle + 1
        else:
            high = min(middle, one.shape.parameters) - 1
        if low > high:
            break
    return best
