"""Shapes within a budget, as near to it as the grid allows, the likeliest first.

A candidate cuts width (channels, neurons, heads), depth (layers) or both. It stands only where no
axis that its kind cuts can take one more step of the grid within the budget.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from services.common.errors import InvalidInput
from services.student.pruning.prior import Prior
from services.student.pruning.schedule import even_shares
from services.student.pruning.scores import Importance
from services.student.pruning.shape import Shape

Kind = Literal["width", "depth", "mixed"]
KINDS: tuple[Kind, ...] = ("width", "depth", "mixed")
NEAR = 0.05
"""Candidates further below the budget than this share are left out where nearer ones exist."""
_STEPS = 6
"""The hidden size has at least so many values to choose from, if 8 divides them."""


@dataclass(frozen=True)
class Grid:
    """Multiples that sizes are cut to, for fast matrix products. The hidden size is a multiple of
    the number of heads as well, which transformers demands; where the least common multiple would
    leave fewer than 6 values, its divisor is halved, down to 8."""

    hidden: int = 32
    intermediate: int = 32

    def hidden_sizes(self, base: Shape, heads: int) -> list[int]:
        """Hidden sizes from small to the base's own, for a number of heads."""
        divisor = self.hidden
        while divisor > 8 and base.hidden_size // math.lcm(divisor, heads) < _STEPS:
            divisor //= 2
        step = math.lcm(divisor, heads)
        found = list(range(step, base.hidden_size + 1, step))
        own = [] if base.hidden_size % heads else [base.hidden_size]
        return sorted({*found, *own})

    def intermediate_sizes(self, base: Shape) -> list[int]:
        """Feed-forward sizes from small to the base's own."""
        found = range(self.intermediate, base.intermediate_size + 1, self.intermediate)
        return sorted({*found, base.intermediate_size})


