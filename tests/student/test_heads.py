from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from services.student.crossfit import label_strata, out_of_fold, stratified_folds
from services.student.heads import _fit, fit_head
from services.student.scaling import fit_scaling


def _data(n: int = 300, d: int = 20, k: int = 4, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * 0.9
    labels = rng.integers(0, k, n)
    features = centres[labels] + rng.normal(size=(n, d)) * [1 + j % 3 for j in range(d)]
    return features.astype(np.float32), np.eye(k, dtype=bool)[labels]


@pytest.mark.parametrize("l2", [1e-2, 1e-1])
def test_a_head_equals_scikit_learn(l2: float) -> None:
    features, hot = _data()
    weight, bias = _fit(features, hot, l2, multi_label=False)
    scaled = fit_scaling(features)(features)
    reference = LogisticRegression(C=1 / (len(hot) * l2), tol=1e-9, max_iter=5000)
    reference.fit(scaled, hot.argmax(1))
    expected = reference.decision_function(scaled)
    ours = features.astype(np.float64) @ weight.T + bias
    centred = ours - ours.mean(1, keepdims=True)
    np.testing.assert_allclose(centred, expected - expected.mean(1, keepdims=True), atol=2e-3)


def test_a_multi_label_head_equals_one_binary_fit_per_class() -> None:
    features, hot = _data()
    both = hot | np.roll(hot, 1, axis=0)
    weight, bias = _fit(features, both, 1e-2, multi_label=True)
    scaled = fit_scaling(features)(features)
    for k in range(both.shape[1]):
        reference = LogisticRegression(C=1 / (len(hot) * 1e-2), tol=1e-9, max_iter=5000)
        expected = reference.fit(scaled, both[:, k]).decision_function(scaled)
        ours = features.astype(np.float64) @ weight[k] + bias[k]
        np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_cross_fitted_logits_are_those_of_fits_that_did_not_see_the_item() -> None:
    features, hot = _data()
    head = fit_head(features, hot, seed=3)
    fold_of = stratified_folds(label_strata(hot), seed=3)
    held_out = np.flatnonzero(fold_of == 2)
    train = np.flatnonzero(fold_of != 2)
    weight, bias = _fit(features[train], hot[train], head.l2, multi_label=False)
    expected = features[held_out].astype(np.float64) @ weight.T + bias
    np.testing.assert_allclose(head.crossfit[held_out], expected, atol=1e-4)
    own = (features @ head.weight.T + head.bias).argmax(1) == hot.argmax(1)
    assert own.mean() > head.crossfit_accuracy > 0.4


def test_the_same_seed_gives_the_same_bits() -> None:
    features, hot = _data()
    one, two = fit_head(features, hot, seed=1), fit_head(features, hot, seed=1)
    assert one.weight.tobytes() == two.weight.tobytes()
    assert one.crossfit.tobytes() == two.crossfit.tobytes()


def test_what_cannot_be_fitted_is_refused() -> None:
    features, hot = _data()
    with pytest.raises(ValueError, match="two classes"):
        fit_head(features, np.eye(4, dtype=bool)[np.zeros(300, int)])
    features[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        fit_head(features, hot)


def test_folds_spread_every_class_and_cover_every_item_once() -> None:
    labels = np.array([0] * 23 + [1] * 11 + [2] * 3)
    fold_of = stratified_folds(labels, 5, seed=0)
    sizes = np.bincount(fold_of, minlength=5)
    assert sizes.max() - sizes.min() <= 1
    for label in (0, 1):
        per_fold = np.bincount(fold_of[labels == label], minlength=5)
        assert per_fold.max() - per_fold.min() <= 1
    seen = out_of_fold(fold_of, lambda train, held: np.ones((len(held), 1)), 1)
    assert (seen == 1).all()


def test_strata_of_several_labels_are_the_rarest() -> None:
    hot = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0]], bool)
    assert label_strata(hot).tolist() == [1, 0, 2, 1]


def test_a_flat_column_standardises_to_zero() -> None:
    values = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(fit_scaling(values)(values), [[-1, 0], [1, 0]])
