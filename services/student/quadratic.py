"""A small dense quadratic with an L1 term and a box, solved exactly by active sets.

    minimise  g.(u - w) + (u - w)' H (u - w) / 2 + sum_j lam_j |u_j|   subject to low <= u <= high

Each turn solves the Newton system on the free coordinates with their signs held, clips what
crosses zero or leaves the box, and keeps the result only if the objective fell. When a whole step
does not help, a burst of accelerated proximal gradient steps settles which coordinates are free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_TURNS = 12
BURST = 40
SHARE_OF_FALL = 1e-2
EXACT = 2.0


@dataclass(frozen=True)
class Quadratic:
    """H [T, T] positive definite, g [T], start w [T], lam [T] >= 0, bounds [T]; all fp64."""

    hessian: Tensor
    gradient: Tensor
    start: Tensor
    lam: Tensor
    low: Tensor
    high: Tensor

    def value(self, point: Tensor) -> float:
        """Objective at point [T]."""
        step = point - self.start
        smooth = step @ (self.gradient + 0.5 * (self.hessian @ step))
        return float(smooth + (self.lam * point.abs()).sum())

    def slope(self, point: Tensor) -> Tensor:
        """Gradient of the smooth part at point [T]."""
        return self.gradient + self.hessian @ (point - self.start)

    def lipschitz(self) -> float:
        """The largest eigenvalue of H with a margin, by power iteration from a fixed start."""
        vector = torch.linspace(1.0, 2.0, len(self.start), dtype=self.hessian.dtype)
        size = float(vector.norm())
        for _ in range(10):
            vector = self.hessian @ (vector / size)
            size = float(vector.norm())
        return max(1.2 * size, 1e-300)


def solve_quadratic(problem: Quadratic, turns: int = MAX_TURNS) -> Tensor:
    """The minimiser [T] of problem, or close: a turn adding under 1 % of the fall is the last."""
    point = problem.start.clamp(problem.low, problem.high)
    first = value = problem.value(point)
    exact: Tensor | None = None
    for _ in range(turns):
        slope = problem.slope(point)
        signs, free = _orthant(problem, point, slope)
        # An unclipped Newton point is exact for its set: done unless the set changes.
        if not bool(free.any()) or (exact is not None and torch.equal(exact, free)):
            break
        candidate, reached, share = _newton_point(problem, point, value, slope, signs, free)
        exact = free if share == EXACT else None
        if share < 1:
            candidate, reached = _burst(problem, candidate, reached)
        fell = value - reached
        if fell <= 0:
            break
        point, value = candidate, reached
        if fell < SHARE_OF_FALL * (first - value):
            break
    return point


def _orthant(problem: Quadratic, point: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The sign each coordinate keeps this turn, and which coordinates may move."""
    signs = torch.where(point != 0, point.sign(), -slope.sign())
    pull = slope + problem.lam * signs
    free = (point != 0) | (slope.abs() > problem.lam)
    at_low = (point <= problem.low) & (pull > 0)
    at_high = (point >= problem.high) & (pull < 0)
    return signs, free & ~at_low & ~at_high


def _newton_point(
    problem: Quadratic, point: Tensor, value: float, slope: Tensor, signs: Tensor, free: Tensor
) -> tuple[Tensor, float, float]:
    """The best point met on the way to the Newton point, its value, and the share of the way."""
    index = free.nonzero().squeeze(1)
    matrix = problem.hessian[index][:, index]
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed) != 0:
        return point, value, 0.0
    pull = -(slope + problem.lam * signs)[index]
    move = torch.zeros_like(point)
    move[index] = torch.cholesky_solve(pull.unsqueeze(1), factor).squeeze(1)
    for share in (1.0, 0.4, 0.1):
        target = point + share * move
        candidate = _project(problem, target, signs)
        reached = problem.value(candidate)
        if reached < value:
            clipped = not torch.equal(candidate, target)
            return candidate, reached, EXACT if share == 1.0 and not clipped else share
    return point, value, 0.0


def _project(problem: Quadratic, target: Tensor, signs: Tensor) -> Tensor:
    crossed = (target * signs < 0) & (problem.lam > 0)
    return torch.where(crossed, 0.0, target).clamp(problem.low, problem.high)


def _burst(problem: Quadratic, point: Tensor, value: float) -> tuple[Tensor, float]:
    """Accelerated proximal gradient from point: cheap turns that let many coordinates change
    sides.
    """
    step, pace = 1.0 / problem.lipschitz(), 1.0
    current = ahead = point
    for _ in range(BURST):
        moved = ahead - step * problem.slope(ahead)
        shrunk = moved.sign() * (moved.abs() - step * problem.lam).clamp_min(0)
        following = shrunk.clamp(problem.low, problem.high)
        if float((ahead - following) @ (following - current)) > 0:
            pace = 1.0
        after = 0.5 * (1 + math.sqrt(1 + 4 * pace * pace))
        ahead = following + (pace - 1) / after * (following - current)
        current, pace = following, after
    reached = problem.value(current)
    return (current, reached) if reached < value else (point, value)
