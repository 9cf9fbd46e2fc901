"""From dense to sparse: the lambda path, the exact budget of weights, the refit on the support.

lambda falls geometrically from the value at which every weight is zero, each point warm-started
from the last. At the first point whose NEC (mean number of weights a class, |w| > 1e-5) reaches a
budget the largest weights are kept, exactly as many as the budget allows, and refitted without L1
shrinkage (VLG-CBM's rule). Students, random controls and probes all go through this one function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.student.design import Design, as_float64
from services.student.duality import Penalty
from services.student.newton import Problem
from services.student.objective import Loss, check_targets
from services.student.solver import lambda_max, newton_refine, null_coef

Doubles = npt.NDArray[np.float64]
NON_ZERO = 1e-5


@dataclass(frozen=True)
class PathSettings:
    """How a path is walked: ratio between lambdas, most points, Newton steps each, the refit.

    refit_l2 holds the refit of the support (the l2 / 2 * |w|^2 of standardised columns).
    """

    ratio: float = 0.8
    points: int = 60
    steps: int = 2
    refit_l2: float = 1e-3
    refit_steps: int = 30
    refit_tolerance: float = 1e-9


@dataclass(frozen=True)
class SparseFit:
    """weights [K, m] and intercepts [K] on standardised columns; lam where the support was read."""

    weights: Doubles
    intercepts: Doubles
    lam: float

    @property
    def nec(self) -> float:
        """Mean number of weights above 1e-5 a class."""
        return float((np.abs(self.weights) > NON_ZERO).sum() / len(self.weights))

    def logits(self, columns: npt.NDArray[np.floating]) -> Doubles:
        """Logits [n, K] of standardised columns [n, m]."""
        return np.asarray(columns @ self.weights.T + self.intercepts, np.float64)


def fit_path(
    columns: npt.NDArray[np.floating] | Design,
    targets: npt.NDArray[np.floating],
    loss: Loss,
    budgets: Sequence[float],
    settings: PathSettings | None = None,
) -> dict[float, SparseFit]:
    """A student for each NEC budget from one path over standardised columns [n, m].

    targets [n, K] are soft responses. A budget past the end of the path gets what the path holds.
    ValueError for bad shapes, values or budgets.
    """
    settings = settings or PathSettings()
    design = columns if isinstance(columns, Design) else Design(columns)
    problem = path_problem(design, targets, loss)
    if not budgets or min(budgets) <= 0:
        raise ValueError("budgets must be positive")
    found = _walk(problem, sorted(set(budgets)), settings)
    return {
        budget: refit(problem, truncate(coef, budget), coef, lam, settings)
        for budget, (coef, lam) in found.items()
    }


def path_problem(design: Design, targets: npt.NDArray[np.floating], loss: Loss) -> Problem:
    """The problem of a design and soft targets [n, K], checked; softmax targets are normalised."""
    wanted = as_float64(np.asarray(targets).T)
    if wanted.ndim != 2 or wanted.shape[1] != design.items:
        raise ValueError(f"targets {np.shape(targets)} do not fit {design.items} items")
    check_targets(wanted, loss)
    if loss == "softmax":
        wanted = wanted / wanted.sum(dim=0)
    return Problem(design, wanted, Penalty(0.0), loss)


def _walk(
    problem: Problem, budgets: list[float], settings: PathSettings
) -> dict[float, tuple[Tensor, float]]:
    coef, lam = null_coef(problem), lambda_max(problem)
    found: dict[float, tuple[Tensor, float]] = {}
    for _ in range(settings.points):
        lam *= settings.ratio
        eased = replace(problem, penalty=Penalty(lam))
        coef = newton_refine(eased, coef, settings.steps, 0.02 * lam)
        reached = float((coef[:, :-1].abs() > NON_ZERO).sum()) / len(coef)
        for budget in budgets:
            if budget not in found and reached >= budget:
                found[budget] = (coef, lam)
        if len(found) == len(budgets):
            break
    return {budget: found.get(budget, (coef, lam)) for budget in budgets}


def truncate(coef: Tensor, budget: float) -> Tensor:
    """Mask [K, p] of the largest weights, budget a class on average, ties by position; intercepts
    stay.
    """
    sizes = coef[:, :-1].abs()
    keep = min(int(budget * len(coef) + 1e-9), int((sizes > NON_ZERO).sum()))
    order = sizes.flatten().sort(descending=True, stable=True).indices[:keep]
    mask = torch.zeros(sizes.numel(), dtype=torch.bool)
    mask[order] = True
    ones = torch.ones(len(coef), 1, dtype=torch.bool)
    return torch.cat([mask.reshape(sizes.shape), ones], dim=1)


def refit(
    problem: Problem, mask: Tensor, start: Tensor, lam: float, settings: PathSettings
) -> SparseFit:
    """The fit on a support mask [K, p] alone, from start [K, p], without L1."""
    penalty = Penalty(0.0, settings.refit_l2, mask)
    held = replace(problem, penalty=penalty)
    coef = newton_refine(held, start * mask, settings.refit_steps, settings.refit_tolerance)
    return SparseFit(coef[:, :-1].numpy().copy(), coef[:, -1].numpy().copy(), lam)
