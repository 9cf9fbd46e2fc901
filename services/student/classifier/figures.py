"""Figures of a classifier's logits: accuracy, likelihood, calibration, agreement, each with its
95 % bootstrap interval. Pure numpy."""

from __future__ import annotations

import numpy as np

from services.common.predictions import Predictions, calibration_gaps
from services.student.metrics import (
    Doubles,
    Estimate,
    bootstrap_counts,
    mean_estimate,
    resampled,
)


def calibration_error(gaps: Doubles, weights: Doubles) -> float:
    """Expected calibration error of items with these gaps [n, BINS], an item counting `weights`
    [n] times."""
    return float(np.abs(weights @ gaps).sum() / weights.sum())


def figures(found: Predictions, teacher: Doubles | None = None) -> dict[str, dict[str, float]]:
    """Estimates by name; `teacher` are logits [n, K] to agree with. Raises Undefined for no items.

    One bootstrap for all, so that differences between students of the same items are paired.
    """
    counts = bootstrap_counts(len(found.logits))
    gaps = calibration_gaps(*found.confidences())
    made: dict[str, Estimate] = {
        "accuracy": mean_estimate(found.correct, counts),
        "negative_log_likelihood": mean_estimate(found.negative_log_likelihood, counts),
        "expected_calibration_error": resampled(
            lambda weights: calibration_error(gaps, weights), counts
        ),
    }
    if teacher is not None:
        made["agreement"] = mean_estimate(found.agreement(teacher), counts)
    return {name: estimate.as_dict() for name, estimate in made.items()}
