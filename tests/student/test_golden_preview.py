"""The numbers that every copy of the preview's maths is held to, computed again here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_score, recall_score

from scripts import golden_preview
from scripts.golden_preview import Case, changed, figures

STEPS = ("before", "after")


@pytest.fixture(scope="module", params=["softmax", "bce"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = json.loads(golden_preview.OUT.read_text())[request.param]
    return found


def expected(case: Case, step: str) -> Case:
    return figures(case, np.array(case["weight"]) if step == "before" else changed(case))


@pytest.mark.parametrize("step", STEPS)
def test_the_service_still_says_so(case: Case, step: str) -> None:
    for name, value in expected(case, step).items():
        wanted, got = (np.array(one, float) for one in (case[step][name], value))
        np.testing.assert_allclose(got, wanted, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("step", STEPS)
def test_figures_are_those_of_scikit_learn(case: Case, step: str) -> None:
    found, labels = np.array(case[step]["decisions"]), np.array(case["labels"])
    responses, softmax = np.array(case["responses"]), case["loss"] == "softmax"
    teacher = responses > 0.5
    if softmax:
        teacher = np.eye(found.shape[1], dtype=bool)[responses.argmax(axis=1)]
    for name, truth in (("fidelity", teacher), ("accuracy", labels)):
        share = (
            accuracy_score(truth.argmax(axis=1), found.argmax(axis=1))
            if softmax
            else np.mean(np.equal(truth, found))
        )
        assert case[step][name] == pytest.approx(share)
    for name, measure in (("recall", recall_score), ("precision", precision_score)):
        values = measure(labels, found, average=None, zero_division=np.nan)
        shown = np.array(case[step][name], float)
        np.testing.assert_allclose(shown, values, atol=1e-9, equal_nan=True)


def test_the_case_has_what_it_must_show(case: Case) -> None:
    assert golden_preview.margin(case) > golden_preview.SMALLEST_MARGIN
    assert case["flipped"]
    if case["loss"] == "softmax":
        assert case["before"]["precision"][-1] is None
    assert case["weight"] != changed(case).tolist()
