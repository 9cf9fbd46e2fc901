"""What a student classifier minimises: soft labels of a teacher, hard labels of people, features.

    L = a T^2 KL(softmax(z_t / T) || softmax(z_s / T)) + (1 - a) CE(y, z_s) + b features

T^2 keeps the gradient of the soft part at one size for every temperature. Multi-label data have one
sigmoid per class: both parts are then sums over classes of binary ones. All are means over images,
in float32 whatever the network computes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LossOptions:
    """The weights of the parts."""

    soft_weight: float
    """a; 0 learns from labels alone."""
    temperature: float
    multi_label: bool
    feature_weight: float = 0.0
    """b."""


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its parts, scalars; a part that was not asked for is None."""

    total: Tensor
    hard: Tensor
    soft: Tensor | None = None
    feature: Tensor | None = None


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits [B, K] at a temperature, in nats."""
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def softened_binary_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the classes' Bernoulli distributions, logits [B, K], summed over classes."""
    z_t, z_s = teacher.float() / temperature, student.float() / temperature
    p = torch.sigmoid(z_t)
    present = p * (F.logsigmoid(z_t) - F.logsigmoid(z_s))
    absent = (1 - p) * (F.logsigmoid(-z_t) - F.logsigmoid(-z_s))
    return temperature**2 * (present + absent).sum(dim=1).mean()


def cross_entropy(student: Tensor, hot: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K] to labels [B, K], each row with one 1, in nats."""
    return -(hot.float() * F.log_softmax(student.float(), dim=1)).sum(dim=1).mean()


def binary_cross_entropy(student: Tensor, hot: Tensor) -> Tensor:
    """Binary cross-entropy of logits [B, K] to labels 0 or 1 [B, K], summed over classes."""
    each = F.binary_cross_entropy_with_logits(student.float(), hot.float(), reduction="none")
    return each.sum(dim=1).mean()


def feature_distance(student: Tensor, teacher: Tensor, projection: nn.Linear) -> Tensor:
    """Squared distance of unit vectors: the student's [B, d], projected, and the teacher's [B, D].

    From 0 (the same direction) to 4; lengths do not count, so teachers of any scale can be matched.
    """
    ours = F.normalize(projection(student).float(), dim=1)
    theirs = F.normalize(teacher.float(), dim=1)
    return (ours - theirs).square().sum(dim=1).mean()


def distillation_losses(
    options: LossOptions,
    student: Tensor,
    hot: Tensor,
    teacher: Tensor | None = None,
    feature: Tensor | None = None,
) -> Losses:
    """The loss of logits [B, K] given labels [B, K] and, where `soft_weight` is above 0, the
    teacher's logits [B, K]. `feature` is `feature_distance`, where features are matched.
    """
    multi, a = options.multi_label, options.soft_weight
    hard = (binary_cross_entropy if multi else cross_entropy)(student, hot)
    soft, total = None, (1 - a) * hard
    if a > 0:
        assert teacher is not None, "soft labels need the teacher's logits"
        divergence = softened_binary_kl if multi else softened_kl
        soft = divergence(student, teacher, options.temperature)
        total = total + a * soft
    if feature is not None:
        total = total + options.feature_weight * feature
    return Losses(total, hard, soft, feature)
