"""The parts of the classifier recipe: order, threads, figures, options, pixels."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from stillhouse.student.v1 import student_pb2

from services.common.augmentation import Augmentation
from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.predictions import Predictions, calibration_gaps
from services.student.classifier.course import HeldOut, Progress
from services.student.classifier.data import ImageSource, normalised
from services.student.classifier.figures import calibration_error, figures
from services.student.classifier.options import check_classifier, read_options
from services.student.classifier.plan import Plan
from services.student.classifier.prefetch import Prefetch
from services.student.data import read_manifest
from services.torch_common.augment import view_pixels
from services.torch_common.preprocess import Preprocessing
from tests.student import classifier_suite as suite


def test_every_pass_shows_each_image_once_and_in_the_end_all_views() -> None:
    plan = Plan(images=10, views=3, batch=4, seed=1)
    steps = [plan.step(number) for number in range(15)]
    rows = np.concatenate([images for images, _ in steps]).reshape(6, 10)
    views = np.concatenate([views for _, views in steps]).reshape(6, 10)
    assert all(sorted(one) == list(range(10)) for one in rows.tolist())
    assert len({tuple(one) for one in rows.tolist()}) == 6
    for image in range(10):
        seen = [int(views[turn][rows[turn] == image][0]) for turn in range(6)]
        assert sorted(seen) == [0, 0, 1, 1, 2, 2]
        assert seen[:3] == seen[3:]
    assert len(set(views[0].tolist())) > 1
    later = Plan(10, 3, 4, 1).step(9)
    np.testing.assert_array_equal(later, steps[9])
    assert not np.array_equal(Plan(10, 3, 4, 2).step(0)[0], steps[0][0])


def test_a_step_may_be_larger_than_the_data() -> None:
    images, views = Plan(images=3, views=1, batch=8, seed=0).step(0)
    assert sorted(np.bincount(images).tolist()) == [2, 3, 3]
    assert not views.any()


def test_batches_are_made_ahead_in_other_threads() -> None:
    made: list[int] = []
    threads = set()

    def make(number: int) -> int:
        made.append(number)
        threads.add(threading.current_thread().name)
        return 10 * number

    with Prefetch(make, stop=9, ahead=3) as batches:
        assert batches.take(0) == 0
        until_s = time.monotonic() + 10
        while len(made) < 3 and time.monotonic() < until_s:
            time.sleep(0.005)
        assert sorted(made) == [0, 1, 2]
        assert [batches.take(n) for n in (1, 2, 3)] == [10, 20, 30]
        assert batches.take(7) == 70  # as a resumed training asks
        assert batches.take(8) == 80
        assert max(made) == 8
    assert threading.current_thread().name not in threads


def test_what_making_a_batch_raises_reaches_who_takes_it() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise InvalidInput("damaged")
        return number

    with Prefetch(make, stop=5) as batches:
        assert batches.take(0) + batches.take(1) == 1
        with pytest.raises(InvalidInput, match="damaged"):
            batches.take(2)


def test_calibration_error_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    sure, right = rng.random((200, 1)), (rng.random((200, 1)) < 0.6).astype(float)
    weights = rng.integers(0, 3, 200).astype(float)
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (sure[:, 0] > low) & (sure[:, 0] <= low + 1 / 15)
        total = weights[inside].sum()
        if total:
            gap = (weights[inside] * (right - sure)[inside, 0]).sum() / total
            expected += total / weights.sum() * abs(gap)
    assert calibration_error(calibration_gaps(sure, right), weights) == pytest.approx(expected)
    always = np.full((100, 1), 0.8)
    held = np.concatenate([np.ones((80, 1)), np.zeros((20, 1))])
    assert calibration_error(calibration_gaps(always, held), np.ones(100)) == pytest.approx(
        0, abs=1e-12
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_figures_equal_torch(multi_label: bool) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 4)) * 5
    hot = rng.random((50, 4)) < 0.4 if multi_label else np.eye(4, dtype=bool)[np.arange(50) % 4]
    found = figures(Predictions(logits, hot, multi_label), teacher=logits)
    x, y = torch.from_numpy(logits), torch.from_numpy(hot)
    if multi_label:
        each = torch.nn.functional.binary_cross_entropy_with_logits(x, y.double(), reduction="none")
        nll, accuracy = each.sum(1).mean(), ((x > 0) == y).double().mean()
    else:
        labels = y.double().argmax(1)
        nll = torch.nn.functional.cross_entropy(x, labels)
        accuracy = (x.argmax(1) == labels).double().mean()
    assert found["negative_log_likelihood"]["value"] == pytest.approx(float(nll))
    assert found["accuracy"]["value"] == pytest.approx(float(accuracy))
    assert found["agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert 0 < found["expected_calibration_error"]["value"] < 1
    for one in found.values():
        assert one["low"] <= one["value"] <= one["high"]


def test_extreme_logits_have_figures() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]])
    for multi_label in (False, True):
        found = figures(Predictions(logits, np.eye(2, dtype=bool), multi_label))
        assert found["negative_log_likelihood"]["value"] == 0
        assert found["accuracy"]["value"] == 1


def test_of_equal_accuracies_the_surer_counts() -> None:
    progress = Progress()
    for step, (accuracy, entropy) in enumerate(
        [(0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.4, 0.1)], start=1
    ):
        progress.step = step
        progress.count(better=progress.note(HeldOut(accuracy, entropy)), patience=2)
    assert (progress.best_step, progress.without_gain, progress.stopped_early) == (2, 2, True)


def test_defaults_and_the_control() -> None:
    recipe = student_pb2.ClassifierRecipe()
    options = read_options(recipe)
    assert (options.temperature, options.soft_weight, options.augmentation.policy) == (
        4.0,
        0.9,
        "none",
    )
    assert options.steps(640) == 300
    assert options.checkpoint_every(300) == 30
    recipe.hard_only = True
    recipe.training.soft_weight = 0.5
    assert read_options(recipe).loss(multi_label=True).soft_weight == 0


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"architecture": ""}, ["architecture"]),
        ({"input_size": 4}, ["input_size"]),
        ({"view_shards": []}, ["view_shards"]),
        ({"view_shards": [suite.ref("../x")]}, ["view_shards"]),
        ({"augmentation": suite.message(Augmentation("none", 3))}, ["augmentation.views"]),
        (
            {"training": suite.training(learning_rate=float("nan"), soft_weight=1.5)},
            ["training.learning_rate", "training.soft_weight"],
        ),
        ({"training": suite.training(batch_images=1)}, ["training.batch_images"]),
        ({"training": suite.training(precision="int8")}, ["training.precision"]),
        (
            {"hard_only": True, "training": suite.training(feature_weight=1)},
            ["training.feature_weight"],
        ),
    ],
)
def test_what_the_request_alone_shows_is_refused(change, fields) -> None:  # type: ignore[no-untyped-def]
    data = suite.Data("0" * 64, [], ["1" * 64], (), np.zeros(0), np.zeros(0))
    check_classifier(suite.recipe(data))
    with pytest.raises(InvalidInput) as caught:
        check_classifier(suite.recipe(data, **change))
    assert [field for field, _ in caught.value.violations] == fields


def test_pixels_are_those_that_teachers_see(tmp_path) -> None:  # type: ignore[no-untyped-def]
    blobs = BlobStore(str(tmp_path))
    data = suite.make_data(blobs, items=6)
    source = ImageSource(
        blobs, "default", read_manifest(blobs, "default", suite.ref(data.manifest))
    )
    preprocessing = Preprocessing(16, crop_pct=0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    rows, views = np.array([4, 0, 2]), np.array([1, 2, 0])
    device = torch.device("cpu")
    plain = normalised(source.plain(rows, preprocessing), preprocessing, device)
    seen = source.views(rows, views, suite.VIEWS, preprocessing)
    viewed = normalised(seen, preprocessing, device)
    for at, row in enumerate(rows):
        photo = source.photo(int(row))
        torch.testing.assert_close(plain[at], preprocessing(photo))
        square = view_pixels(
            photo, data.items[row].digest, int(views[at]), suite.VIEWS, preprocessing
        )
        torch.testing.assert_close(viewed[at], preprocessing.normalise(square))
