from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from services.student.path import PathSettings, fit_path, truncate


def _data(loss: str, n: int = 250, m: int = 60, k: int = 5, seed: int = 1):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((n, 8)) @ rng.standard_normal((8, m)) + rng.standard_normal(
        (n, m)
    )
    columns = (columns - columns.mean(0)) / columns.std(0)
    logits = 1.5 * columns[:, :k] + columns[:, k : 2 * k] + 0.5 * rng.standard_normal((n, k))
    if loss == "bce":
        return columns, 1 / (1 + np.exp(-logits))
    scores = np.exp(logits - logits.max(1, keepdims=True))
    return columns, scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_every_budget_is_met_exactly(loss) -> None:  # type: ignore[no-untyped-def]
    columns, targets = _data(loss)
    fits = fit_path(columns, targets, loss, (10, 3, 2.4))
    assert {budget: fit.nec for budget, fit in fits.items()} == {10: 10.0, 3: 3.0, 2.4: 2.4}
    assert fits[3].lam > fits[10].lam
    again = fit_path(columns, targets, loss, (10, 3, 2.4))
    assert all(np.array_equal(fits[b].weights, again[b].weights) for b in fits)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_the_refit_is_the_optimum_on_its_support(loss) -> None:  # type: ignore[no-untyped-def]
    columns, targets = _data(loss)
    fit = fit_path(columns, targets, loss, (4,), PathSettings(refit_l2=1e-2))[4]
    support = fit.weights != 0
    k = targets.shape[1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.zeros(support.shape)
        weights[support] = flat[:-k]
        z = columns @ weights.T + flat[-k:]
        if loss == "bce":
            value = (np.logaddexp(0, z) - targets * z).sum()
            residual = 1 / (1 + np.exp(-z)) - targets
        else:
            total = np.exp(z).sum(1, keepdims=True)
            value = (targets * (np.log(total) - z)).sum()
            residual = np.exp(z) / total - targets
        n = len(columns)
        slope = (residual.T @ columns / n + 1e-2 * weights)[support]
        value = value / n + 5e-3 * (weights**2).sum()
        return float(value), np.append(slope, residual.sum(0) / n)

    found = minimize(objective, np.zeros(support.sum() + k), jac=True, tol=1e-12)
    mine = objective(np.append(fit.weights[support], fit.intercepts))[0]
    assert mine == pytest.approx(found.fun, rel=1e-7)


def test_truncation_keeps_the_largest_weights_and_all_intercepts() -> None:
    coef = torch.tensor([[3.0, -1.0, 0.0, 9.0], [0.5, 2.0, 1e-7, 9.0]], dtype=torch.float64)
    assert truncate(coef, 1.5).tolist() == [
        [True, True, False, True],
        [False, True, False, True],
    ]


def test_a_budget_past_the_columns_gets_what_there_is() -> None:
    columns, targets = _data("bce", m=10)
    assert fit_path(columns, targets, "bce", (30,))[30].nec <= 10


def test_bad_input_is_refused() -> None:
    columns, targets = _data("softmax")
    with pytest.raises(ValueError, match="sum to one"):
        fit_path(columns, targets * 0.5, "softmax", (3,))
    with pytest.raises(ValueError, match="fit"):
        fit_path(columns, targets[:-1], "softmax", (3,))
    with pytest.raises(ValueError, match="budgets"):
        fit_path(columns, targets, "softmax", (0,))
