from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from services.student.design import Design
from services.student.duality import Penalty, duality_gap
from services.student.solver import State, initial_state, make_problem, solve


def _problem(loss: str, seed: int = 0, n: int = 300, m: int = 40, k: int = 4):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((n, 6)) @ rng.standard_normal((6, m))
    columns += rng.standard_normal((n, m))
    columns = (columns - columns.mean(0)) / columns.std(0)
    logits = columns[:, :k] * 2 - columns[:, k : 2 * k] + rng.standard_normal((n, k)) - 0.7
    if loss == "bce":
        return columns, 1 / (1 + np.exp(-logits))
    scores = np.exp(logits)
    return columns, scores / scores.sum(1, keepdims=True)


def _objective(columns, targets, weights, intercepts, lam, loss):  # type: ignore[no-untyped-def]
    z = columns @ weights.T + intercepts
    if loss == "bce":
        losses = np.logaddexp(0, z) - targets * z
    else:
        losses = targets * (np.log(np.exp(z).sum(1, keepdims=True)) - z)
    return losses.sum() / len(columns) + lam * np.abs(weights).sum()


@pytest.mark.parametrize("lam", [1e-2, 1e-3, 1e-4])
def test_bce_meets_scikit_learn_saga(lam: float) -> None:
    columns, targets = _problem("bce")
    n, k = targets.shape
    ours = solve(make_problem(Design(columns), torch.tensor(targets.T), "bce", lam), tolerance=1e-8)
    assert ours.converged
    rows, labels = np.vstack([columns, columns]), np.repeat([1, 0], n)
    for c in range(k):
        saga = LogisticRegression(
            l1_ratio=1, solver="saga", C=1 / (n * lam), tol=1e-9, max_iter=20000, random_state=0
        )
        saga.fit(rows, labels, sample_weight=np.concatenate([targets[:, c], 1 - targets[:, c]]))
        q = targets[:, c : c + 1]
        theirs = _objective(columns, q, saga.coef_, saga.intercept_, lam, "bce")
        mine = _objective(
            columns,
            q,
            ours.weights[c : c + 1].numpy(),
            ours.intercepts[c : c + 1].numpy(),
            lam,
            "bce",
        )
        assert abs(mine - theirs) <= 1e-6 * theirs
        assert mine == pytest.approx(float(ours.objective[c]), rel=1e-12)


@pytest.mark.parametrize("lam", [1e-2, 1e-3])
def test_softmax_meets_scikit_learn_saga(lam: float) -> None:
    columns, targets = _problem("softmax")
    n, k = targets.shape
    ours = solve(
        make_problem(Design(columns), torch.tensor(targets.T), "softmax", lam), tolerance=1e-8
    )
    assert ours.converged
    saga = LogisticRegression(
        l1_ratio=1, solver="saga", C=1 / (n * lam), tol=1e-9, max_iter=20000, random_state=0
    )
    rows = np.vstack([columns] * k)
    saga.fit(rows, np.repeat(np.arange(k), n), sample_weight=targets.T.ravel())
    theirs = _objective(columns, targets, saga.coef_, saga.intercept_, lam, "softmax")
    assert float(ours.objective) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_the_gap_bounds_the_distance_to_the_optimum(loss, l2) -> None:  # type: ignore[no-untyped-def]
    columns, targets = _problem(loss)
    design, q = Design(columns), torch.tensor(targets.T)
    best = solve(make_problem(design, q, loss, 1e-2, l2), tolerance=1e-9)
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 0.01, 0.1, 1.0):
        noise = torch.randn(best.coef.shape, generator=generator, dtype=torch.float64)
        bound = duality_gap(design, best.coef + size * noise, q, Penalty(1e-2, l2), loss)
        assert (bound.objective - bound.gap <= best.objective + 1e-12).all()
        assert (bound.objective >= best.objective - 1e-9).all()


@pytest.mark.parametrize(("loss", "lam"), [("bce", 1e-3), ("softmax", 1e-3)])
def test_resuming_from_any_round_gives_the_same_bits(loss, lam) -> None:  # type: ignore[no-untyped-def]
    columns, targets = _problem(loss, n=120, m=60, k=26)
    problem = make_problem(Design(columns), torch.tensor(targets.T), loss, lam)
    states: list[State] = []
    whole = solve(problem, tolerance=1e-7, max_rounds=12, on_round=states.append)
    assert len(states) > 3
    for state in states[:: max(1, len(states) // 4)]:
        stored = {name: tensor.clone() for name, tensor in state.tensors().items()}
        again = solve(problem, State.from_tensors(stored), tolerance=1e-7, max_rounds=12)
        assert torch.equal(again.coef, whole.coef)


def test_the_gradient_rounds_reach_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, targets = _problem("softmax")
    problem = make_problem(Design(columns), torch.tensor(targets.T), "softmax", 1e-3)
    newton = solve(problem, tolerance=1e-8)
    monkeypatch.setattr("services.student.solver.JOINT_LIMIT", {"bce": 0, "softmax": 0})
    gradient = solve(problem, tolerance=1e-6, max_rounds=300)
    assert gradient.converged
    assert float(gradient.objective) == pytest.approx(float(newton.objective), rel=2e-6)


def test_two_fits_are_bit_identical_and_a_warm_start_agrees() -> None:
    columns, targets = _problem("bce")
    first = solve(make_problem(Design(columns), torch.tensor(targets.T), "bce", 1e-3))
    problem = make_problem(Design(columns), torch.tensor(targets.T), "bce", 1e-3)
    assert torch.equal(first.coef, solve(problem).coef)
    warm = solve(problem, initial_state(problem, first.coef))
    assert warm.rounds <= 1
    assert torch.allclose(warm.objective, first.objective, rtol=1e-5)


def test_a_large_lambda_leaves_the_best_intercept_alone() -> None:
    columns, targets = _problem("bce")
    fit = solve(make_problem(Design(columns), torch.tensor(targets.T), "bce", 10.0))
    assert not fit.weights.any()
    mean = targets.mean(0)
    np.testing.assert_allclose(fit.intercepts.numpy(), np.log(mean / (1 - mean)), atol=1e-6)


def test_constant_and_repeated_columns_do_no_harm() -> None:
    columns, targets = _problem("bce")
    columns = np.hstack([columns, columns[:, :5], np.zeros((len(columns), 2))])
    fit = solve(make_problem(Design(columns), torch.tensor(targets.T), "bce", 1e-3), tolerance=1e-7)
    assert fit.converged
    assert not fit.weights[:, -2:].any()


@pytest.mark.parametrize("bad", [np.array([[np.nan, 1.0]]), np.zeros((0, 3)), np.zeros(3)])
def test_bad_columns_are_refused(bad) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="columns"):
        Design(bad)
