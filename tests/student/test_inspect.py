"""Inspect against the data it was made from, computed here again by other code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from stillhouse.student.v1 import student_pb2

from services.common.presence import presence
from services.common.tensors import unpack_arrays
from services.student.artefacts import read_student
from tests.student import suite
from tests.student.suite import CLASSES, PROJECT


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with suite.service(tmp_path_factory.mktemp("student")) as service:
        yield service


def inspect(running, ref):
    request = student_pb2.InspectRequest(project=PROJECT, student=ref)
    found = running.stub.Inspect(request)
    return found, unpack_arrays(running.blobs.get(PROJECT, found.arrays.digest))


@pytest.fixture(scope="module", params=["softmax", "bce"])
def case(request, running):
    """Loss, data, and the reference of a student of both kinds."""
    data = suite.make_data(running.blobs, multi_label=request.param == "bce")
    loss = student_pb2.LOSS_BCE if request.param == "bce" else student_pb2.LOSS_SOFTMAX
    recipe = suite.concept_request(data, f"inspect-{request.param}", loss=loss, control_draws=-1)
    return request.param, data, running.student(recipe)


def known_rows(data) -> np.ndarray:
    """Items of train and val; item 7 has no regions."""
    return np.array([i for i in np.flatnonzero(data.split != "test") if i != 7])


def test_arrays_are_those_of_train_and_val(running, case):
    loss, data, ref = case
    found, arrays = inspect(running, ref)
    rows = known_rows(data)
    student = read_student(running.blobs, PROJECT, ref)
    bank = student.bank
    regions = [data.region_rows[i] for i in rows]
    offsets = np.cumsum([0, *map(len, regions)])
    brute = presence(
        np.concatenate(regions), offsets, bank.text, bank.image_mean, bank.text_mean
    ).values
    np.testing.assert_allclose(arrays["presence"], brute, atol=1e-6)
    wanted = expit(data.logits[rows]) if loss == "bce" else softmax(data.logits[rows], axis=1)
    np.testing.assert_allclose(arrays["responses"], wanted, atol=1e-6)
    np.testing.assert_array_equal(arrays["labels"], data.hot[rows])
    kinds = {name: array.dtype.str for name, array in arrays.items()}
    assert kinds.pop("labels") == "|u1"
    assert set(kinds.values()) == {"<f4"}
    assert [one.item_id for one in found.items] == [f"item-{i}" for i in rows]
    assert [one.split for one in found.items] == list(data.split[rows])
    assert found.arrays.size_bytes == len(running.blobs.get(PROJECT, found.arrays.digest))


def test_logits_of_the_arrays_are_those_of_predict(running, case):
    loss, data, ref = case
    found, arrays = inspect(running, ref)
    student = read_student(running.blobs, PROJECT, ref)
    columns = (arrays["presence"] - arrays["mean"]) / arrays["std"]
    logits = columns @ student.weight.T + student.bias
    rows = known_rows(data)[:50]
    items = [suite.region_input(data.region_rows[i]) for i in rows]
    request = student_pb2.PredictRequest(project=PROJECT, student=ref, items=items)
    answers = [
        np.frombuffer(one.prediction.logits.data, "<f4")
        for one in running.stub.Predict(request).results
    ]
    np.testing.assert_allclose(logits[:50], answers, atol=1e-4)
    assert found.loss == (student_pb2.LOSS_BCE if loss == "bce" else student_pb2.LOSS_SOFTMAX)
    assert (list(found.classes), list(found.concepts)) == (list(CLASSES), data.words)


def test_tuned_versions_share_the_blob(running, case):
    _, _, ref = case
    student = read_student(running.blobs, PROJECT, ref)
    edit = student_pb2.ConceptEdit(
        label=CLASSES[0],
        concept=student.concepts[int(np.argmax(student.weight[0]))],
        direction=student_pb2.DIRECTION_UP,
        factor=2,
    )
    request = student_pb2.RefitRequest(project=PROJECT, student=ref, edits=[edit], random_edits=-1)
    tuned = running.stub.Refit(request).student
    assert tuned.weights_digest != ref.weights_digest
    first, second = inspect(running, ref)[0], inspect(running, tuned)[0]
    assert second.arrays == first.arrays
    assert second.heldout != first.heldout


def test_heldout_logits_give_the_fidelity_of_evaluate(running, case):
    loss, _, ref = case
    found, arrays = inspect(running, ref)
    logits = unpack_arrays(running.blobs.get(PROJECT, found.heldout.digest))["logits"]
    rows = [i for i, item in enumerate(found.items) if item.split == "train"]
    if loss == "bce":
        agree = ((logits > 0) == (arrays["responses"] > 0.5)).mean(axis=1)
    else:
        agree = logits.argmax(axis=1) == arrays["responses"].argmax(axis=1)
    request = student_pb2.EvaluateRequest(project=PROJECT, student=ref, split="train")
    measured = running.stub.Evaluate(request).metrics["fidelity"].value
    assert np.mean(agree[rows]) == pytest.approx(measured, abs=1e-9)


def test_maps_are_principal_components(running, case):
    """Axes against numpy's singular values; the sign of an axis is a convention."""
    _, data, ref = case
    arrays = inspect(running, ref)[1]
    bank = read_student(running.blobs, PROJECT, ref).bank

    def unit(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64) - mean
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    words = unit(bank.text, bank.text_mean)
    centre = words.mean(axis=0)
    _, _, axes = np.linalg.svd(words - centre)
    axes = axes[:2] * np.sign([[one[np.abs(one).argmax()]] for one in axes[:2]])
    np.testing.assert_allclose(arrays["concept_map"], (words - centre) @ axes.T, atol=1e-4)
    means = np.zeros((len(CLASSES), words.shape[1]))
    for i in known_rows(data):
        means[data.hot[i]] += unit(data.region_rows[i], bank.image_mean).mean(axis=0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(arrays["class_map"], (means - centre) @ axes.T, atol=1e-4)
