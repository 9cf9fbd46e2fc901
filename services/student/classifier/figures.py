"""Figures of a classifier's logits: accuracy, likelihood, calibration, agreement, each with its
95 % bootstrap interval. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.student.metrics import (
    Doubles,
    Estimate,
    Mask,
    agreement,
    bootstrap_counts,
    mean_estimate,
    resampled,
)

BINS = 15
Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Predictions:
    """Logits [n, K] float64 of n items with labels [n, K] bool."""

    logits: Doubles
    hot: Mask
    multi_label: bool

    @property
    def correct(self) -> Doubles:
        """1 for a right label, else 0 [n]; of several labels the share that is right."""
        if self.multi_label:
            right: Doubles = ((self.logits > 0) == self.hot).mean(axis=1)
            return right
        return agreement(self.logits.argmax(axis=1), self.hot.argmax(axis=1))

    @property
    def negative_log_likelihood(self) -> Doubles:
        """Of the labels [n], in nats; of several labels the sum."""
        if self.multi_label:
            signs = np.where(self.hot, -1.0, 1.0)
            return np.asarray(np.logaddexp(0.0, signs * self.logits).sum(axis=1), np.float64)
        highest = self.logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(self.logits - highest).sum(axis=1)) + highest[:, 0]
        return np.asarray(log_sum - self.logits[self.hot], np.float64)

    def confidences(self) -> tuple[Doubles, Doubles]:
        """How sure each decision is, and whether it is right: [n, 1], of several labels [n, K]
        the probability of each and whether the item has it."""
        if self.multi_label:
            tail = np.exp(-np.logaddexp(0.0, -self.logits))
            return np.asarray(tail, np.float64), self.hot.astype(np.float64)
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        sure = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
        return sure[:, None], self.correct[:, None]


def calibration_error(sure: Doubles, right: Doubles, weights: Doubles) -> float:
    """Expected calibration error in `BINS` equal bins of how sure a decision is.

    `sure` and `right` are [n, m], an item's row counting `weights` [n] times.
    """
    bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1).ravel()
    spread = np.broadcast_to(weights[:, None], sure.shape).ravel()
    gaps = np.bincount(bins, spread * (right - sure).ravel(), minlength=BINS)
    return float(np.abs(gaps).sum() / spread.sum())


def figures(found: Predictions, teacher: Doubles | None = None) -> dict[str, dict[str, float]]:
    """Estimates by name; `teacher` are logits [n, K] to agree with. Raises Undefined for no items.

    One bootstrap for all, so that differences between students of the same items are paired.
    """
    counts = bootstrap_counts(len(found.logits))
    sure, right = found.confidences()
    made: dict[str, Estimate] = {
        "accuracy": mean_estimate(found.correct, counts),
        "negative_log_likelihood": mean_estimate(found.negative_log_likelihood, counts),
        "expected_calibration_error": resampled(
            lambda weights: calibration_error(sure, right, weights), counts
        ),
    }
    if teacher is not None:
        made["agreement"] = mean_estimate(_agreement(found, teacher), counts)
    return {name: estimate.as_dict() for name, estimate in made.items()}


def _agreement(found: Predictions, teacher: Doubles) -> Doubles:
    """1 where student and teacher decide alike, else 0 [n]; of several labels the share."""
    if found.multi_label:
        same: Doubles = ((found.logits > 0) == (teacher > 0)).mean(axis=1)
        return same
    return agreement(found.logits.argmax(axis=1), teacher.argmax(axis=1))
