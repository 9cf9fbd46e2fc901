"""Losses against stored targets: a few ids of the teacher's distribution per target token.

Sampled targets (RS-KD, arXiv 2503.16870) hold ids drawn with replacement, weight = count / draws,
an unbiased estimate of the softmax whose weights sum to 1. Their forward KL is, up to the teacher's
entropy, the cross-entropy over the draws; it costs one logsumexp and one gather, as plain
cross-entropy does. Top-k targets hold the k most probable ids with their probabilities, and the
rest as one tail bucket on both sides; a divergence over these k + 1 buckets never exceeds the whole
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
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

ROWS = 128
"""Rows in work at a time: few enough to stay out of fresh memory."""
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
        loss: Tensor = _SparseCrossEntropy.apply(scaled, targets)  # type: ignore[no-untyped-call]
        return temperature**2 * loss


def entropy(targets: SparseTargets) -> Tensor:
    """Entropy of the stored weights in nats, mean over the n tokens: what no student can take from
    `sampled_cross_entropy`. Returns a scalar."""
    return -(targets.weight * targets.weight.log()).sum() / len(targets.tail)


def label_targets(labels: Tensor) -> SparseTargets:
    """Targets that say each label [n] with certainty: their loss is plain cross-entropy."""
    ones = torch.ones(len(labels), device=labels.device)
    row = torch.arange(len(labels), device=labels.device)
    return SparseTargets(labels, row, ones, torch.zeros_like(ones))


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

    def summed(part: Tensor, some: SparseTargets) -> Tensor:
        log_p, log_q = bucket_log_probabilities(part, some, temperature=temperature)
        return pointwise(name, log_p, log_q, beta=beta, skew=skew).sum()

    with without_autocast(logits):
        loss: Tensor = _RowByRow.apply(logits, targets, summed)  # type: ignore[no-untyped-call]
        return temperature**2 * loss


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


def sparse_uld(logits: Tensor, targets: SparseTargets, *, temperature: float = 1.0) -> Tensor:
    """Universal logit distillation (arXiv 2402.12030) against the most probable ids of another
    vocabulary: logits [n, V], mean over the tokens that have ids stored.

    Both distributions are sorted downward and their absolute differences summed. What the teacher
    gave to all other ids counts as zeros, so the student's share past the k stored places is added
    whole; the sum over all V places is thereby exact, though its k largest alone are looked for.
    Times temperature squared. Returns a scalar.
    """
    _check(logits, targets)
    aligned = int(torch.bincount(targets.row).gt(0).sum())

    def summed(part: Tensor, some: SparseTargets) -> Tensor:
        return _sorted_differences((part / temperature).softmax(dim=-1), some).sum()

    with without_autocast(logits):
        loss: Tensor = _RowByRow.apply(logits, targets, summed)  # type: ignore[no-untyped-call]
        return temperature**2 * (len(logits) / max(aligned, 1)) * loss


def _sorted_differences(q: Tensor, targets: SparseTargets) -> Tensor:
    """Sum over sorted places of |p - q| for q [rows, V], 0 where a row has no ids: [rows]."""
    p, counts = _sorted_weights(targets)
    places = min(p.shape[1], q.shape[1])
    top = q.topk(places, dim=-1).values
    differences = (p[:, :places] - top).abs().sum(dim=-1) + p[:, places:].sum(dim=-1)
    rest = 1.0 - top.sum(dim=-1)
    return torch.where(counts > 0, differences + rest, 0.0)


def _sorted_weights(targets: SparseTargets) -> tuple[Tensor, Tensor]:
    """The weights of each row, falling and filled with zeros, [rows, the most there are]; and how
    many each has."""
    counts = torch.bincount(targets.row, minlength=len(targets.tail))
    place = torch.arange(len(targets.row), device=counts.device)
    place = place - (counts.cumsum(0) - counts)[targets.row]
    weights = torch.zeros(len(counts), max(int(counts.max()), 1), device=counts.device)
    weights[targets.row, place] = targets.weight
    return weights.sort(dim=-1, descending=True).values, counts


class _RowByRow(torch.autograd.Function):
    """The mean over rows of a loss, and in the same pass its gradient, some rows at a time.

    One tensor in the type of the logits is all that is kept, where autograd would keep several in
    float32. `summed` gives the summed loss of some rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: SparseTargets,
        summed: Callable[[Tensor, SparseTargets], Tensor],
    ) -> Tensor:
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=logits.device)
        for rows, some in slices(targets):
            part = logits[rows].to(torch.float32, copy=True)
            if grad is None:
                total += summed(part, some)
                continue
            with torch.enable_grad():
                part.requires_grad_()
                loss = summed(part, some)
            total += loss.detach()
            grad[rows] = torch.autograd.grad(loss, part)[0].div_(len(logits))
        ctx.save_for_backward(grad)
        return total / len(logits)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad if bool(upstream[0] == 1) else grad * upstream[0], None, None


class _SparseCrossEntropy(torch.autograd.Function):
    """The same for the cross-entropy over stored ids, whose gradient, softmax * sum(weight) -
    weight, is made in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: SparseTargets) -> Tensor:
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), device=logits.device)
        for rows, some in slices(targets):
            part = logits[rows].to(torch.float32, copy=True)
            total += _forward_rows(part, some.ids, some.row, some.weight)
            if grad is not None:
                grad[rows] = part.div_(len(logits))
        ctx.save_for_backward(grad)
        return total / len(logits)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad if bool(upstream[0] == 1) else grad * upstream[0], None


def slices(targets: SparseTargets) -> Iterator[tuple[slice, SparseTargets]]:
    """Some rows and their targets, numbered from 0, at a time."""
    count = len(targets.tail)
    starts = torch.arange(0, count + ROWS, ROWS, device=targets.row.device)
    ends = torch.searchsorted(targets.row, starts).tolist()
    for at, (begin, end) in enumerate(pairwise(ends)):
        rows = slice(at * ROWS, (at + 1) * ROWS)
        row = targets.row[begin:end] - at * ROWS
        yield (
            rows,
            SparseTargets(
                targets.ids[begin:end], row, targets.weight[begin:end], targets.tail[rows]
            ),
        )


def _forward_rows(part: Tensor, ids: Tensor, row: Tensor, weight: Tensor) -> Tensor:
    """The summed loss of float32 logits [rows, V], which become its gradient in place."""
    picked = (weight * part[row, ids]).sum()
    highest = part.amax(dim=-1, keepdim=True)
    sums = part.sub_(highest).exp_().sum(dim=-1)
    weights = torch.zeros_like(sums).index_add_(0, row, weight)
    part.mul_((weights / sums)[:, None])
    part.index_put_((row, ids), -weight, accumulate=True)
    return (weights * (highest[:, 0] + sums.log())).sum() - picked


def _check(logits: Tensor, targets: SparseTargets) -> None:
    if logits.ndim != 2 or len(logits) != len(targets.tail) or not len(logits):
        raise ValueError(f"logits {tuple(logits.shape)} for {len(targets.tail)} target tokens")
