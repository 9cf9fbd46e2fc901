"""The segment rule as TorchScript, so that a whole encoder exports to one ONNX graph (a Loop).

Step for step what `segments.cluster_tokens` does for one image; tests compare the two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor


def _cluster(tokens: Tensor, touching: Tensor, merges: int) -> Tensor:
    """Owner of each token, int64 [N]: the smallest token of its segment. Tokens fp32 [N, D]."""
    count = tokens.shape[0]
    unit = tokens / tokens.norm(2.0, [1], True).clamp(min=1e-12)
    distance = (1.0 - unit @ unit.t()).clamp(min=0.0)
    index = torch.arange(count)
    owner = torch.arange(count)
    size = torch.ones(count)
    far = torch.full((1,), float("inf"))
    for _ in range(merges):
        cost = torch.where(touching > 0, distance, far)
        pair = torch.argmin(cost.reshape(-1), dim=0)
        first, second = torch.div(pair, count, rounding_mode="floor"), pair % count
        keep, gone = torch.minimum(first, second), torch.maximum(first, second)
        is_keep, is_gone = (index == keep).float(), (index == gone).float()
        n_i, n_j = (size * is_keep).sum(), (size * is_gone).sum()
        # Rows are picked by sums over one-hot vectors: products with one, sums with zeros: exact.
        d_keep = (distance * is_keep.unsqueeze(1)).sum(dim=0)
        d_gone = (distance * is_gone.unsqueeze(1)).sum(dim=0)
        between = (d_keep * is_gone).sum()
        merged = ((n_i + size) * d_keep + (n_j + size) * d_gone - size * between) / (
            n_i + n_j + size
        )
        near = (touching * (is_keep + is_gone).unsqueeze(1)).sum(dim=0).clamp(max=1.0)
        near = near * (1.0 - is_keep) * (1.0 - is_gone)
        stays = 1.0 - is_keep - is_gone
        both = stays.unsqueeze(1) * stays.unsqueeze(0)
        cross = is_keep.unsqueeze(1) * (merged * stays).unsqueeze(0)
        distance = distance * both + cross + cross.t()
        link = is_keep.unsqueeze(1) * near.unsqueeze(0)
        touching = touching * both + link + link.t()
        size = size + is_keep * n_j
        owner = torch.where(owner == gone, keep, owner)
    return owner


def cluster_script() -> Callable[[Tensor, Tensor, int], Tensor]:
    """The rule compiled, so that an exporter sees its loop: (tokens fp32 [N, D], touching fp32 [N,
    N] of 0 and 1, merges) to owners.
    """
    with warnings.catch_warnings():
        # TorchScript is on its way out, yet the only form whose loops become an ONNX Loop.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cast("Callable[[Tensor, Tensor, int], Tensor]", torch.jit.script(_cluster))
