"""A guess, before any training, of what a cut costs: it orders candidates and promises nothing.

    cost = sum over axes of weight * -ln(share of the axis' importance that is kept)

Minitron's experiments (arXiv 2407.14679, 2408.11796) and NVIDIA's guide order the axes: neurons of
the feed-forward layers are the least sensitive, then heads and channels; width is preferred over
depth. How far apart they are is set, roughly, by SmolLM2-135M: how much faster than with neurons
the log of its perplexity rose with the loss on an axis, one axis cut at a time, nothing trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from services.student.pruning.scores import Importance
from services.student.pruning.shape import Shape

NEURON_WEIGHT = 1.0
HEAD_WEIGHT = 3.0
CHANNEL_WEIGHT = 4.0
LAYER_WEIGHT = 7.0


@dataclass(frozen=True)
class Prior:
    """Shares of importance kept, by how many parts are; each list begins with none kept."""

    layers: list[float]
    channels: list[float]
    neurons: list[float]
    queries_per_group: list[float]

    @classmethod
    def of(cls, importance: Importance, base: Shape) -> Prior:
        """The shares where the most important parts are kept. Raises Precondition where the
        importance is of another model."""
        importance.check_of(base)
        grouped = importance.heads.reshape(-1, base.queries_per_group)
        return cls(
            layers=_shares(importance.layers[importance.layer_order][None]),
            channels=_shares(_sorted(importance.channels[None])),
            neurons=_shares(_sorted(importance.neurons)),
            queries_per_group=_shares(_sorted(grouped)),
        )

    def cost(self, shape: Shape) -> float:
        """What cutting to `shape` may cost: 0 for the whole model, more for more. Layers that the
        shape names count as the best ones."""
        return (
            NEURON_WEIGHT * _loss(self.neurons[shape.intermediate_size])
            + HEAD_WEIGHT * _loss(self.queries_per_group[shape.queries_per_group])
            + CHANNEL_WEIGHT * _loss(self.channels[shape.hidden_size])
            + LAYER_WEIGHT * _loss(self.layers[shape.layers])
        )


def _sorted(scores: Tensor) -> Tensor:
    return scores.sort(dim=-1, descending=True).values


def _shares(scores: Tensor) -> list[float]:
    """Mean over rows [R, N] of the share that the first n scores have of all, for n from 0 to N."""
    sums = scores.double().clamp_min(0).cumsum(dim=-1)
    shares = (sums / sums[:, -1:].clamp_min(1e-30)).mean(dim=0)
    return [0.0, *torch.clamp(shares, max=1.0).tolist()]


def _loss(share: float) -> float:
    return -math.log(max(share, 1e-9))
