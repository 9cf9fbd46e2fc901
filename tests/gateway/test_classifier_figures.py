"""Figures of several seeds on the same images, beside a loop and in the extremes."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.predictions import BINS, Predictions
from services.gateway.jobs.classifier_figures import CALIBRATION, differences, figures

RNG = np.random.default_rng(0)


def made(images: int, multi_label: bool = False, noise: float = 1.0) -> Predictions:
    hot = np.eye(3, dtype=bool)[np.arange(images) % 3]
    logits = 2 * hot + noise * RNG.normal(size=(images, 3))
    return Predictions(logits, hot, multi_label)


def calibration(one: Predictions) -> float:
    sure, right = (part.ravel() for part in one.confidences())
    total = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (sure > low) & (sure <= low + 1 / BINS)
        total += abs((right[inside] - sure[inside]).sum())
    return total / len(sure)


@pytest.mark.parametrize("multi_label", [False, True])
def test_figures_are_means_over_seeds_with_intervals(multi_label: bool) -> None:
    seeds = [made(90, multi_label) for _ in range(2)]
    found = figures(seeds, seeds[0].logits)
    accuracy = np.mean([one.correct.mean() for one in seeds])
    assert found["accuracy"]["value"] == pytest.approx(accuracy)
    assert found["accuracy"]["low"] < accuracy < found["accuracy"]["high"]
    assert found[CALIBRATION]["value"] == pytest.approx(np.mean([*map(calibration, seeds)]))
    agreed = (1 + seeds[1].agreement(seeds[0].logits).mean()) / 2
    assert found["agreement"]["value"] == pytest.approx(agreed)
    assert {one["count"] for one in found.values()} == {90}


def test_differences_are_paired() -> None:
    better, worse = [made(300, noise=0.1)], [made(300, noise=3.0)]
    gap = differences(better, worse)
    assert gap["accuracy"]["low"] > 0
    assert gap["negative_log_likelihood"]["high"] < 0
    same = differences(worse, worse)
    assert all(one["value"] == one["low"] == one["high"] == 0 for one in same.values())


def test_no_images_give_reasons() -> None:
    empty = Predictions(np.zeros((0, 3)), np.zeros((0, 3), bool), False)
    found = figures([empty])
    assert found["accuracy"]["value"] is None
    assert "nothing" in found["accuracy"]["reason"]
    assert CALIBRATION not in found
