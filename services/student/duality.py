"""Duality gap of an L1 (and optionally L2) penalised linear student with a free intercept.

The dual point comes from the residual p - q after the intercept alone is brought to its optimum
(the dual asks that residuals sum to zero), scaled until |X^T u| / n <= lambda. A convex
combination of p and q stays a probability, so the point is always feasible and the gap always a
true bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.student.design import Design
from services.student.objective import Loss, group_sum, mean_conjugate, mean_loss, probabilities

INTERCEPT_STEPS = 20
INTERCEPT_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Penalty:
    """lam * |w|_1 + l2 / 2 * |w|^2 on every weight but the intercept; allowed [K, p] limits the
    support.
    """

    lam: float
    l2: float = 0.0
    allowed: Tensor | None = None

    def value(self, coef: Tensor, loss: Loss) -> Tensor:
        """Penalty of coef [K, p], one value per group."""
        weights = coef[:, :-1]
        return group_sum(self.lam * weights.abs() + 0.5 * self.l2 * weights.square(), loss)

    def of_classes(self, classes: Tensor) -> Penalty:
        """The same penalty for a subset of classes."""
        allowed = None if self.allowed is None else self.allowed[classes]
        return Penalty(self.lam, self.l2, allowed)


def centre_intercept(logits: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Newton on the intercepts alone: the shift [K, 1] and the logits with it, residual sums at
    zero.
    """
    shift = torch.zeros(logits.shape[0], 1, dtype=logits.dtype)
    for _ in range(INTERCEPT_STEPS):
        probs = probabilities(logits + shift, loss)
        slope = (probs - targets).mean(dim=1, keepdim=True)
        if float(slope.abs().max()) < INTERCEPT_TOLERANCE:
            break
        shift = shift - _intercept_step(probs, slope, loss)
    return shift, logits + shift


def _intercept_step(probs: Tensor, slope: Tensor, loss: Loss) -> Tensor:
    if loss == "bce":
        step = slope / (probs * (1 - probs)).mean(dim=1, keepdim=True).clamp_min(1e-12)
        return step.clamp(-2.0, 2.0)
    hessian = torch.diag(probs.mean(dim=1)) - probs @ probs.T / probs.shape[1]
    # A constant added to every intercept changes nothing: the ones direction is filled in.
    filled = hessian + torch.full_like(hessian, 1.0 / len(hessian))
    damped = filled + 1e-12 * torch.eye(len(hessian), dtype=probs.dtype)
    solved: Tensor = torch.linalg.solve(damped, slope)
    return solved.clamp(-2.0, 2.0)


@dataclass(frozen=True)
class Gap:
    """Objective and duality gap per group ([K, 1] or [1, 1]), and the centred intercept shift [K,
    1].
    """

    objective: Tensor
    gap: Tensor
    shift: Tensor


def duality_gap(design: Design, coef: Tensor, targets: Tensor, penalty: Penalty, loss: Loss) -> Gap:
    """Gap of coef [K, p] against targets [K, n]; fp64. lam = l2 = 0 has no finite bound: gap is
    nan.
    """
    shift, logits = centre_intercept(design.logits(coef), targets, loss)
    objective = mean_loss(logits, targets, loss) + penalty.value(coef, loss)
    residual = probabilities(logits, loss) - targets
    slope = design.gradient(residual)[:, :-1].abs()
    if penalty.allowed is not None:
        slope = slope * penalty.allowed[:, :-1]
    if penalty.l2 > 0:
        excess = (slope - penalty.lam).clamp_min(0).square() / (2 * penalty.l2)
        points = targets + residual
        dual = -mean_conjugate(points.clamp(0, 1), loss) - group_sum(excess, loss)
        return Gap(objective, objective - dual, shift)
    if penalty.lam == 0:
        return Gap(objective, torch.full_like(objective, torch.nan), shift)
    scale = (penalty.lam / _group_max(slope, loss).clamp_min(1e-300)).clamp_max(1.0)
    points = (targets + scale * residual).clamp(0, 1)
    return Gap(objective, objective + mean_conjugate(points, loss), shift)


def _group_max(values: Tensor, loss: Loss) -> Tensor:
    if values.shape[1] == 0:
        return torch.zeros(len(values) if loss == "bce" else 1, 1, dtype=values.dtype)
    if loss == "bce":
        return values.amax(dim=1, keepdim=True)
    return values.amax().reshape(1, 1)
