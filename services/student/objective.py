"""The losses of linear students, class-major: logits, targets and residuals are [K, n].

A *group* is a set of classes whose objective is one number: with "bce" every class is a group of
its own ([K, 1]), with "softmax" all classes are one group ([1, 1]). Sums over a group keep
dimensions, so the solver broadcasts either shape over [K, n] and [K, p] without asking which loss
it is.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = Literal["bce", "softmax"]


def group_sum(values: Tensor, loss: Loss) -> Tensor:
    """Sum [K, n] (or [K, p]) over each group: [K, 1] for "bce", [1, 1] for "softmax"."""
    if loss == "bce":
        return values.sum(dim=1, keepdim=True)
    return values.sum().reshape(1, 1)


def probabilities(logits: Tensor, loss: Loss) -> Tensor:
    """Sigmoid or softmax over classes of logits [K, n]."""
    return torch.sigmoid(logits) if loss == "bce" else torch.softmax(logits, dim=0)


def mean_loss(logits: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Mean cross-entropy over the n items to soft targets [K, n], one value per group."""
    items = logits.shape[1]
    if loss == "bce":
        return (softplus(logits) - targets * logits).sum(dim=1, keepdim=True) / items
    mass = targets.sum(dim=0)
    total = (mass * torch.logsumexp(logits, dim=0)).sum() - (targets * logits).sum()
    return total.reshape(1, 1) / items


def mean_conjugate(points: Tensor, loss: Loss) -> Tensor:
    """Mean conjugate of the item losses at dual points a = q + u (in [0, 1], or in the simplex)."""
    items = points.shape[1]
    values = torch.xlogy(points, points)
    if loss == "bce":
        values = values + torch.xlogy(1 - points, 1 - points)
    return group_sum(values, loss) / items


def check_targets(targets: Tensor, loss: Loss) -> None:
    """Refuse targets [K, n] that are not soft responses of that loss (ValueError)."""
    if targets.ndim != 2 or targets.numel() == 0:
        raise ValueError("targets must be a non-empty [items, classes] matrix")
    if not bool(torch.isfinite(targets).all()):
        raise ValueError("targets hold a value that is not finite")
    if bool((targets < 0).any()) or bool((targets > 1).any()):
        raise ValueError("targets must lie in [0, 1]")
    if loss == "softmax" and not torch.allclose(
        targets.sum(dim=0), torch.ones((), dtype=targets.dtype), atol=1e-3
    ):
        raise ValueError("softmax targets must sum to one for every item")
