"""Which layers, channels, neurons and heads of a model to keep: the important ones, or any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.student.pruning.scores import Importance
from services.student.pruning.shape import Shape


@dataclass(frozen=True)
class Kept:
    """Indices into the larger model, int64 on the CPU, rising along the last axis. L' layers stay;
    the rows of neurons and heads are theirs, in order."""

    layers: tuple[int, ...]
    channels: Tensor
    """[hidden_size']."""
    neurons: Tensor
    """[L', intermediate_size']."""
    heads: Tensor
    """[L', attention_heads'], as many of each key/value group."""


def choose(importance: Importance, base: Shape, shape: Shape) -> Kept:
    """The most important parts. Ties go to the lower index. Layers are chosen by perplexity where
    it was measured, unless the shape names them.

    Raises InvalidInput where `shape` does not fit into `base`, Precondition where the importance is
    of another model.
    """
    importance.check_of(base)
    shape.check_within(base)
    layers = shape.kept_layers or tuple(sorted(importance.layer_order[: shape.layers]))
    return _keep(importance.neurons, importance.heads, importance.channels, layers, base, shape)


def choose_at_random(base: Shape, shape: Shape, seed: int) -> Kept:
    """Any parts, by seed: the control that says what the importance is worth.

    Raises InvalidInput where `shape` does not fit into `base`.
    """
    shape.check_within(base)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(base.layers, generator=generator)[: shape.layers]
    neurons, heads, channels = (
        torch.rand(size, generator=generator)
        for size in (
            (base.layers, base.intermediate_size),
            (base.layers, base.attention_heads),
            (base.hidden_size,),
        )
    )
    layers = shape.kept_layers or tuple(sorted(int(at) for at in order))
    return _keep(neurons, heads, channels, layers, base, shape)


def _keep(
    neurons: Tensor,
    heads: Tensor,
    channels: Tensor,
    layers: tuple[int, ...],
    base: Shape,
    shape: Shape,
) -> Kept:
    rows = list(layers)
    grouped = heads[rows].reshape(-1, base.key_value_heads, base.queries_per_group)
    first = torch.arange(base.key_value_heads)[:, None] * base.queries_per_group
    return Kept(
        layers,
        _top(channels, shape.hidden_size),
        _top(neurons[rows], shape.intermediate_size),
        (_top(grouped, shape.queries_per_group) + first).flatten(1),
    )


def _top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores along the last axis, rising."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values
