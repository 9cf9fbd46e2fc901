"""Losses against stored targets: a few ids of the teacher's distribution per target token.

Sampled targets (RS-KD, arXiv 2503.16870) hold ids drawn with replacement, weight = count / draws,
an unbiased estimate of the softmax whose weights sum to 1. Their forward KL is, up to the teacher's
entropy, the cross-entropy over the draws; it costs one logsumexp and one gather, as plain
cross-entropy does. Top-k targets hold the k most probable ids with their probabilities, and the
rest as one tail bucket on both sides; a divergence over these k + 1 buckets never exceeds the whole
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.student.language.losses import (
    DEFAULT_BETA,
    DEFAULT_SKEW,
    Divergence,
    pointwise,
    without_autocast,
)

TAIL_FLOOR = 1e-6
"""Least probability of a tail bucket: below it float32 sums of probabilities are noise."""


@dataclass(frozen=True)
class SparseTargets:
    """Targets of n tokens, one entry behind the other; an id occurs once per row at most."""

    ids: Tensor
    """int64 [m]: vocabulary ids."""
    row: Tensor
    """int64 [m]: which of the n tokens, rising."""
    weight: Tensor
    """float32 [m]: count / draws, or probability."""
    tail: Tensor
    """float32 [n]: probability of all other ids; 0 for sampled targets."""

    def to(self, device: torch.device | str) -> SparseTargets:
        """The targets on a device."""
        parts = (self.ids, self.row, self.weight, self.tail)
        return SparseTargets(*(part.to(device, non_blocking=True) for part in parts))


def sampled_cross_entropy(
    logits: Tensor, targets: SparseTargets, *, temperature: float = 1.0
) -> Tensor:
    """-sum of weight log q over the stored ids: logits [n, V], mean over the n tokens.

    With weights that sum to 1 in each row it is KL(p || q) plus the entropy of p, in expectation
    over the draws, and so has its gradient. Times temperature squared. Returns a float32 scalar.
    """
    _check(logits, targets)
    with without_autocast(logits):
        scaled = logits if temperature == 1.0 else logits.float() / temperature
        loss: Tensor = _SparseCrossEntropy.apply(scaled, targets.ids, targets.row, targets.weight)  # type: ignore[no-untyped-call]
        return temperature**2 * loss


def bucket_divergence(
    name: Divergence,
    logits: Tensor,
    targets: SparseTargets,
    *,
    temperature: float = 1.0,
    beta: float = DEFAULT_BETA,
    skew: float = DEFAULT_SKEW,
) -> Tensor:
    """A divergence over the k stored ids and one tail bucket: logits [n, V], mean over n tokens.

    Times temperature squared; the stored probabilities are of that temperature. Returns a scalar.
    """
    _check(logits, targets)
    with without_autocast(logits):
        log_p, log_q = bucket_log_probabilities(logits, targets, temperature=temperature)
        terms = pointwise(name, log_p, log_q, beta=beta, skew=skew)
        return temperature**2 * terms.sum() / len(logits)


def bucket_log_probabilities(
    logits: Tensor, targets: SparseTargets, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log p and log q float32 [m + n]: of the m stored ids, then of the n tails."""
    scaled = logits.float() / temperature
    log_q = scaled[targets.row, targets.ids] - scaled.logsumexp(dim=-1)[targets.row]
    kept = torch.zeros(len(logits), device=logits.device).index_add(0, targets.row, log_q.exp())
    q_tail = (1.0 - kept).clamp_min(TAIL_FLOOR).log()
    p_tail = targets.tail.clamp_min(TAIL_FLOOR).log()
    return torch.cat([targets.weight.log(), p_tail]), torch.cat([log_q, q_tail])


class _SparseCrossEntropy(torch.autograd.Function):
    """Keeps logits in the type they came in and makes one [n, V] tensor for the gradient,
    softmax * sum(weight) - weight, where autograd would make three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, row: Tensor, weight: Tensor) -> Tensor:
        log_sum = logits.float().logsumexp(dim=-1)
        total = torch.zeros_like(log_sum).index_add_(0, row, weight)
        ctx.save_for_backward(logits, ids, row, weight, log_sum, total)
        picked = (weight * logits[row, ids].float()).sum()
        return ((total * log_sum).sum() - picked) / len(logits)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, ids, row, weight, log_sum, total = ctx.saved_tensors
        grad = (
            logits.float().sub_(log_sum[:, None])
            if logits.dtype != torch.float32
            else (logits - log_sum[:, None])
        )
        grad.exp_().mul_(total[:, None])
        grad.index_put_((row, ids), -weight, accumulate=True)
        grad.mul_(upstream[0] / len(logits))
        return grad.to(logits.dtype), None, None, None


def _check(logits: Tensor, targets: SparseTargets) -> None:
    if logits.ndim != 2 or len(logits) != len(targets.tail) or not len(logits):
        raise ValueError(f"logits {tuple(logits.shape)} for {len(targets.tail)} target tokens")
