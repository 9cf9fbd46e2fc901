"""Losses of language students over whole distributions, in nats, as means over target tokens.

p is the teacher, q the student. Every function takes logits [..., V] and an optional mask [...] of
the target tokens, and computes in float32 whatever autocast says. A distillation temperature T
divides both logits, and the loss is multiplied by T squared, which keeps the size of its gradient
(Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

Divergence = Literal["forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl"]
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
DEFAULT_BETA = 0.5
DEFAULT_SKEW = 0.1


def cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """-log q(label): logits [..., V] of any float type, labels [...] int64. Returns a scalar."""
    rows, labels = _rows(logits, mask), _rows(labels.unsqueeze(-1), mask).squeeze(-1)
    with without_autocast(rows):
        return functional.cross_entropy(rows.float(), labels)


def divergence(
    name: Divergence,
    logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    beta: float = DEFAULT_BETA,
    skew: float = DEFAULT_SKEW,
) -> Tensor:
    """Divergence of student and teacher logits [..., V] over one vocabulary. Returns a scalar.

    Raises ValueError for an unknown name, another vocabulary, or beta or skew outside 0 to 1.
    """
    if logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(f"vocabularies of {logits.shape[-1]} and {teacher_logits.shape[-1]} ids")
    student, teacher = _rows(logits, mask), _rows(teacher_logits, mask)
    with without_autocast(student):
        log_q = functional.log_softmax(student.float() / temperature, dim=-1)
        log_p = functional.log_softmax(teacher.float() / temperature, dim=-1)
        terms = pointwise(name, log_p, log_q, beta=beta, skew=skew)
        return temperature**2 * terms.sum(dim=-1).mean()


def pointwise(
    name: Divergence, log_p: Tensor, log_q: Tensor, *, beta: float, skew: float
) -> Tensor:
    """What each event adds to a divergence of distributions given as log-probabilities.

    forward_kl KL(p || q); reverse_kl KL(q || p); jsd of GKD (arXiv 2306.13649) with
    m = beta p + (1 - beta) q: beta KL(p || m) + (1 - beta) KL(q || m), and, as GKD has it, forward
    KL for beta 0 and reverse KL for beta 1; skewed_kl KL(p || skew p + (1 - skew) q) and
    skewed_reverse_kl KL(q || skew q + (1 - skew) p) of DistiLLM (arXiv 2402.03898).
    """
    for what, share in (("beta", beta), ("skew", skew)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{what} must be from 0 to 1, got {share}")
    if name == "forward_kl" or (name == "jsd" and beta == 0.0):
        return _kl(log_p, log_q)
    if name == "reverse_kl" or (name == "jsd" and beta == 1.0):
        return _kl(log_q, log_p)
    if name == "jsd":
        log_m = _mixture(log_p, log_q, beta)
        return beta * _kl(log_p, log_m) + (1.0 - beta) * _kl(log_q, log_m)
    if name == "skewed_kl":
        return _kl(log_p, _mixture(log_p, log_q, skew))
    if name == "skewed_reverse_kl":
        return _kl(log_q, _mixture(log_q, log_p, skew))
    raise ValueError(f"{name!r} is none of {DIVERGENCES}")


def intermediate_loss(
    states: Sequence[Tensor], teacher_states: Sequence[Tensor], projection: Tensor | None = None
) -> Tensor:
    """1 - cosine of hidden states, the mean over tokens and layers (the default of NVIDIA's
    ModelOpt). Of each layer [N, h] and [N, H] of N tokens; `projection` [H, h] takes the student's
    to the teacher's width. The teacher's get no gradient. Returns a scalar.

    Raises ValueError for other numbers of layers, or none.
    """
    if len(states) != len(teacher_states) or not states:
        raise ValueError(f"states of {len(states)} and {len(teacher_states)} layers")
    with without_autocast(states[0]):
        apart = []
        for mine, its in zip(states, teacher_states, strict=True):
            taken = mine.float() if projection is None else mine.float() @ projection.float().T
            cosines = functional.cosine_similarity(taken, its.detach().float(), dim=-1)
            apart.append((1 - cosines).mean())
        return torch.stack(apart).mean()


def balanced(
    loss: Tensor, other: Tensor, *, size: Tensor | None = None, other_size: Tensor | None = None
) -> Tensor:
    """loss + alpha other, where alpha = size / other_size, held constant, gives both the same
    weight; sizes are the losses themselves where they are not given. All are scalars."""
    size = loss if size is None else size
    over = other if other_size is None else other_size
    alpha = (size / over.clamp_min(torch.finfo(torch.float32).tiny)).detach()
    return loss + torch.where(over > 0, alpha, torch.zeros_like(alpha)) * other


def uld(
    logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """Universal logit distillation (arXiv 2402.12030): logits [..., V] and [..., W] of two
    vocabularies. Both softmaxes are sorted downward, the shorter is filled with zeros, and the
    absolute differences are summed. Returns a scalar.
    """
    student, teacher = _rows(logits, mask), _rows(teacher_logits, mask)
    with without_autocast(student):
        q = (student.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True).values
        p = (teacher.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True).values
        size = max(p.shape[-1], q.shape[-1])
        p = functional.pad(p, (0, size - p.shape[-1]))
        q = functional.pad(q, (0, size - q.shape[-1]))
        return temperature**2 * (p - q).abs().sum(dim=-1).mean()


def without_autocast(like: Tensor) -> torch.autocast:
    """A context in which operations on `like`'s device keep the type they are given."""
    return torch.autocast(like.device.type, enabled=False)


def _rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """The rows [n, V] of values [..., V] where the mask [...] is true. ValueError where none is."""
    rows = values.flatten(0, -2) if mask is None else values[mask.bool()]
    if not len(rows):
        raise ValueError("there are no target tokens")
    return rows


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """a (log a - log b), and 0 where a is 0."""
    terms = log_a.exp() * (log_a - log_b)
    return torch.where(log_a == -math.inf, torch.zeros_like(terms), terms)


def _mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b)."""
    if share in (0.0, 1.0):
        return log_a if share else log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))
