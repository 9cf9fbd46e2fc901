from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from services.student.metrics import (
    Undefined,
    agreement,
    average_precision,
    bootstrap_counts,
    mean_estimate,
    nec,
    precision,
    recall,
    resampled,
    roc_auc,
)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_equal_scikit_learn_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, 80) / 4.0
    truth = rng.random(80) < 0.3
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores))
    assert roc_auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores))


def test_item_weights_count_items_several_times() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=30), rng.random(30) < 0.5
    counts = rng.integers(0, 4, 30)
    repeated = np.repeat(np.arange(30), counts)
    assert average_precision(scores, truth, counts.astype(float)) == pytest.approx(
        average_precision_score(truth[repeated], scores[repeated])
    )


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        sample = (rng.random(150) < 0.7).astype(float)
        estimate = mean_estimate(sample, bootstrap_counts(150, 400, seed=trial))
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_bootstrap_equals_a_loop_over_drawn_items() -> None:
    counts = bootstrap_counts(20, 50, seed=3)
    assert (counts.sum(axis=1) == 20).all()
    scores = np.random.default_rng(2).random(20)
    loop = [np.repeat(scores, row.astype(int)).mean() for row in counts]
    estimate = mean_estimate(scores, counts)
    assert estimate.low == pytest.approx(min(np.percentile(loop, 2.5), scores.mean()))
    assert estimate.high == pytest.approx(max(np.percentile(loop, 97.5), scores.mean()))


def test_class_metrics_by_hand_and_undefined_ones_say_so() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1])
    counts = bootstrap_counts(6)
    assert recall(predicted, truth, 0, counts).value == pytest.approx(2 / 3)
    assert precision(predicted, truth, 1, counts).value == pytest.approx(2 / 4)
    with pytest.raises(Undefined, match="never predicted"):
        precision(predicted, truth, 2, counts)
    with pytest.raises(Undefined, match="no items"):
        recall(predicted, truth, 3, counts)
    with pytest.raises(Undefined):
        average_precision(np.array([1.0, 2.0]), np.array([False, False]))
    with pytest.raises(Undefined):
        bootstrap_counts(0)
    assert agreement(truth, predicted).mean() == pytest.approx(4 / 6)


def test_resampling_skips_draws_where_the_metric_is_undefined() -> None:
    scores, truth = np.array([0.1, 0.9, 0.5]), np.array([False, True, False])
    counts = bootstrap_counts(3, 100)
    estimate = resampled(lambda weights: average_precision(scores, truth, weights), counts)
    assert estimate.value == estimate.high == 1.0


def test_nec_counts_weights_above_the_threshold() -> None:
    assert nec(np.array([[0.5, 0, 1e-6], [1.0, -2.0, 0.1]])) == 2.0
