"""Proximal Newton over the working set: exact second order while few coordinates are in play.

The Hessian of all coordinates in play, across classes, is two matrix products; the quadratic model
with its L1 term and box is solved exactly (quadratic.py) and followed by a line search on the true
objective. Gradients are fp64; the Hessian is built in fp32, which costs no accuracy at the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from services.student.design import Design
from services.student.duality import Penalty
from services.student.objective import Loss, group_sum, mean_loss, probabilities
from services.student.quadratic import Quadratic, solve_quadratic

DAMPING = 1e-6
LINE_SEARCH_STEPS = 25
ARMIJO = 1e-4
ENTER_AT_LEAST = 6
ROUNDING = 1e-15


@dataclass(frozen=True)
class Hold:
    """Extra terms of a tuning refit: rho / 2 * |w - centre|^2 and a box, all [K, p]."""

    rho: Tensor
    centre: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Problem:
    """One fit: design, targets [K, n] fp64, penalty, loss and, for tuning, what is held."""

    design: Design
    targets: Tensor
    penalty: Penalty
    loss: Loss
    hold: Hold | None = None

    def objective(self, coef: Tensor, logits: Tensor) -> Tensor:
        """Objective per group, what is held included."""
        value = mean_loss(logits, self.targets, self.loss) + self.penalty.value(coef, self.loss)
        if self.hold is not None:
            away = coef - self.hold.centre
            value = value + 0.5 * group_sum(self.hold.rho * away.square(), self.loss)
        return value

    def of_classes(self, classes: Tensor) -> Problem:
        """The problem of some classes alone; only for "bce", whose classes do not meet."""
        if self.loss != "bce" or self.hold is not None:
            raise ValueError("only plain bce problems fall apart into classes")
        penalty = self.penalty.of_classes(classes)
        return Problem(self.design, self.targets[classes], penalty, self.loss)

    def slope(self, coef: Tensor, logits: Tensor) -> Tensor:
        """Gradient [K, p] of the smooth part."""
        residual = probabilities(logits, self.loss) - self.targets
        slope = self.design.gradient(residual) + self.ridge(coef) * coef
        if self.hold is not None:
            slope = slope + self.hold.rho * (coef - self.hold.centre)
        return slope

    def ridge(self, coef: Tensor) -> Tensor:
        """The l2 weight of each coordinate [K, p]; the intercept has none."""
        ridge = torch.full_like(coef, self.penalty.l2)
        ridge[:, -1] = 0
        return ridge

    def lam(self, coef: Tensor) -> Tensor:
        """The L1 weight of each coordinate [K, p]; the intercept has none."""
        lam = torch.full_like(coef, self.penalty.lam)
        lam[:, -1] = 0
        return lam


@dataclass(frozen=True)
class Point:
    """Coefficients [K, p] with their logits [K, n] (an offset may be inside), fp64."""

    coef: Tensor
    logits: Tensor


def working_set(problem: Problem, point: Point, slope: Tensor) -> Tensor:
    """Mask [K, p] of coordinates that are non-zero or leave zero this step.

    Of those at zero, a class takes at most half of what it holds (and at least a few), the steepest
    first: correlated columns violate together, and most of them would return to zero at once.
    """
    support = point.coef != 0
    excess = (slope.abs() - problem.lam(point.coef)).masked_fill(support, -torch.inf)
    excess[:, -1] = -torch.inf
    if problem.penalty.allowed is not None:
        excess = excess.masked_fill(~problem.penalty.allowed, -torch.inf)
    least = min(ENTER_AT_LEAST, excess.shape[1])
    room = (support.sum(dim=1, keepdim=True) // 2).clamp_min(least) - 1
    steepest = excess.sort(dim=1, descending=True).values.gather(1, room)
    mask = support | ((excess > 0) & (excess >= steepest))
    mask[:, -1] = True
    return mask


def violation(problem: Problem, point: Point, slope: Tensor) -> float:
    """Largest distance of the subgradient from zero (allowed coordinates, box respected)."""
    lam, coef = problem.lam(point.coef), point.coef
    at_zero = (slope.abs() - lam).clamp_min(0)
    pull = slope + lam * coef.sign()
    distance = torch.where(coef != 0, pull.abs(), at_zero)
    if problem.penalty.allowed is not None:
        distance = distance * problem.penalty.allowed
    if problem.hold is not None:
        stuck = ((coef <= problem.hold.low) & (pull > 0)) | (
            (coef >= problem.hold.high) & (pull < 0)
        )
        distance = distance * ~stuck
    return float(distance.max())


def newton_step(problem: Problem, point: Point, slope: Tensor, joint_limit: int) -> Point:
    """One step from point; point itself comes back if the objective cannot be lowered any more.

    All classes share one Hessian while at most joint_limit coordinates are in play; past that each
    class has its own (exact for "bce", whose classes do not meet; block-diagonal for "softmax").
    """
    mask = working_set(problem, point, slope)
    move = torch.zeros_like(point.coef)
    if int(mask.sum()) <= joint_limit:
        _fill_move(problem, point, slope, mask, move)
    else:
        for row in range(len(mask)):
            alone = torch.zeros_like(mask)
            alone[row] = mask[row]
            _fill_move(problem, point, slope, alone, move)
    return _line_search(problem, point, slope, move)


def _fill_move(problem: Problem, point: Point, slope: Tensor, mask: Tensor, move: Tensor) -> None:
    classes, columns = mask.nonzero(as_tuple=True)
    if len(classes):
        model = _model(problem, point, slope, classes, columns)
        move[classes, columns] = solve_quadratic(model) - model.start


def _model(
    problem: Problem, point: Point, slope: Tensor, classes: Tensor, columns: Tensor
) -> Quadratic:
    hessian = _hessian(problem, point, classes, columns)
    extra = problem.ridge(point.coef)[classes, columns]
    low = torch.full_like(extra, -torch.inf)
    high = torch.full_like(extra, torch.inf)
    if problem.hold is not None:
        extra = extra + problem.hold.rho[classes, columns]
        low, high = problem.hold.low[classes, columns], problem.hold.high[classes, columns]
    diagonal = hessian.diagonal()
    diagonal += extra + DAMPING * diagonal.mean()
    lam = problem.lam(point.coef)[classes, columns]
    start = point.coef[classes, columns]
    return Quadratic(hessian, slope[classes, columns], start, lam, low, high)


def _hessian(problem: Problem, point: Point, classes: Tensor, columns: Tensor) -> Tensor:
    """Hessian [T, T] of the mean loss over the coordinates (classes[t], columns[t])."""
    probs = probabilities(point.logits, problem.loss).to(torch.float32)
    features = problem.design.rows32.index_select(0, columns)
    if bool((classes == classes[0]).all()):
        share = probs[classes[0]]
        matrix = (features * (share * (1 - share))) @ features.T
    else:
        shares = probs.index_select(0, classes)
        same = classes.unsqueeze(1) == classes.unsqueeze(0)
        if problem.loss == "bce":
            matrix = (features * (shares * (1 - shares))) @ features.T * same
        else:
            weighted = features * shares
            matrix = (weighted @ features.T) * same - weighted @ weighted.T
    return (matrix / problem.design.items).to(torch.float64)


def _line_search(problem: Problem, point: Point, slope: Tensor, move: Tensor) -> Point:
    """Backtracking for each group by itself; a group that cannot fall stays where it is."""
    lam, loss = problem.lam(point.coef), problem.loss
    kinks = lam * ((point.coef + move).abs() - point.coef.abs())
    decrease = group_sum(slope * move + kinks, loss)
    before = problem.objective(point.coef, point.logits)
    change = problem.design.logits(move)
    share = (decrease < 0).to(torch.float64)
    for _ in range(LINE_SEARCH_STEPS):
        coef, logits = point.coef + share * move, point.logits + share * change
        # Near the optimum the fall is below the rounding of the objective itself.
        slack = ROUNDING * before.abs()
        failed = problem.objective(coef, logits) > before + ARMIJO * share * decrease + slack
        if not bool(failed.any()):
            return point if not bool((share > 0).any()) else Point(coef, logits)
        share = torch.where(failed, share * 0.5, share)
    return point
