"""Solve one sparse linear fit to a duality gap: warm-started, deterministic, resumable.

    mean cross-entropy to soft targets + lam * |W|_1 (+ l2 / 2 * |W|^2), free intercepts

Few coordinates in play: proximal Newton (newton.py). Many: accelerated proximal gradient for all
classes together (fista.py), in fp32 until its accuracy is used up, then in fp64. Both read nothing
but the State, so a solve resumed from a stored State gives the bits of an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from services.student.design import Design
from services.student.duality import Gap, Penalty, duality_gap
from services.student.fista import Momentum, at_rest, run_fista
from services.student.newton import Point, Problem, newton_step, violation, working_set
from services.student.objective import Loss

JOINT_LIMIT: dict[Loss, int] = {"bce": 500, "softmax": 1400}
NEWTON_STEPS = 3.0
LADDER = 8
BLOCK = 12
FP32_GAP = 2e-4


@dataclass(frozen=True)
class State:
    """Full solver state between two rounds; gap and before: the last two relative gaps [K, 1].

    rung counts the steps of a cold start from the largest lambda down to the problem's own.
    """

    momentum: Momentum
    rounds: int
    rung: int
    newton: bool
    gap: Tensor
    before: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The state as named fp64 tensors, for a safetensors checkpoint."""
        coef, previous, pace, curvature = self.momentum.tensors()
        counters = torch.tensor([self.rounds, self.rung, int(self.newton)], dtype=torch.float64)
        return {
            "coef": coef,
            "previous": previous,
            "pace": pace,
            "curvature": curvature,
            "gap": self.gap,
            "before": self.before,
            "counters": counters,
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> State:
        """The inverse of tensors(); KeyError when one is missing."""
        names = ("coef", "previous", "pace", "curvature")
        counters = tensors["counters"]
        momentum = Momentum(*(tensors[name] for name in names))
        return State(
            momentum,
            int(counters[0]),
            int(counters[1]),
            bool(counters[2]),
            tensors["gap"],
            tensors["before"],
        )


@dataclass(frozen=True)
class Solution:
    """coef [K, p] (intercept last), objective and gap per group, rounds used, gap <= tol."""

    coef: Tensor
    objective: Tensor
    gap: Tensor
    rounds: int
    converged: bool

    @property
    def weights(self) -> Tensor:
        """Weights [K, m], without intercepts."""
        return self.coef[:, :-1]

    @property
    def intercepts(self) -> Tensor:
        """Intercepts [K]."""
        return self.coef[:, -1]


def initial_state(problem: Problem, coef: Tensor | None = None) -> State:
    """A state at rest at coef [K, p], or at zero."""
    classes = len(problem.targets)
    rung = 0 if coef is None and problem.loss == "bce" else LADDER
    if coef is None:
        coef = torch.zeros(classes, problem.design.width, dtype=torch.float64)
    far = torch.full((classes, 1), torch.inf, dtype=torch.float64)
    return State(at_rest(coef, problem.design, problem.loss), 0, rung, False, far, far)


def solve(
    problem: Problem,
    state: State | None = None,
    tolerance: float = 1e-6,
    max_rounds: int = 400,
    on_round: Callable[[State], None] | None = None,
) -> Solution:
    """Minimise until every group's gap <= tolerance * objective, or max_rounds."""
    state = state or initial_state(problem)
    while True:
        if state.rung < LADDER:
            state = _climb(problem, state)
            _tell(on_round, state)
            continue
        bound = _gap(problem, state)
        relative = (bound.gap / bound.objective).expand(len(problem.targets), 1)
        state = _note_gap(state, relative)
        done = bool((relative <= tolerance).all())
        if done or state.rounds >= max_rounds:
            return _solution(state, bound, done)
        state = replace(_round(problem, state, tolerance), rounds=state.rounds + 1)
        _tell(on_round, state)


def _tell(on_round: Callable[[State], None] | None, state: State) -> None:
    if on_round is not None:
        on_round(state)


def _climb(problem: Problem, state: State) -> State:
    """One Newton step at a larger lambda on the way down to the problem's own (cold starts)."""
    coef, target = state.momentum.coef, problem.penalty.lam
    start = lambda_max(problem)
    if not 0 < target < start:
        return replace(state, rung=LADDER)
    if state.rung == 0:
        coef = null_coef(problem)
    lam = start * (target / start) ** ((state.rung + 1) / LADDER)
    eased = replace(problem, penalty=replace(problem.penalty, lam=lam))
    coef = newton_refine(eased, coef, 1, 0.0)
    return replace(state, momentum=at_rest(coef, problem.design, problem.loss), rung=state.rung + 1)


def null_coef(problem: Problem) -> Tensor:
    """The best intercepts with all weights at zero, [K, p]."""
    coef = torch.zeros(len(problem.targets), problem.design.width, dtype=torch.float64)
    mean = problem.targets.mean(dim=1).clamp(1e-9, 1 - 1e-9)
    coef[:, -1] = mean.log() - (torch.log1p(-mean) if problem.loss == "bce" else 0.0)
    return coef


def lambda_max(problem: Problem) -> float:
    """The smallest lambda at which every weight is zero."""
    coef = null_coef(problem)
    slope = problem.slope(coef, problem.design.logits(coef))[:, :-1].abs()
    if problem.penalty.allowed is not None:
        slope = slope * problem.penalty.allowed[:, :-1]
    return float(slope.max()) if slope.numel() else 0.0


def _gap(problem: Problem, state: State) -> Gap:
    coef = state.momentum.coef
    return duality_gap(problem.design, coef, problem.targets, problem.penalty, problem.loss)


def _note_gap(state: State, relative: Tensor) -> State:
    return replace(state, gap=relative, before=state.gap)


def _solution(state: State, bound: Gap, done: bool) -> Solution:
    coef = state.momentum.coef.clone()
    coef[:, -1] += bound.shift.squeeze(1)
    return Solution(coef, bound.objective, bound.gap, state.rounds, done)


def _round(problem: Problem, state: State, tolerance: float) -> State:
    live = (state.gap.squeeze(1) > tolerance).nonzero().squeeze(1)
    if problem.loss == "softmax":
        live = torch.arange(len(problem.targets))
    part = problem if len(live) == len(problem.targets) else problem.of_classes(live)
    coef = state.momentum.coef[live]
    point = Point(coef, part.design.logits(coef))
    slope = part.slope(coef, point.logits)
    counts = working_set(part, point, slope).sum(dim=1)
    if state.newton or _newton_pays(part, counts, state, tolerance):
        moved = newton_step(part, point, slope, JOINT_LIMIT[problem.loss])
        if moved is not point:
            rest = at_rest(moved.coef, part.design, part.loss)
            return _put(replace(state, newton=True), live, rest)
    return _gradient_round(part, state, live)


def _newton_pays(problem: Problem, counts: Tensor, state: State, tolerance: float) -> bool:
    """Whether a few Newton steps cost less than the gradient rounds still to come (in flops)."""
    total = float(counts.sum())
    if total <= JOINT_LIMIT[problem.loss]:
        return True
    now, before = float(state.gap.max()), float(state.before.max())
    if problem.loss == "softmax" or not before < torch.inf:
        return False
    sizes = counts.to(torch.float64)
    items, area = problem.design.items, problem.design.items * problem.design.width
    step = float((items * sizes.square() + 6 * sizes**3).sum()) + 12.0 * area * len(counts)
    block = 4.0 * BLOCK * area * len(counts)
    pace = max(math.log(before / now), 0.05)
    return math.log(now / tolerance) / pace * block > NEWTON_STEPS * step


def _gradient_round(problem: Problem, state: State, live: Tensor) -> State:
    coarse = float(state.gap.max()) > FP32_GAP
    moved = run_fista(
        problem.design,
        state.momentum.of_classes(live),
        problem.targets.to(torch.float32 if coarse else torch.float64),
        problem.penalty,
        problem.loss,
        BLOCK,
    )
    return _put(state, live, moved.cast(torch.float64))


def _put(state: State, live: Tensor, moved: Momentum) -> State:
    tensors = [whole.clone() for whole in state.momentum.tensors()]
    for whole, part in zip(tensors, moved.tensors(), strict=True):
        whole[live] = part
    return replace(state, momentum=Momentum(*tensors))


def newton_refine(problem: Problem, coef: Tensor, steps: int, tolerance: float) -> Tensor:
    """Up to `steps` Newton steps from coef [K, p], until the subgradient is within tolerance."""
    point = Point(coef, problem.design.logits(coef))
    for _ in range(steps):
        slope = problem.slope(point.coef, point.logits)
        if violation(problem, point, slope) <= tolerance:
            break
        moved = newton_step(problem, point, slope, JOINT_LIMIT[problem.loss])
        if moved is point:
            break
        point = moved
    return point.coef


def make_problem(
    design: Design, targets: Tensor, loss: Loss, lam: float, l2: float = 0.0
) -> Problem:
    """A plain problem over all coordinates; targets [K, n] fp64."""
    return Problem(design, targets, Penalty(lam, l2), loss)
