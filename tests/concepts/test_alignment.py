"""The closed-form head: its normal equations, its limits, and what attribute rows are for."""

from __future__ import annotations

import numpy as np
import pytest

from services.concepts.alignment import Rows, fit_head


def make_rows(count=60, features=20, dim=8, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=(dim, features))
    vectors = generator.normal(size=(count, features))
    texts = vectors @ truth.T + 0.01 * generator.normal(size=(count, dim))
    return Rows(vectors + 5.0, texts - 3.0), truth


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_head_solves_its_normal_equations():
    rows, _ = make_rows()
    weight = fit_head(rows, text_ridge=2.0, feature_ridge=7.0).weight.astype(np.float64)
    vectors = rows.vectors - rows.vectors.mean(axis=0)
    texts = unit(rows.texts - rows.texts.mean(axis=0))
    left = (texts.T @ texts + 2 * np.eye(8)) @ weight @ (vectors.T @ vectors + 7 * np.eye(20))
    right = texts.T @ vectors
    scale = (left * right).sum() / (right**2).sum()
    np.testing.assert_allclose(left, scale * right, atol=1e-4 * np.abs(left).max())


def test_new_vectors_land_on_their_own_texts():
    rows, truth = make_rows(count=200)
    head = fit_head(rows, text_ridge=1e-3, feature_ridge=1e-3)
    fresh = np.random.default_rng(9).normal(size=(30, 20))
    landed = unit(fresh @ head.weight.T)
    scores = landed @ unit(fresh @ truth.T).T
    assert (scores.argmax(axis=1) == np.arange(30)).mean() > 0.9


def test_the_bias_sends_the_mean_feature_to_the_origin():
    rows, _ = make_rows()
    mean = np.random.default_rng(1).normal(size=20)
    head = fit_head(rows, feature_mean=mean)
    np.testing.assert_allclose(mean @ head.weight.T + head.bias, 0, atol=1e-5)
    assert not fit_head(rows).bias.any()


def test_attribute_rows_ground_a_word_that_no_class_name_explains():
    rows, _ = make_rows()
    generator = np.random.default_rng(2)
    direction, text = generator.normal(size=(1, 20)), unit(generator.normal(size=(1, 8)))
    attributes = Rows(np.repeat(direction, 2, axis=0), np.repeat(text, 2, axis=0))

    def agreement(head):
        return float(unit(direction @ head.weight.T)[0] @ text[0])

    assert agreement(fit_head(rows, attributes)) > agreement(fit_head(rows)) + 0.1


def test_it_is_deterministic():
    rows, _ = make_rows()
    assert fit_head(rows).weight.tobytes() == fit_head(rows).weight.tobytes()


@pytest.mark.parametrize(
    ("vectors", "texts"),
    [
        (np.ones((3, 4)), np.ones((2, 4))),
        (np.ones((1, 4)), np.ones((1, 4))),
        (np.full((3, 4), np.nan), np.ones((3, 2))),
        (np.ones(4), np.ones(4)),
    ],
)
def test_rows_that_do_not_fit_are_refused(vectors, texts):
    with pytest.raises(ValueError, match=r"pairs|finite"):
        fit_head(Rows(vectors, texts))


def test_penalties_and_means_are_checked():
    rows, _ = make_rows()
    with pytest.raises(ValueError, match="above zero"):
        fit_head(rows, text_ridge=0.0)
    with pytest.raises(ValueError, match="mean feature"):
        fit_head(rows, feature_mean=np.zeros(3))
