from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from services.student.design import Design
from services.student.evaluation import (
    EvaluationSettings,
    Truth,
    decisions,
    evaluate,
    table_estimate,
)
from services.student.metrics import bootstrap_counts
from services.student.ridge import fit_ridge
from services.student.scaling import fit_scaling


def _world(loss: str, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    n, t, d, k = 160, 120, 12, 4
    latent = rng.standard_normal((n + t, d))
    logits = 2.5 * latent[:, :k] + 0.3 * rng.standard_normal((n + t, k))
    if loss == "bce":
        q, hot = 1 / (1 + np.exp(-logits)), logits > 0
    else:
        scores = np.exp(logits)
        q, hot = scores / scores.sum(1, keepdims=True), np.eye(k, dtype=bool)[logits.argmax(1)]
    named = np.hstack([np.maximum(0, latent[:, :k]), np.maximum(0, -latent[:, :k]), latent[:, k:]])

    def draw(index: int):  # type: ignore[no-untyped-def]
        directions = np.random.default_rng(100 + index).standard_normal((d, named.shape[1]))
        values = np.maximum(0, latent @ directions)
        return values[:n], values[n:]

    truth = Truth(q[:n], q[n:], hot[n:], loss)  # type: ignore[arg-type]
    return truth, (named[:n], named[n:]), draw, (latent[:n], latent[n:])


SETTINGS = EvaluationSettings(budgets=(4, 2), draws=4, resamples=200)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_the_report_has_every_contender_at_both_budgets(loss) -> None:  # type: ignore[no-untyped-def]
    truth, named, draw, embedding = _world(loss)
    seen: list[tuple[int, int]] = []
    found = evaluate(truth, named, draw, draw(50), embedding, SETTINGS, lambda *at: seen.append(at))
    report = found.report
    for name in ("student", "random_control", "random_words", "sparse_probe"):
        for part, budget in ((report[name], 4), (report[name]["at_nec_2"], 2)):
            for metric in ("fidelity", "accuracy"):
                one = part[metric]
                assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1
            assert part["nec"]["value"] == budget
    assert report["paired_random"]["at_nec_2"]["fidelity"]["low"] > 0
    difference = (
        report["student"]["fidelity"]["value"] - report["random_control"]["fidelity"]["value"]
    )
    assert report["paired_random"]["fidelity"]["value"] == pytest.approx(difference)
    assert report["dense_probe"]["fidelity"]["value"] > 0.8
    assert seen[-1][0] == seen[-1][1]
    again = evaluate(truth, named, draw, draw(50), embedding, SETTINGS)
    assert again.report == report
    assert np.array_equal(again.students[2].weights, found.students[2].weights)


def test_fidelity_and_accuracy_are_plain_agreement() -> None:
    truth, named, draw, _ = _world("softmax")
    found = evaluate(truth, named, draw, settings=SETTINGS)
    scaling = fit_scaling(named[0])
    predicted = (
        scaling(named[1]) @ found.students[4].weights.T + found.students[4].intercepts
    ).argmax(1)
    assert truth.labels is not None
    student = found.report["student"]
    assert student["fidelity"]["value"] == np.mean(predicted == truth.test.argmax(1))
    assert student["accuracy"]["value"] == np.mean(predicted == truth.labels.argmax(1))
    for row, k in zip(student["per_class"], range(4), strict=True):
        is_k = truth.labels[:, k]
        assert row["recall"]["value"] == pytest.approx(np.mean(predicted[is_k] == k))


def test_average_precision_per_class_is_scikit_learns() -> None:
    truth, named, draw, _ = _world("bce")
    found = evaluate(truth, named, draw, settings=SETTINGS)
    logits = found.students[4].logits(fit_scaling(named[0])(named[1]))
    assert truth.labels is not None
    student = found.report["student"]
    wanted = [average_precision_score(truth.labels[:, k], logits[:, k]) for k in range(4)]
    assert [row["ap"]["value"] for row in student["per_class"]] == pytest.approx(wanted)
    assert student["mean_average_precision"] == pytest.approx(np.mean(wanted))


def test_what_has_no_value_says_why() -> None:
    truth, named, draw, _ = _world("bce")
    assert truth.labels is not None
    labels = truth.labels.copy()
    labels[:, 2] = False
    bare = Truth(truth.train, truth.test, labels, "bce")
    report = evaluate(bare, named, draw, settings=SETTINGS).report["student"]
    assert report["per_class"][2]["ap"]["value"] is None
    assert "label" in report["per_class"][2]["ap"]["reason"]
    unlabelled = Truth(truth.train, truth.test, None, "bce")
    report = evaluate(unlabelled, named, draw, settings=SETTINGS).report
    assert report["student"]["accuracy"]["value"] is None
    assert report["paired_random"]["accuracy"]["value"] is None
    assert report["student"]["fidelity"]["value"] is not None


def test_multi_label_decisions_are_not_read_as_single_labels() -> None:
    logits = np.array([[1.0, 2.0, -1.0], [-1.0, -2.0, -3.0]])
    assert decisions(logits, "bce").tolist() == [[True, True, False], [False, False, False]]
    assert decisions(logits, "softmax").tolist() == [[False, True, False], [True, False, False]]


def test_table_interval_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    table = (rng.random((5, 40)) < 0.7).astype(float)
    counts = bootstrap_counts(40, 300, 7)
    draws = bootstrap_counts(5, 300, 8)
    values = []
    for r in range(300):
        total = sum(draws[r, d] * counts[r, i] * table[d, i] for d in range(5) for i in range(40))
        values.append(total / 200)
    found = table_estimate(table, counts, 7)
    assert found.value == pytest.approx(table.mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_ridge_equals_scikit_learn() -> None:
    truth, _, _, embedding = _world("softmax")
    columns = fit_scaling(embedding[0])(embedding[0])
    labels = truth.train.argmax(1)
    coef = fit_ridge(Design(columns), np.eye(4)[labels], "softmax", 1e-2, tolerance=1e-9).numpy()
    reference = LogisticRegression(C=1 / (len(columns) * 1e-2), tol=1e-10, max_iter=5000)
    reference.fit(columns, labels)
    np.testing.assert_allclose(coef[:, :-1], reference.coef_, atol=1e-4)
    elsewhere = torch.full(coef.shape, 0.5, dtype=torch.float64)
    again = fit_ridge(
        Design(columns), np.eye(4)[labels], "softmax", 1e-2, tolerance=1e-9, start=elsewhere
    )
    np.testing.assert_allclose(again[:, :-1].numpy(), coef[:, :-1], atol=1e-6)
