"""The classifier recipe end to end in this process, on a small network and small photos."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load
from stillhouse.student.v1 import student_pb2

from services.common.augmentation import Augmentation
from services.common.classifier_records import ClassifierRecord
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.images import decode
from services.common.tensors import unpack_arrays
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from services.torch_common.classifiers import build_classifier
from services.torch_common.preprocess import Preprocessing
from tests.student import classifier_suite as suite

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(blobs):
    return suite.make_data(blobs)


@pytest.fixture(scope="module")
def around(home):
    catalogue = suite.make_catalogue(home / "weights")
    return Surroundings(cache_dir=home / "cache", catalogue=catalogue)


@pytest.fixture
def run(home, blobs, around):
    """Train a request in this process; gives the result."""
    events = []

    def go(asked: student_pb2.TrainRequest) -> student_pb2.ClassifierResult:
        folder = RunDir.of(home / "runs", suite.PROJECT, asked.run_id)
        folder.create(asked)
        made = Training(asked.project, blobs, folder.next_writer(), lambda: None, around)
        try:
            return train(made, asked).classifier
        finally:
            events.extend(folder.events()[0])

    go.events = events
    return go


def report_of(blobs, result) -> dict:
    return json.loads(blobs.get(suite.PROJECT, result.report.digest))


def record_of(blobs, result) -> ClassifierRecord:
    return ClassifierRecord.from_bytes(blobs.get(suite.PROJECT, result.card.digest))


def test_a_student_learns_from_teacher_and_labels(run, blobs, data):
    result = run(
        suite.request(
            data,
            "kd",
            training=suite.training(max_steps=40),
            skip_onnx=False,
            provenance={"a": "b"},
        )
    )
    report = report_of(blobs, result)
    test = report["student"]["test"]
    assert test["accuracy"]["value"] >= 0.9
    assert test["agreement"]["value"] >= 0.9
    assert test["accuracy"]["low"] <= test["accuracy"]["value"] <= test["accuracy"]["high"]
    assert set(test) == {
        "accuracy",
        "agreement",
        "expected_calibration_error",
        "negative_log_likelihood",
    }
    assert report["teacher"]["test"]["accuracy"]["value"] == 1.0
    assert report["size"]["parameters"] == sum(
        p.numel() for p in build_classifier("small-cnn", 3, 16).parameters()
    )
    assert report["size"]["weights_bytes"] == result.weights.size_bytes
    assert report["size"]["onnx_bytes"] == result.onnx.size_bytes > 0
    assert report["latency"]["median_ms"] > 0
    assert report["latency"]["onnx_median_ms"] > 0
    assert report["items"] == {"left_out": 0, "train": 36, "val": 12, "test": 12}
    assert report["images"] == 40 * 8
    told = [e.progress for e in run.events if e.progress.metrics]
    assert set(told[-1].metrics) == {
        "loss",
        "soft_loss",
        "hard_loss",
        "learning_rate",
        "images_per_s",
        "heldout_accuracy",
        "heldout_cross_entropy",
    }
    assert [p["step"] for p in report["curves"]][-1] == 40
    record = record_of(blobs, result)
    assert record.classes == suite.CLASSES
    assert record.card["provenance"] == report["provenance"] == {"a": "b"}
    assert record.card["data"]["view_shards"] == data.views


def test_stored_predictions_are_those_of_the_stored_weights(run, blobs, data):
    result = run(suite.request(data, "stored"))
    record = record_of(blobs, result)
    assert record.weights == result.weights.digest
    model = build_classifier(record.architecture, 3, record.input.size_px)
    model.load_state_dict(load(blobs.get(suite.PROJECT, record.weights)))
    arrays = unpack_arrays(blobs.get(suite.PROJECT, result.predictions.digest))
    preprocess = Preprocessing.from_spec(record.input)
    for at, row in enumerate(data.rows("test")):
        digest = data.items[row].digest
        assert bytes(arrays["digests"][at]).hex() == digest
        image = preprocess(decode(blobs.get(suite.PROJECT, digest)))
        with torch.no_grad():
            logits = model(image[None])[0].numpy()
        np.testing.assert_allclose(arrays["logits"][at], logits, atol=1e-4)
    accuracy = (arrays["logits"].argmax(1) == data.hot[data.rows("test")].argmax(1)).mean()
    report = report_of(blobs, result)
    assert report["student"]["test"]["accuracy"]["value"] == pytest.approx(accuracy)


def test_several_labels_train_one_sigmoid_each(run, blobs):
    several = suite.make_data(blobs, multi_label=True)
    result = run(suite.request(several, "multi", training=suite.training(max_steps=60)))
    report, record = report_of(blobs, result), record_of(blobs, result)
    assert not record.single_label
    assert report["student"]["test"]["accuracy"]["value"] > 0.85
    arrays = unpack_arrays(blobs.get(suite.PROJECT, result.predictions.digest))
    hot = several.hot[several.rows("test")]
    assert ((arrays["logits"] > 0) == hot).mean() == pytest.approx(
        report["student"]["test"]["accuracy"]["value"]
    )


def test_the_control_learns_from_labels_alone(run, blobs, data):
    result = run(suite.request(data, "hard", hard_only=True))
    curve = report_of(blobs, result)["curves"]
    assert all(point["loss"] == point["hard_loss"] for point in curve)
    assert "soft_loss" not in curve[0]
    without = run(suite.request(data, "hard-without", hard_only=True, view_shards=[]))
    assert without.weights.digest == result.weights.digest
    soft = run(suite.request(data, "soft"))
    assert soft.weights.digest != result.weights.digest


def test_views_of_the_training_items_are_enough(run, blobs, data):
    few = suite.make_data(blobs, only_train=True)
    assert few.manifest == data.manifest
    assert few.views != data.views
    results = [run(suite.request(some, f"few-{n}")) for n, some in enumerate((few, data))]
    assert results[0].weights.digest == results[1].weights.digest
    assert report_of(blobs, results[0])["items"]["left_out"] == 0


def test_equal_recipes_give_equal_weights_and_seeds_matter(run, data):
    made = [
        run(suite.request(data, f"equal-{n}", training=suite.training(max_steps=3, seed=seed)))
        for n, seed in enumerate((5, 5, 6))
    ]
    assert made[0].weights.digest == made[1].weights.digest != made[2].weights.digest


def test_images_that_the_teacher_could_not_read_are_left_out(run, blobs):
    broken = suite.make_data(blobs, unreadable=0)
    report = report_of(blobs, run(suite.request(broken, "broken")))
    assert report["items"] == {"left_out": 1, "train": 35, "val": 12, "test": 12}
    told = run(suite.request(broken, "broken-told", hard_only=True))
    alone = suite.recipe(broken, hard_only=True, view_shards=[])
    alone.data.ClearField("teacher_shards")
    asked = student_pb2.TrainRequest(project=suite.PROJECT, run_id="unread", classifier=alone)
    found = run(asked)
    assert report_of(blobs, found)["items"]["left_out"] == 1
    assert found.weights.digest == told.weights.digest
    assert "reason" in report_of(blobs, found)["teacher"]["test"]
    assert "agreement" not in report_of(blobs, found)["student"]["test"]


def test_a_student_starts_from_weights_and_takes_their_input(run, blobs, data, around):
    options = suite.training(max_steps=1, learning_rate=1e-9)
    result = run(
        suite.request(
            data,
            "started",
            architecture="",
            weights="tiny-start",
            input_size=0,
            training=options,
        )
    )
    record = record_of(blobs, result)
    assert (record.architecture, record.input.size_px, record.input.crop_pct) == (
        "test_resnet",
        32,
        0.9,
    )
    assert record.licence == "CC0-1.0"
    state = load(blobs.get(suite.PROJECT, record.weights))
    path = around.catalogue.parent / "tiny-start.safetensors"
    started = load(path.read_bytes())
    assert state["fc.weight"].shape == (3, 96)
    kernels = [name for name, tensor in state.items() if tensor.ndim == 4]
    assert kernels
    for name in kernels:
        torch.testing.assert_close(state[name], started[name], atol=1e-6, rtol=0)


def test_features_are_matched_where_the_shards_hold_them(run, blobs):
    with_features = suite.make_data(blobs, features=10)
    weighed = suite.training(feature_weight=1.0, max_steps=30)
    result = run(suite.request(with_features, "features", training=weighed))
    curve = report_of(blobs, result)["curves"]
    assert curve[-1]["feature_loss"] < curve[0]["feature_loss"]
    state = load(blobs.get(suite.PROJECT, result.weights.digest))
    assert not any("projection" in name for name in state)


def test_early_stop_keeps_the_best(run, blobs, data):
    options = suite.training(max_steps=60, learning_rate=1.0, patience=2, checkpoint_steps=1)
    report = report_of(blobs, run(suite.request(data, "early", training=options)))
    assert report["stopped_early"]
    assert report["steps"] < 60
    best = max(
        (point["heldout_accuracy"], -point["heldout_cross_entropy"]) for point in report["curves"]
    )
    val = report["student"]["val"]
    assert val["accuracy"]["value"] == pytest.approx(best[0])
    assert val["negative_log_likelihood"]["value"] == pytest.approx(-best[1], rel=1e-4)


def test_bfloat16_trains_and_is_said(run, blobs, data):
    options = suite.training(precision="bfloat16", max_steps=30)
    report = report_of(blobs, run(suite.request(data, "half", training=options)))
    assert report["settings"]["precision"] == "bfloat16"
    assert report["student"]["test"]["accuracy"]["value"] > 0.8


def test_a_loss_that_is_not_finite_ends_the_run(run, data):
    nan = {"architecture": "test_resnet", "weights": "tiny-nan", "input_size": 32}
    with pytest.raises(Precondition, match="the loss at step 1 is nan") as caught:
        run(suite.request(data, "nan", **nan, training=suite.training(checkpoint_steps=1)))
    assert caught.value.differences["loss"] == "nan"


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("arch", {"architecture": "resnt18"}, InvalidInput, "near names: resnet18"),
        ("size", {"architecture": "test_vit", "input_size": 50}, InvalidInput, "50 pixels"),
        ("weights", {"weights": "tiny-strat"}, NotFound, "did you mean tiny-start"),
        ("fit", {"weights": "tiny-start"}, Precondition, "is a test_resnet, not a small-cnn"),
        (
            "views",
            {"augmentation": suite.message(Augmentation("flip_crop", 3, 5))},
            Precondition,
            "other views",
        ),
        (
            "no-features",
            {"training": suite.training(feature_weight=1)},
            Precondition,
            "no features",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_training(run, data, name, change, error, message):
    with pytest.raises(error, match=message):
        run(suite.request(data, f"refused-{name}", **change))
    assert not any(event.progress.stage == "training" for event in run.events)


def test_killed_at_any_step_it_ends_with_the_same_weights(run, blobs, home, around):
    """Batch norms need their means, patience the best weights, AdamW its moments."""
    data = suite.make_data(blobs, features=6)
    options = {
        "architecture": "test_efficientnet",
        "input_size": 32,
        "training": suite.training(
            max_steps=9, checkpoint_steps=2, patience=50, feature_weight=0.5, weight_decay=0.01
        ),
    }
    whole = run(suite.request(data, "whole", **options))
    asked = suite.request(data, "killed", **options)
    folder = RunDir.of(home / "runs", suite.PROJECT, "killed")
    folder.create(asked)
    for step in (1, 4, 7, 9):
        killed_at(step, asked, Training(asked.project, blobs, folder.next_writer(), int, around))
    result = run(asked)
    assert result.weights.digest == whole.weights.digest
    steps = [e.progress.done for e in folder.events()[0] if e.progress.metrics]
    assert steps.count(1) == 2  # killed at once, begun anew; then never again from the start


def killed_at(step: int, asked: student_pb2.TrainRequest, training: Training) -> None:
    """Train in a child process that SIGKILL ends when it has told of a step."""
    before = training.writer.progress

    def progress(stage, done, total, metrics=None):
        before(stage, done, total, metrics)
        if metrics and done >= step:
            os.kill(os.getpid(), signal.SIGKILL)

    training.writer.progress = progress
    child = os.fork()
    if not child:
        try:
            train(training, asked)
        finally:
            os._exit(7)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
