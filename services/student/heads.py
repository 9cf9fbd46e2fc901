"""Linear teacher heads: ridge-penalised logistic regression on frozen features, with cross-fitted
logits.

    mean cross-entropy + l2 / 2 * |W|^2 on standardised features, free intercepts

A head's logits on its own training data are nearly one-hot, so distilling them teaches little; the
cross-fitted
logits of an item come from the fold that did not see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.student.crossfit import FOLDS, label_strata, out_of_fold, stratified_folds
from services.student.scaling import Scaling, fit_scaling

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
L2_GRID = (1e-3, 1e-2, 1e-1)
MAX_STEPS = 300


@dataclass(frozen=True)
class Head:
    """logits = features @ weight.T + bias, on raw features; crossfit [n, K]; accuracy out of
    fold."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    crossfit: npt.NDArray[np.float32]
    l2: float
    crossfit_accuracy: float


def fit_head(
    features: npt.NDArray[np.floating],
    hot: Mask,
    *,
    multi_label: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Head:
    """Fit a head to features [n, D] and labels bool [n, K]; the penalty is chosen out of fold.

    Deterministic for one thread count. Raises ValueError for fewer than two classes with items or
    values that are
    not finite.
    """
    _check(features, hot)
    fold_of = stratified_folds(label_strata(hot), min(FOLDS, len(hot)), seed)
    total = len(L2_GRID) + 1
    tried = []
    for done, l2 in enumerate(L2_GRID):
        progress(done, total)
        logits = _cross_fit(features, hot, fold_of, l2, multi_label=multi_label)
        tried.append((_cross_entropy(logits, hot, multi_label=multi_label), l2, logits))
    _, l2, crossfit = min(tried, key=lambda one: one[0])
    progress(len(L2_GRID), total)
    weight, bias = _fit(features, hot, l2, multi_label=multi_label)
    progress(total, total)
    right = (crossfit > 0) == hot if multi_label else crossfit.argmax(1) == hot.argmax(1)
    return Head(
        weight.astype(np.float32),
        bias.astype(np.float32),
        crossfit.astype(np.float32),
        l2,
        float(np.mean(right)),
    )


def _check(features: npt.NDArray[np.floating], hot: Mask) -> None:
    if features.ndim != 2 or hot.ndim != 2 or len(features) != len(hot):
        raise ValueError(f"features {features.shape} and labels {hot.shape} do not fit together")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinity")
    if int(hot.any(axis=0).sum()) < 2:
        raise ValueError("at least two classes need labelled items in train and val")


def _cross_fit(
    features: npt.NDArray[np.floating],
    hot: Mask,
    fold_of: npt.NDArray[np.int64],
    l2: float,
    *,
    multi_label: bool,
) -> Doubles:
    def predict(train: npt.NDArray[np.int64], held_out: npt.NDArray[np.int64]) -> Doubles:
        weight, bias = _fit(features[train], hot[train], l2, multi_label=multi_label)
        return np.asarray(features[held_out].astype(np.float64) @ weight.T + bias, np.float64)

    return out_of_fold(fold_of, predict, hot.shape[1])


def _fit(
    features: npt.NDArray[np.floating], hot: Mask, l2: float, *, multi_label: bool
) -> tuple[Doubles, Doubles]:
    """Weight [K, D] and bias [K] on raw features."""
    scaling = fit_scaling(features)
    columns = torch.from_numpy(scaling(features))
    targets = torch.from_numpy(hot.astype(np.float64))
    weight, bias = _minimise(columns, targets, l2, multi_label=multi_label)
    return _to_raw(weight.numpy(), bias.numpy(), scaling)


def _to_raw(weight: Doubles, bias: Doubles, scaling: Scaling) -> tuple[Doubles, Doubles]:
    raw = weight / scaling.std.astype(np.float64)
    return raw, bias - raw @ scaling.mean.astype(np.float64)


def _minimise(
    columns: Tensor, targets: Tensor, l2: float, *, multi_label: bool
) -> tuple[Tensor, Tensor]:
    """L-BFGS from zero, fp64. Multi-label sums the classes' binary losses.

    In the columns' principal axes, each scaled by the curvature that the loss has there at most:
    the same minimum in tens of steps, where raw features need hundreds.
    """
    rotated, axes, energy = _principal(columns)
    pace = (energy / (4 * len(columns)) + l2).rsqrt()
    scaled = rotated * pace
    weight = torch.zeros(targets.shape[1], scaled.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_STEPS,
        tolerance_grad=1e-5,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        loss = _mean_loss(scaled @ weight.T + bias, targets, multi_label=multi_label)
        loss = loss + l2 / 2 * (weight * pace).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return (weight.detach() * pace) @ axes, bias.detach()


def _principal(columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns [n, D] as rotated [n, r] @ axes [r, D], and the energy [r] of each axis.

    Axes without energy carry no weight at the minimum and are left out.
    """
    tall = len(columns) > columns.shape[1]
    energy, vectors = torch.linalg.eigh(columns.T @ columns if tall else columns @ columns.T)
    kept = energy > 1e-10 * energy[-1].clamp_min(1e-300)
    energy, vectors = energy[kept], vectors[:, kept]
    if tall:
        return columns @ vectors, vectors.T, energy
    axes = (columns.T @ vectors / energy.sqrt()).T
    return vectors * energy.sqrt(), axes, energy


def _mean_loss(logits: Tensor, targets: Tensor, *, multi_label: bool) -> Tensor:
    if multi_label:
        losses = torch.nn.functional.softplus(logits) - targets * logits
        return losses.sum(dim=1).mean()
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()


def _cross_entropy(logits: Doubles, hot: Mask, *, multi_label: bool) -> float:
    targets = torch.from_numpy(hot.astype(np.float64))
    return float(_mean_loss(torch.from_numpy(logits), targets, multi_label=multi_label))
