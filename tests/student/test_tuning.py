from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from services.student.crossfit import stratified_folds
from services.student.design import Design
from services.student.path import fit_path
from services.student.tuning import (
    Edit,
    TuneSettings,
    apply_edit,
    crossfit_edit,
    edit_box,
    random_boxes,
    redo,
    undo,
)


def _student(loss: str):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(2)
    n, m, k = 240, 30, 4
    columns = rng.standard_normal((n, 5)) @ rng.standard_normal((5, m)) + rng.standard_normal(
        (n, m)
    )
    columns = (columns - columns.mean(0)) / columns.std(0)
    logits = 1.2 * columns[:, :k] - columns[:, k : 2 * k] + 0.5 * rng.standard_normal((n, k))
    if loss == "bce":
        targets = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits)
        targets = scores / scores.sum(1, keepdims=True)
    fit = fit_path(columns, targets, loss, (6,))[6]
    weights, intercepts = fit.weights.astype(np.float32), fit.intercepts.astype(np.float32)
    return columns, targets, weights, intercepts


@pytest.mark.parametrize(
    ("origin", "direction", "expected"),
    [
        (0.5, "up", (1.0, 1.5)),
        (0.5, "down", (-0.5, 0.0)),
        (-0.5, "up", (0.0, 0.5)),
        (-0.5, "down", (-1.5, -1.0)),
        (0.0, "up", (2.0, 4.0)),
        (0.0, "down", (-4.0, -2.0)),
    ],
)
def test_the_box(origin, direction, expected) -> None:  # type: ignore[no-untyped-def]
    weights = np.array([[origin, 2.0, 0.0, -2.0, 2.0]])
    box = edit_box(weights, Edit(0, 0, direction, 2.0))
    assert (box.low, box.high) == expected


@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_refit_is_the_constrained_optimum(loss, direction) -> None:  # type: ignore[no-untyped-def]
    columns, targets, weights, intercepts = _student(loss)
    row, column = 1, int(np.abs(weights[1]).argmax())
    edit = Edit(row, column, direction, 1.5)
    rho = 0.03
    edited = apply_edit(
        Design(columns), targets, loss, weights, intercepts, edit, TuneSettings(rho)
    )
    support = np.flatnonzero(weights[row])
    reference = weights[row, support].astype(float)
    others = np.delete(columns @ weights.T.astype(float) + intercepts, row, axis=1)
    rest = np.log(np.exp(others).sum(1)) if loss == "softmax" else np.zeros(len(columns))
    held = support != column

    def objective(flat: np.ndarray) -> float:
        z = columns[:, support] @ flat[:-1] + flat[-1] - rest
        value = (np.logaddexp(0, z) - targets[:, row] * z).mean()
        return float(value + rho * ((flat[:-1] - reference)[held] ** 2).sum())

    bounds = [(edited.box.low, edited.box.high) if j == column else (None, None) for j in support]
    start = np.append(reference, intercepts[row])
    found = minimize(
        objective, start, bounds=[*bounds, (None, None)], options={"maxiter": 5000, "ftol": 1e-14}
    )
    mine = objective(np.append(edited.weights_after[support].astype(float), edited.intercept_after))
    assert mine <= found.fun + 1e-8
    assert edited.box.low <= float(edited.weights_after[column]) <= edited.box.high


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_undo_restores_every_bit_and_order_matters(loss) -> None:  # type: ignore[no-untyped-def]
    columns, targets, weights, intercepts = _student(loss)
    design = Design(columns)
    absent = int(np.flatnonzero(weights[0] == 0)[0])
    first = apply_edit(design, targets, loss, weights, intercepts, Edit(0, absent, "up", 2.0))
    once = redo(weights, intercepts, first)
    assert once[0][0, absent] > 0
    assert np.array_equal(once[0][1:], weights[1:])
    second = apply_edit(design, targets, loss, *once, Edit(0, absent, "down", 3.0))
    twice = redo(*once, second)
    with pytest.raises(ValueError, match="changed since"):
        undo(*twice, first)
    back = undo(*undo(*twice, second), first)
    assert back[0].tobytes() == weights.tobytes()
    assert back[1].tobytes() == intercepts.tobytes()


def test_holding_keeps_the_others_nearer() -> None:
    columns, targets, weights, intercepts = _student("bce")
    edit = Edit(2, int(np.abs(weights[2]).argmax()), "up", 2.0)
    moves = []
    for rho in (0.0, 0.05, 10.0):
        edited = apply_edit(
            Design(columns), targets, "bce", weights, intercepts, edit, TuneSettings(rho)
        )
        others = np.delete(edited.weights_after - edited.weights_before, edit.column)
        moves.append(float(np.abs(others).sum()))
    assert moves[0] > moves[1] > moves[2]


def test_random_edits_are_of_equal_size_and_elsewhere() -> None:
    weights = np.array([[0.5, 2.0, 0.0, -2.0, 2.0]])
    drawn = random_boxes(weights, Edit(0, 0, "up", 2.0), 40, seed=3)
    assert drawn == random_boxes(weights, Edit(0, 0, "up", 2.0), 40, seed=3)
    assert {column for column, _ in drawn} == {1, 2, 3, 4}
    for column, box in drawn:
        away = sorted(abs(bound - weights[0, column]) for bound in (box.low, box.high))
        assert away == pytest.approx([0.5, 1.0])


def test_out_of_fold_effects_come_from_students_that_did_not_see_the_items() -> None:
    columns, targets, _, _ = _student("softmax")
    fold_of = stratified_folds(targets.argmax(1), 3)
    fits = [
        fit_path(columns[fold_of != f], targets[fold_of != f], "softmax", (6,))[6] for f in range(3)
    ]
    edit = Edit(1, 0, "up", 2.0)
    before, after, random = crossfit_edit(
        columns, targets, "softmax", fold_of, fits, edit, controls=2
    )
    for fold, fit in enumerate(fits):
        held = fold_of == fold
        np.testing.assert_allclose(before[held], columns[held] @ fit.weights.T + fit.intercepts)
    assert np.array_equal(np.delete(before, 1, axis=1), np.delete(after, 1, axis=1))
    assert not np.allclose(before[:, 1], after[:, 1])
    assert random.shape == (2, *before.shape)
    assert not np.allclose(random[0], random[1])


@pytest.mark.parametrize(
    "edit",
    [
        Edit(0, 0, "up", 1.0),
        Edit(0, 0, "up", float("nan")),
        Edit(9, 0, "up", 2.0),
        Edit(0, -1, "up", 2.0),
    ],
)
def test_bad_edits_are_refused(edit: Edit) -> None:
    with pytest.raises(ValueError, match=r"factor|edit"):
        edit_box(np.ones((2, 3)), edit)
