"""Figures of several classifiers on the same test images, with intervals over training seeds and
images; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.common.predictions import Doubles, Predictions, calibration_gaps
from services.gateway.jobs.intervals import DRAWS, Estimate, Table, difference, estimate

CALIBRATION = "expected_calibration_error"
_AT_ONCE = 4 << 20
"""Numbers drawn at a time."""
_LOW, _HIGH = 2.5, 97.5


def figures(seeds: Sequence[Predictions], teacher: Doubles | None = None) -> dict[str, Estimate]:
    """Return the estimates of one arm by name: `accuracy`, `negative_log_likelihood`,
    `expected_calibration_error`, and with `teacher`, logits [n, K], `agreement`.

    `seeds` are the predictions of each training seed for the same n images.
    """
    found = {name: estimate(one) for name, one in _tables(seeds, teacher).items()}
    if len(seeds[0].logits):
        found[CALIBRATION] = _estimate(*_calibration(seeds), count=len(seeds[0].logits))
    return found


def differences(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    teacher: Doubles | None = None,
) -> dict[str, Estimate]:
    """Return the figures of `first` minus those of `second`, paired by seed and image."""
    ours, theirs = _tables(first, teacher), _tables(second, teacher)
    found = {name: difference(one, theirs[name]) for name, one in ours.items()}
    if len(first[0].logits):
        (one, drawn), (other, theirs_drawn) = _calibration(first), _calibration(second)
        found[CALIBRATION] = _estimate(one - other, drawn - theirs_drawn, len(first[0].logits))
    return found


def _tables(seeds: Sequence[Predictions], teacher: Doubles | None) -> dict[str, Table]:
    """Return the tables [seeds, images] of the figures that are means over images."""
    rows = {
        "accuracy": [one.correct for one in seeds],
        "negative_log_likelihood": [one.negative_log_likelihood for one in seeds],
    }
    if teacher is not None:
        rows["agreement"] = [one.agreement(teacher) for one in seeds]
    return {name: _table(np.stack(values)) for name, values in rows.items()}


def _table(values: Doubles) -> Table:
    return Table(values, np.ones_like(values), tuple(map(str, range(values.shape[1]))))


def _calibration(seeds: Sequence[Predictions]) -> tuple[float, Doubles]:
    """Return the mean calibration error over seeds, and DRAWS of it with seeds and images drawn
    anew. Equally many seeds and images are drawn alike, so that two arms are paired."""
    gaps = np.stack([calibration_gaps(*one.confidences()) for one in seeds], axis=1)
    images, runs, _ = gaps.shape
    draw = np.random.default_rng([8, 0])
    shares, rows = np.full(images, 1 / images), max(_AT_ONCE // images, 1)
    parts = []
    for at in range(0, DRAWS, rows):
        counts = draw.multinomial(images, shares, min(rows, DRAWS - at)).astype(np.float64)
        parts.append(np.abs(np.tensordot(counts, gaps, axes=1)).sum(axis=2) / images)
    by_seed = draw.multinomial(runs, np.full(runs, 1 / runs), DRAWS) / runs
    drawn = (np.concatenate(parts) * by_seed).sum(axis=1)
    return float(np.abs(gaps.sum(axis=0)).sum() / images / runs), np.asarray(drawn, np.float64)


def _estimate(value: float, drawn: Doubles, count: int) -> Estimate:
    low, high = np.percentile(drawn, [_LOW, _HIGH])
    return {"value": value, "low": float(low), "high": float(high), "count": count}
