"""Metrics of students with 95 % bootstrap intervals, undefined ones named as such.

A metric is a function of items; the bootstrap draws items with replacement, the same draws for
every metric
and model of a report, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
DRAWS = 1000
NON_ZERO = 1e-5
"""A weight counts towards NEC above this (VLG-CBM's rule)."""


class Undefined(ValueError):
    """A metric has no value on these items; the message says why."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The estimate as JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_counts(items: int, draws: int = DRAWS, seed: int = 0) -> Doubles:
    """How often each of n items is drawn in each resample, [draws, n]."""
    if not items:
        raise Undefined("there are no items")
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=draws).astype(np.float64)


def _interval(value: float, resampled: Doubles) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def mean_estimate(scores: Doubles | Mask, counts: Doubles) -> Estimate:
    """Mean of per-item scores [n], with interval; `counts` are of bootstrap_counts."""
    values = np.asarray(scores, np.float64)
    return _interval(values.mean(), counts @ values / counts.sum(axis=1))


def ratio_estimate(hits: Mask, among: Mask, counts: Doubles, *, nothing: str) -> Estimate:
    """Share of `hits` among `among` (recall, precision). Raises Undefined where there is none."""
    if not among.any():
        raise Undefined(nothing)
    both = (hits & among).astype(np.float64)
    base = counts @ among.astype(np.float64)
    drawn = base > 0
    return _interval(both.sum() / among.sum(), (counts @ both)[drawn] / base[drawn])


def agreement(first: Ints, second: Ints) -> Doubles:
    """Per-item 0 or 1: do two predictions agree (fidelity, accuracy)."""
    return np.asarray(first == second, np.float64)


def recall(predicted: Ints, truth: Ints, label: int, counts: Doubles) -> Estimate:
    """Share of a class's items that are found. Raises Undefined where it has none."""
    return ratio_estimate(
        predicted == label, truth == label, counts, nothing="the class has no items here"
    )


def precision(predicted: Ints, truth: Ints, label: int, counts: Doubles) -> Estimate:
    """Share of a class's predictions that are right. Raises Undefined where it is never
    predicted."""
    return ratio_estimate(
        truth == label, predicted == label, counts, nothing="the class is never predicted here"
    )


def average_precision(scores: Doubles, truth: Mask, weights: Doubles | None = None) -> float:
    """Average precision of scores [n]: sum over thresholds of (recall step) times precision.

    `weights` [n] count items several times. Tied scores are one threshold, as scikit-learn has it.
    Raises
    Undefined where there is no positive item.
    """
    weight = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    hits = np.cumsum((weight * truth)[order])
    drawn = np.cumsum(weight[order])
    if not len(hits) or hits[-1] <= 0:
        raise Undefined("no item has this label here")
    last_of_tie = np.append(np.diff(sorted_scores) != 0, True)
    found, taken = hits[last_of_tie], drawn[last_of_tie]
    steps = np.diff(found, prepend=0.0) / hits[-1]
    return float((steps * found / np.maximum(taken, 1e-300)).sum())


def roc_auc(scores: Doubles, truth: Mask) -> float:
    """Area under the ROC curve: chance that a positive outranks a negative, ties half."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise Undefined("needs items with and without the label")
    _, rank_of, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(sizes) - (sizes - 1) / 2
    ranks = mid_ranks[rank_of]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def resampled(metric: Callable[[Doubles], float], counts: Doubles, limit: int = 200) -> Estimate:
    """Estimate of a metric that takes item weights [n], from at most `limit` resamples."""
    value = metric(np.ones(counts.shape[1]))
    draws = []
    for row in counts[:limit]:
        try:
            draws.append(metric(row))
        except Undefined:
            continue
    return _interval(value, np.array(draws or [value]))


def nec(weight: npt.NDArray[np.floating]) -> float:
    """Number of effective concepts: mean number of non-zero weights per class of weight [K, M]."""
    return float((np.abs(weight) > NON_ZERO).sum(axis=1).mean())


def nec_estimate(weight: npt.NDArray[np.floating], seed: int = 0) -> Estimate:
    """NEC with the spread over classes (bootstrap over classes)."""
    per_class = (np.abs(weight) > NON_ZERO).sum(axis=1).astype(np.float64)
    return mean_estimate(per_class, bootstrap_counts(len(per_class), seed=seed))
