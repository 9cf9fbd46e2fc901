"""Accelerated proximal gradient for all classes at once, when too many coordinates are in play.

Two matrix products an iteration serve every class. The step size follows the curvature met on the
way (measured from the logits, so it costs no objective value), momentum restarts when it points
uphill.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.student.design import Design
from services.student.duality import Penalty
from services.student.objective import Loss, group_sum, probabilities

SHRINK = 0.95
TOLERATED = 1.3
CEILING = 1.1
SAFETY = 1.1


@dataclass(frozen=True)
class Momentum:
    """Everything an iteration reads: coef and its predecessor [K, p], pace and curvature per class
    [K, 1].
    """

    coef: Tensor
    previous: Tensor
    pace: Tensor
    curvature: Tensor

    def of_classes(self, classes: Tensor) -> Momentum:
        """The state of a subset of classes."""
        return Momentum(*(t[classes] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in a fixed order."""
        return self.coef, self.previous, self.pace, self.curvature

    def cast(self, dtype: torch.dtype) -> Momentum:
        """The same state in another float type."""
        return Momentum(*(t.to(dtype) for t in self.tensors()))


def at_rest(coef: Tensor, design: Design, loss: Loss) -> Momentum:
    """A start without momentum at coef [K, p]."""
    ones = torch.ones(len(coef), 1, dtype=coef.dtype)
    return Momentum(coef, coef, ones, ones * curvature_bound(design, loss))


def curvature_bound(design: Design, loss: Loss) -> float:
    """The largest curvature the mean loss can have anywhere on this design."""
    return design.curvature() * (0.25 if loss == "bce" else 0.5)


def run_fista(
    design: Design,
    state: Momentum,
    targets: Tensor,
    penalty: Penalty,
    loss: Loss,
    iterations: int,
) -> Momentum:
    """That many iterations in the dtype of targets [K, n]; deterministic in the state alone."""
    dtype = targets.dtype
    state = state.cast(dtype)
    logits, before = design.logits(state.coef), design.logits(state.previous)
    shrinkage = torch.full((1, design.width), penalty.lam, dtype=dtype)
    ridge = torch.full((1, design.width), penalty.l2, dtype=dtype)
    # Rounding can make a tiny step look sharply bent; the true curvature never passes this bound.
    ceiling = CEILING * (curvature_bound(design, loss) + penalty.l2)
    shrinkage[:, -1] = 0
    ridge[:, -1] = 0
    for _ in range(iterations):
        following = 0.5 * (1 + torch.sqrt(1 + 4 * state.pace.square()))
        push = (state.pace - 1) / following
        ahead = state.coef + push * (state.coef - state.previous)
        ahead_logits = logits + push * (logits - before)
        probs = probabilities(ahead_logits, loss)
        slope = design.gradient(probs - targets) + ridge * ahead
        curvature = state.curvature
        while True:
            moved = ahead - slope / curvature
            coef = moved.sign() * (moved.abs() - shrinkage / curvature).clamp_min(0)
            if penalty.allowed is not None:
                coef = coef * penalty.allowed
            reached = design.logits(coef)
            step, bend = coef - ahead, reached - ahead_logits
            met = _curvature_met(probs, bend, step, loss, design.items) + penalty.l2
            needed = (met * SAFETY).clamp_max(ceiling)
            short = needed > curvature * TOLERATED
            if not bool(short.any()):
                break
            curvature = torch.where(short, needed, curvature)
        uphill = group_sum(step * (coef - state.coef), loss) < 0
        pace = torch.where(uphill, torch.ones_like(following), following)
        relaxed = torch.maximum(curvature * SHRINK, needed)
        # Without momentum the next look-ahead is coef itself: pace 1 makes its push zero.
        before, logits = logits, reached
        state = replace(state, coef=coef, previous=state.coef, pace=pace, curvature=relaxed)
    return state


def _curvature_met(probs: Tensor, bend: Tensor, step: Tensor, loss: Loss, items: int) -> Tensor:
    """d'Hd / d'd along the step, with the Hessian at the look-ahead point; one value per group."""
    if loss == "bce":
        quadratic = (probs * (1 - probs) * bend.square()).sum(dim=1, keepdim=True)
    else:
        mean = (probs * bend).sum(dim=0)
        quadratic = ((probs * bend.square()).sum() - mean.square().sum()).reshape(1, 1)
    size = group_sum(step.square(), loss)
    return quadratic / items / size.clamp_min(1e-30)
