"""Dense linear fits: mean cross-entropy to soft targets + l2 / 2 * |W|^2, free intercepts.

The Hessian never exceeds c X^T X / n + l2 (c = 1/4 for sigmoid, 1/2 for softmax). One inverse of
that bound turns correlated columns into a well-conditioned problem, on which accelerated gradient
steps of length one need no line search.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.student.design import Design
from services.student.newton import Problem
from services.student.objective import Loss, probabilities
from services.student.path import path_problem

MAX_STEPS = 500
FREE = 1e-9


def fit_ridge(
    design: Design,
    targets: npt.NDArray[np.floating],
    loss: Loss,
    l2: float,
    tolerance: float = 1e-5,
    start: Tensor | None = None,
) -> Tensor:
    """Coefficients [K, p], intercept last, of soft responses [n, K]; gradient within tolerance.
    `start`, by default zeros, are coefficients to begin with: those of a like fit save steps.

    ValueError unless l2 is positive, or for targets that are no responses.
    """
    if not (math.isfinite(l2) and l2 > 0):
        raise ValueError("l2 must be positive and finite")
    problem = path_problem(design, targets, loss)
    ridge = torch.full((design.width,), l2, dtype=torch.float64)
    ridge[-1] = 0
    inverse = _bound_inverse(design, ridge, 0.25 if loss == "bce" else 0.5)
    if start is None:
        start = torch.zeros(len(problem.targets), design.width, dtype=torch.float64)
    return _accelerate(problem, ridge, inverse, tolerance, start)


def _bound_inverse(design: Design, ridge: Tensor, share: float) -> Tensor:
    bound = share / design.items * design.gram()
    bound.diagonal().add_(ridge + FREE)
    return torch.cholesky_inverse(torch.linalg.cholesky(bound))


def _accelerate(
    problem: Problem, ridge: Tensor, inverse: Tensor, tolerance: float, start: Tensor
) -> Tensor:
    coef = ahead = start
    pace = 1.0
    for _ in range(MAX_STEPS):
        logits = problem.design.logits(ahead)
        residual = probabilities(logits, problem.loss) - problem.targets
        slope = problem.design.gradient(residual) + ridge * ahead
        if float(slope.abs().max()) <= tolerance:
            return ahead
        following = ahead - slope @ inverse
        if float((slope * (following - coef)).sum()) > 0:
            pace = 1.0
        after = 0.5 * (1 + math.sqrt(1 + 4 * pace * pace))
        ahead = following + (pace - 1) / after * (following - coef)
        coef, pace = following, after
    return coef
