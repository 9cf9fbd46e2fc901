"""Tuning: turn one concept of one class up or down within a box, the rest held while it refits.

    up    w in [w0 + (x - 1)|w0|, w0 + 2 (x - 1)|w0|]      down: its mirror image
    w0 = 0 takes |w0| := the median non-zero |w| of the class

The class's other weights refit under rho * |w - w_ref|^2: left free, correlated concepts would undo
the edit. Only the edited class moves. For softmax that is exactly a binary fit whose logits are
offset by the log-sum-exp of the other classes, so one solver serves both losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.student.design import Design, as_float64
from services.student.duality import Penalty
from services.student.newton import Hold, Point, Problem, newton_step, violation
from services.student.objective import Loss
from services.student.path import SparseFit

Doubles = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating[Any]]
Direction = Literal["up", "down"]
JOINT_LIMIT = 100_000


@dataclass(frozen=True)
class Edit:
    """Turn concept (column) of row (class) up or down by factor > 1."""

    row: int
    column: int
    direction: Direction
    factor: float


@dataclass(frozen=True)
class Box:
    """Bounds that one weight must meet."""

    low: float
    high: float


@dataclass(frozen=True)
class TuneSettings:
    """rho holds the other weights; steps and tolerance bound the refit."""

    rho: float = 0.05
    steps: int = 20
    tolerance: float = 1e-8


@dataclass(frozen=True)
class Edited:
    """One applied edit: the class's weights [m] and intercept before and after, bit for bit."""

    row: int
    column: int
    box: Box
    weights_before: Weights
    intercept_before: float
    weights_after: Weights
    intercept_after: float


def edit_box(weights: Weights, edit: Edit) -> Box:
    """The box of an edit on weights [K, m]. ValueError: bad factor, place or empty class."""
    if not (np.isfinite(edit.factor) and edit.factor > 1):
        raise ValueError("factor must be finite and above 1")
    if not (0 <= edit.row < weights.shape[0] and 0 <= edit.column < weights.shape[1]):
        raise ValueError("the edit names a class or concept that the student does not have")
    origin = float(weights[edit.row, edit.column])
    reach = (edit.factor - 1) * (abs(origin) or _median_size(weights[edit.row]))
    if edit.direction == "up":
        return Box(origin + reach, origin + 2 * reach)
    return Box(origin - 2 * reach, origin - reach)


def _median_size(row: Weights) -> float:
    sizes = np.abs(row[row != 0])
    if not len(sizes):
        raise ValueError("the class has no non-zero weight to measure the edit by")
    return float(np.median(sizes))


def apply_edit(
    design: Design,
    targets: Weights,
    loss: Loss,
    weights: Weights,
    intercepts: Weights,
    edit: Edit,
    settings: TuneSettings | None = None,
) -> Edited:
    """Apply edit to weights [K, m], intercepts [K] against soft responses [n, K]; inputs
    unchanged.
    """
    box = edit_box(weights, edit)
    return apply_box(
        design, targets, loss, weights, intercepts, edit.row, edit.column, box, settings
    )


def apply_box(
    design: Design,
    targets: Weights,
    loss: Loss,
    weights: Weights,
    intercepts: Weights,
    row: int,
    column: int,
    box: Box,
    settings: TuneSettings | None = None,
) -> Edited:
    """Move one weight into a box and refit its class around it; deterministic."""
    weights_after, intercept_after = refit_class(
        design, targets, loss, weights, intercepts, row, {column: box}, settings
    )
    return Edited(
        row=row,
        column=column,
        box=box,
        weights_before=weights[row].copy(),
        intercept_before=float(intercepts[row]),
        weights_after=weights_after,
        intercept_after=intercept_after,
    )


def refit_class(
    design: Design,
    targets: Weights,
    loss: Loss,
    weights: Weights,
    intercepts: Weights,
    row: int,
    boxes: Mapping[int, Box],
    settings: TuneSettings | None = None,
    offset: Tensor | None = None,
) -> tuple[Weights, float]:
    """A class's weights [m] and intercept after several of them are moved into boxes at once.

    offset [1, n] is class_offset's, where the caller has it. Only the columns that the class uses
    or edits are touched, so the cost does not grow with the number of concepts.
    """
    settings = settings or TuneSettings()
    if offset is None:
        offset = class_offset(design, weights, intercepts, row, loss)
    used = np.union1d(np.flatnonzero(weights[row]), np.array(sorted(boxes), np.int64))
    places = {int(column): place for place, column in enumerate(used)}
    local = {places[column]: box for column, box in boxes.items()}
    reference = as_float64(np.append(weights[row, used], intercepts[row])[None])
    part = design.select(torch.from_numpy(np.append(used, design.width - 1).astype(np.int64)))
    problem = _class_problem(
        part, as_float64(np.asarray(targets)[:, row][None]), reference, local, settings
    )
    start = reference.clone()
    for place, box in local.items():
        start[0, place] = start[0, place].clamp(box.low, box.high)
    after = _refit(problem, Point(start, part.logits(start) + offset), settings)[0].numpy()
    row_after = weights[row].copy()
    row_after[used] = after[:-1].astype(weights.dtype)
    for column, box in boxes.items():
        row_after[column] = _inside(row_after[column], box)
    return row_after, float(after[-1].astype(intercepts.dtype))


