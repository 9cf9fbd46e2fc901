from __future__ import annotations

import pytest
import torch

from services.student.quadratic import Quadratic, solve_quadratic


def _coordinate_descent(problem: Quadratic, sweeps: int) -> torch.Tensor:
    point = problem.start.clamp(problem.low, problem.high).clone()
    slope = problem.slope(point)
    for _ in range(sweeps):
        for j in range(len(point)):
            bend = problem.hessian[j, j]
            target = point[j] - slope[j] / bend
            moved = target.sign() * (target.abs() - problem.lam[j] / bend).clamp_min(0)
            moved = moved.clamp(problem.low[j], problem.high[j])
            slope += problem.hessian[:, j] * (moved - point[j])
            point[j] = moved
    return point


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("boxed", [False, True])
def test_the_minimiser_is_that_of_coordinate_descent(seed: int, boxed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = 8
    factor = draw(size, 4)
    hessian = factor @ factor.T + 0.5 * torch.eye(size, dtype=torch.float64)
    lam = torch.full((size,), 0.6, dtype=torch.float64)
    lam[-1] = 0
    low = torch.full_like(lam, -0.2 if boxed else -torch.inf)
    high = torch.full_like(lam, 0.3 if boxed else torch.inf)
    problem = Quadratic(hessian, draw(size), 0.1 * draw(size), lam, low, high)
    best = problem.value(_coordinate_descent(problem, 150))
    start = problem.value(problem.start.clamp(low, high))
    found = solve_quadratic(problem, turns=200)
    assert bool((found >= low).all())
    assert bool((found <= high).all())
    assert problem.value(found) <= best + 0.02 * (start - best)
    assert problem.value(found) >= best - 1e-7