@dataclass(frozen=True)
class Budget:
    """What a candidate may be at most; exactly one limit is set, the others are 0."""

    max_parameters: int = 0
    """All parameters, a tied embedding once."""
    non_embedding_share: float = 0.0
    """Share of the non-embedding parameters that may stay, between 0 and 1."""
    max_bytes: int = 0
    """Bytes of the weights, at `bytes_per_parameter`."""
    bytes_per_parameter: int = 4
    share_of: int = 0
    """What `non_embedding_share` is a share of, for a model that is cut already; 0: its own."""
    rounds: int = 1
    """Rounds in which the limit is to be reached; a candidate goes an even step of the way."""

    def limit_of(self, base: Shape) -> Limit:
        """The budget as a number of parameters. Raises InvalidInput where it is none, or cuts
        nothing."""
        limits = (self.max_parameters, self.non_embedding_share, self.max_bytes)
        if sum(one != 0 for one in limits) != 1:
            raise InvalidInput(
                "budget: set one of max_parameters, non_embedding_share, max_bytes", field="budget"
            )
        if not min(limits) >= 0 or not self.non_embedding_share < 1:  # also where it is NaN
            raise InvalidInput(
                "budget: sizes must not be negative, a share lies between 0 and 1", field="budget"
            )
        if self.non_embedding_share:
            inner = int(self.non_embedding_share * (self.share_of or base.non_embedding_parameters))
            return Limit("non_embedding_share", inner, embeddings=False)
        if self.max_parameters:
            return Limit("max_parameters", self.max_parameters, embeddings=True)
        return Limit("max_bytes", self.max_bytes // self.bytes_per_parameter, embeddings=True)

    def step_of(self, base: Shape) -> Limit:
        """The limit of this round, the first of `rounds`. Raises as `limit_of`."""
        limit = self.limit_of(base)
        whole = limit.size(base)
        if self.rounds <= 1 or limit.parameters >= whole:
            return limit
        share = even_shares(limit.parameters / whole, self.rounds)[0]
        return replace(limit, parameters=int(share * whole))


@dataclass(frozen=True)
class Limit:
    """At most so many parameters, those of the embeddings counted or not."""

    field: str
    parameters: int
    embeddings: bool

    def size(self, shape: Shape) -> int:
        """What is held against the limit."""
        return shape.parameters if self.embeddings else shape.non_embedding_parameters

    def holds(self, shape: Shape) -> bool:
        """Whether a shape is within it."""
        return self.size(shape) <= self.parameters


@dataclass(frozen=True)
class Candidate:
    """A shape within the budget."""

    shape: Shape
    kind: Kind
    cost: float
    """The prior's guess: lower is likelier to lose less."""
    latency_ms: float | None = None
    """What was measured, where the budget is one of time."""


def search(
    base: Shape,
    importance: Importance,
    budget: Budget,
    *,
    grid: Grid | None = None,
    per_kind: int = 3,
) -> list[Candidate]:
    """At most `per_kind` candidates of each kind, by rising prior cost (`prior.py`).

    Raises InvalidInput where even the smallest model of the grid is over the budget, after all its
    rounds, and says its size; or where the whole model is within it.
    """
    grid = grid or Grid()
    check_possible(base, budget.limit_of(base), grid)
    limit = budget.step_of(base)
    prior = Prior.of(importance, base)
    found: list[Candidate] = []
    for kind in KINDS:
        shapes = list(_shapes(kind, base, limit, grid))
        least = limit.parameters * (1 - NEAR)
        near = [shape for shape in shapes if limit.size(shape) >= least]
        if not near and shapes:
            near = [max(shapes, key=limit.size)]
        full = [shape for shape in near if not _grows(kind, shape, base, limit, grid)]
        ranked = sorted((prior.cost(shape), at) for at, shape in enumerate(full))
        found += [Candidate(full[at], kind, cost) for cost, at in ranked[:per_kind]]
    return sorted(found, key=lambda one: one.cost)


def smallest(
    base: Shape, grid: Grid | None = None, size: Callable[[Shape], int] = lambda one: one.parameters
) -> Shape:
    """The smallest shape of the grid by `size`: one layer, and not always the fewest heads, whose
    number decides on the hidden sizes."""
    grid = grid or Grid()
    return min(
        (
            replace(
                base,
                layers=1,
                kept_layers=(),
                attention_heads=heads,
                hidden_size=grid.hidden_sizes(base, heads)[0],
                intermediate_size=grid.intermediate_sizes(base)[0],
            )
            for heads in _head_counts(base)
            if grid.hidden_sizes(base, heads)
        ),
        key=size,
    )


def check_possible(base: Shape, limit: Limit, grid: Grid) -> None:
    """Raise InvalidInput where nothing is within the limit, or everything."""
    least, field = smallest(base, grid, limit.size), f"budget.{limit.field}"
    if not limit.holds(least):
        raise InvalidInput(
            f"{field}: {limit.parameters:,} parameters are too few; the least possible is "
            f"{limit.size(least):,} ({least.said})",
            field=field,
        )
    if limit.holds(base):
        raise InvalidInput(
            f"{field}: the whole model's {limit.size(base):,} parameters are within it; nothing is "
            "to be cut",
            field=field,
        )


def _shapes(kind: Kind, base: Shape, limit: Limit, grid: Grid) -> Iterator[Shape]:
    """Shapes within the limit: for each depth, number of heads and hidden size the one with the
    most neurons."""
    if kind == "depth":
        fits = (replace(base, layers=count) for count in range(base.layers - 1, 0, -1))
        yield from [shape for shape in fits if limit.holds(shape)][:1]
        return
    depths = [base.layers] if kind == "width" else range(1, base.layers)
    neurons = grid.intermediate_sizes(base)
    for heads in _head_counts(base):
        for hidden in grid.hidden_sizes(base, heads):
            for depth in depths:
                shape = replace(base, layers=depth, attention_heads=heads, hidden_size=hidden)
                most = _most_neurons(shape, neurons, limit)
                if most and replace(most, layers=base.layers) != base:  # else nothing of its width
                    yield most


def _head_counts(base: Shape) -> range:
    """Numbers of attention heads that leave as many in each group."""
    return range(base.key_value_heads, base.attention_heads + 1, base.key_value_heads)


def _most_neurons(shape: Shape, sizes: list[int], limit: Limit) -> Shape | None:
    """The shape with as many neurons as the limit leaves room for, one of `sizes`."""
    least = replace(shape, intermediate_size=sizes[0])
    room = limit.parameters - limit.size(least)
    if room < 0:
        return None
    most = sizes[0] + room // (3 * shape.hidden_size * shape.layers)
    return replace(shape, intermediate_size=sizes[bisect_right(sizes, most) - 1])


def _grows(kind: Kind, shape: Shape, base: Shape, limit: Limit, grid: Grid) -> bool:
    """Whether one more step on an axis that the kind cuts stays within the limit."""
    if kind == "depth":
        return False
    heads = shape.attention_heads
    wider = [size for size in grid.hidden_sizes(base, heads) if size > shape.hidden_size]
    larger = [replace(shape, hidden_size=wider[0])] if wider else []
    more = heads + base.key_value_heads
    if more <= base.attention_heads and shape.hidden_size in grid.hidden_sizes(base, more):
        larger.append(replace(shape, attention_heads=more))
    if shape.layers < base.layers:
        larger.append(replace(shape, layers=shape.layers + 1))
    return any(limit.holds(one) for one in larger)