def _class_problem(
    design: Design,
    targets: Tensor,
    reference: Tensor,
    boxes: Mapping[int, Box],
    settings: TuneSettings,
) -> Problem:
    """The refit of one class around reference [1, p] against targets [1, n]."""
    rho = torch.full_like(reference, 2 * settings.rho)
    rho[0, -1] = 0
    low = torch.full_like(reference, -torch.inf)
    high = torch.full_like(reference, torch.inf)
    for column, box in boxes.items():
        rho[0, column] = 0
        low[0, column], high[0, column] = box.low, box.high
    return Problem(design, targets, Penalty(0.0), "bce", Hold(rho, reference, low, high))


def class_offset(
    design: Design, weights: Weights, intercepts: Weights, row: int, loss: Loss
) -> Tensor:
    """What the other classes take from a class's logits: minus their log-sum-exp, [1, n]."""
    others = np.delete(np.arange(len(weights)), row)
    if loss == "bce" or not len(others):
        return torch.zeros(1, design.items, dtype=torch.float64)
    coef = torch.cat([as_float64(weights[others]), as_float64(intercepts[others])[:, None]], dim=1)
    return -torch.logsumexp(design.logits(coef), dim=0, keepdim=True)


def _refit(problem: Problem, point: Point, settings: TuneSettings) -> Tensor:
    for _ in range(settings.steps):
        slope = problem.slope(point.coef, point.logits)
        if violation(problem, point, slope) <= settings.tolerance:
            break
        moved = newton_step(problem, point, slope, JOINT_LIMIT)
        if moved is point:
            break
        point = moved
    return point.coef


def _inside(value: Any, box: Box) -> Any:
    """value in its own float type, nudged back where rounding left the box."""
    if float(value) < box.low:
        return np.nextafter(value, type(value)(np.inf))
    if float(value) > box.high:
        return np.nextafter(value, type(value)(-np.inf))
    return value


def redo(weights: Weights, intercepts: Weights, edited: Edited) -> tuple[Weights, Weights]:
    """Copies of weights and intercepts with the edit in."""
    return _put(weights, intercepts, edited.row, edited.weights_after, edited.intercept_after)


def undo(weights: Weights, intercepts: Weights, edited: Edited) -> tuple[Weights, Weights]:
    """Copies with the edit out, bit for bit; ValueError if the class has changed since."""
    same = np.array_equal(weights[edited.row], edited.weights_after)
    if not same or float(intercepts[edited.row]) != edited.intercept_after:
        raise ValueError("the class has changed since this edit; undo later edits first")
    return _put(weights, intercepts, edited.row, edited.weights_before, edited.intercept_before)


def _put(
    weights: Weights, intercepts: Weights, row: int, values: Weights, intercept: float
) -> tuple[Weights, Weights]:
    weights, intercepts = weights.copy(), intercepts.copy()
    weights[row], intercepts[row] = values, intercept
    return weights, intercepts


def random_boxes(weights: Weights, edit: Edit, count: int, seed: int) -> list[tuple[int, Box]]:
    """Controls of equal size: (column, box) on random other concepts of the class, random sign."""
    box, origin = edit_box(weights, edit), float(weights[edit.row, edit.column])
    near, far = sorted((abs(box.low - origin), abs(box.high - origin)))
    others = np.delete(np.arange(weights.shape[1]), edit.column)
    if not len(others):
        raise ValueError("the student has no other concept to edit")
    rng = np.random.default_rng(seed)
    drawn = []
    for column in rng.choice(others, size=count, replace=count > len(others)):
        start = float(weights[edit.row, column])
        up = bool(rng.integers(2))
        bounds = (start + near, start + far) if up else (start - far, start - near)
        drawn.append((int(column), Box(*bounds)))
    return drawn


def crossfit_edit(
    columns: Doubles,
    targets: Doubles,
    loss: Loss,
    fold_of: npt.NDArray[np.int64],
    fits: Sequence[SparseFit],
    edit: Edit,
    controls: int = 0,
    seed: int = 0,
    settings: TuneSettings | None = None,
) -> tuple[Doubles, Doubles, Doubles]:
    """Out-of-fold logits before and after [n, K], and after random edits [controls, n, K].

    fits[f] is a student fitted on the items outside fold f; the edit is applied to each of them.
    """
    before = np.zeros((len(columns), targets.shape[1]))
    after, random = before.copy(), np.zeros((controls, *before.shape))
    for fold, fit in enumerate(fits):
        inside, outside = fold_of == fold, fold_of != fold
        design = Design(columns[outside])
        held = columns[inside]
        before[inside] = fit.logits(held)
        boxes = [(edit.column, edit_box(fit.weights, edit))]
        boxes += random_boxes(fit.weights, edit, controls, seed)
        for turn, (column, box) in enumerate(boxes):
            edited = apply_box(
                design,
                targets[outside],
                loss,
                fit.weights,
                fit.intercepts,
                edit.row,
                column,
                box,
                settings,
            )
            changed = before[inside].copy()
            changed[:, edit.row] = held @ edited.weights_after + edited.intercept_after
            if turn == 0:
                after[inside] = changed
            else:
                random[turn - 1, inside] = changed
    return before, after, random
